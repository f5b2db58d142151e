//! The table of filters: the parameters of each, and the function that it calls.

use super::parameters::{Arguments, Parameter, ParameterType, needed, optional};
use super::value::Value;
use super::work::{FailureReason, Work};

mod dates;
mod lists;
mod numbers;
mod texts;

/// A filter.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) name: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) apply: Apply,
}

type Apply = fn(&mut Work<'_>, &Value, &Arguments<'_>) -> Result<Value, FailureReason>;

const fn filter(name: &'static str, parameters: &'static [Parameter], apply: Apply) -> Filter {
    Filter { name, parameters, apply }
}

/// The most characters that `truncate` keeps.
const MAX_CHARACTERS: i128 = 262_144;
/// The most digits after the point to which `round` rounds.
const MAX_DIGITS: i128 = 15;
const MAX_DAYS: i128 = dates::MAX_BUSINESS_DAYS;

/// The filters that are a function of a value and arguments.
const FUNCTION_FILTERS: &[Filter] = &[
    filter(
        "datetime",
        &[
            optional("form", ParameterType::ReadForm),
            optional("timezone", ParameterType::Zone),
            optional("unit", ParameterType::Unit),
        ],
        dates::datetime,
    ),
    filter("add", &[needed("span", ParameterType::Span)], dates::add),
    filter("add_business_days", &[needed("days", ParameterType::Whole(-MAX_DAYS, MAX_DAYS))], dates::add_business_days),
    filter("at", &[needed("time", ParameterType::Time)], dates::at),
    filter("in_timezone", &[needed("timezone", ParameterType::Zone)], dates::in_timezone),
    filter("format", &[needed("form", ParameterType::WrittenForm)], dates::format),
    filter("truncate", &[needed("length", ParameterType::Whole(1, MAX_CHARACTERS))], texts::truncate),
    filter("digits", &[], texts::digits),
    filter(
        "regex_replace",
        &[needed("pattern", ParameterType::Pattern), needed("by", ParameterType::Text)],
        texts::regex_replace,
    ),
    filter("abs", &[], numbers::abs),
    filter("capitalize", &[], texts::capitalize),
    filter("count", &[], lists::length),
    filter("dictsort", &[], lists::items),
    filter("first", &[], lists::first),
    filter("float", &[optional("default", ParameterType::Any)], numbers::float),
    filter("int", &[optional("default", ParameterType::Any)], numbers::int),
    filter("items", &[], lists::items),
    filter("join", &[optional("d", ParameterType::Text)], lists::join),
    filter("last", &[], lists::last),
    filter("length", &[], lists::length),
    filter("list", &[], lists::list),
    filter("lower", &[], texts::lower),
    filter("max", &[], lists::max),
    filter("min", &[], lists::min),
    filter("replace", &[needed("old", ParameterType::Part), needed("new", ParameterType::Text)], texts::replace),
    filter("reverse", &[], lists::reverse),
    filter("round", &[optional("precision", ParameterType::Whole(0, MAX_DIGITS))], numbers::round),
    filter(
        "sort",
        &[optional("reverse", ParameterType::Flag), optional("attribute", ParameterType::Member)],
        lists::sort,
    ),
    filter("split", &[optional("by", ParameterType::Part)], texts::split),
    filter("string", &[], texts::string),
    filter("sum", &[optional("attribute", ParameterType::Member)], lists::sum),
    filter("title", &[], texts::title),
    filter("trim", &[optional("chars", ParameterType::Text)], texts::trim),
    filter("unique", &[], lists::unique),
    filter("upper", &[], texts::upper),
    #[cfg(test)]
    filter("crash", &[], |_, _, _| panic!("a filter of the tests")),
];

/// The filters that need more than a value and arguments: the evaluation does their work.
const EVALUATION_FILTERS: [&str; 7] = ["d", "default", "map", "reject", "rejectattr", "select", "selectattr"];

/// The filter of a name.
pub(super) fn find(name: &str) -> Option<&'static Filter> {
    FUNCTION_FILTERS.iter().find(|filter| filter.name == name)
}

/// Every filter's name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTION_FILTERS.iter().map(|filter| filter.name).chain(EVALUATION_FILTERS)
}
