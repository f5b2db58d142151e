//! The metrics of rules.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::message::mapper::Mapper;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    rule: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RuleLabels {
    rule: String,
}

/// Registered again for each scrape, so that the series of a removed rule disappear.
pub(super) fn registry(mapper: &Mapper) -> Registry {
    let (messages, condition_errors) =
        (Family::<OutcomeLabels, Counter>::default(), Family::<RuleLabels, Counter>::default());
    let unmatched = Counter::<u64>::default();
    for counts in mapper.counts() {
        let rule = counts.rule.to_string();
        for (outcome, count) in [("matched", counts.matched), ("skipped", counts.skipped), ("failed", counts.failed)] {
            messages.get_or_create(&OutcomeLabels { rule: rule.clone(), outcome }).inc_by(count);
        }
        condition_errors.get_or_create(&RuleLabels { rule }).inc_by(counts.condition_errors);
    }
    unmatched.inc_by(mapper.unmatched());
    let mut registry = Registry::with_prefix("wtw");
    registry.register(
        "rule_messages",
        "Messages that matched each rule, by result: mapped to a task, skipped, or failed. A message counts each time it is mapped",
        messages,
    );
    registry.register(
        "rule_condition_errors",
        "Messages that lack a value which the `when` of a rule compares",
        condition_errors,
    );
    registry.register("unmatched_messages", "Messages that no rule matched, skipped or dead-lettered", unmatched);
    registry
}
