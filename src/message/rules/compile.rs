//! Compiles the rules of the configuration, or reports everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;

use jiff::tz::TimeZone;

use super::context::Context;
use super::moment::Calendar;
use super::template::Template;
use super::value::Value;
use super::{Field, MAX_SHOWN, Rule, Rules, condition, digest, field_value, fixed, pattern};
use crate::config::{self, Events, Problem, RuleAction, RuleText, Scalar};
use crate::message::failure::shorten;
use crate::message::payload::Mapping;
use crate::message::task::FIELDS;
use crate::suggest::suggest;

/// Stack for MiniJinja's parser, which calls itself for each link of a long chain.
const STACK: usize = 64 << 20;

/// A template that contains one of these can depend on the time zone and the holidays.
const SIGNS_OF_DATES: [&str; 6] = ["|", "now", "published_at", "timestamp", "headers", "ce"];

/// Compiles all rules.
pub(super) fn rules(events: &Events, task: &config::Task, timezone: &TimeZone) -> Result<Rules, Vec<Problem>> {
    let compiled = thread::scope(|scope| {
        let work = || compile(events, task, timezone);
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        thread.map_err(|error| error.to_string())?.join().map_err(|_| "a panic; report this bug".to_owned())
    });
    compiled.unwrap_or_else(|why| Err(vec![Problem::new("rules", "events", format!("cannot be compiled: {why}"))]))
}

fn compile(events: &Events, task: &config::Task, timezone: &TimeZone) -> Result<Rules, Vec<Problem>> {
    let calendar = Arc::new(Calendar { timezone: timezone.clone(), holidays: events.holidays.clone() });
    let mapping = Mapping { operation: String::new(), defaults: task.clone(), timezone: timezone.clone() };
    let mut problems = Vec::new();
    let mut rules = Vec::new();
    for text in &events.rules {
        let notes = RuleProblems { rule: text, calendar: &calendar, mapping: &mapping, problems: &mut problems };
        rules.extend(rule(text, notes));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let (digest, identity) = digests(events, timezone);
    Ok(Rules { calendar, rules, unmatched: events.unmatched, digest, identity })
}

/// Two digests: of all rules, and of the parts that decide which message gets which id.
fn digests(events: &Events, timezone: &TimeZone) -> (Arc<str>, Arc<str>) {
    let choice = |rule: &RuleText| {
        let is_skip = rule.action == RuleAction::Skip;
        format!("{:?}", (&rule.routing_key, &rule.when, &rule.message_id, is_skip))
    };
    let mut choices: Vec<String> = events.rules.iter().map(choice).collect();
    let texts = || events.rules.iter().flat_map(|rule| rule.when.iter().chain(&rule.message_id));
    if texts().any(|text| SIGNS_OF_DATES.iter().any(|name| text.contains(name))) {
        choices.push(format!("{:?}", (timezone.iana_name(), &events.holidays)));
    }
    let rest = events.rules.iter().map(|rule| format!("{:?}", (&rule.name, &rule.action)));
    let mut all: Vec<String> = rest.chain(choices.iter().cloned()).collect();
    all.push(format!("{:?}", (events.unmatched, &events.holidays)));
    (digest(all.iter().map(String::as_str)), digest(choices.iter().map(String::as_str)))
}

/// Notes what is wrong with one rule.
struct RuleProblems<'a> {
    rule: &'a RuleText,
    calendar: &'a Arc<Calendar>,
    /// Validates the task.
    mapping: &'a Mapping,
    problems: &'a mut Vec<Problem>,
}

impl RuleProblems<'_> {
    fn add(&mut self, place: &str, message: impl Into<String>) {
        let key = format!("rule {}, {place}", self.rule.name);
        self.problems.push(Problem::new(key, &self.rule.source, message));
    }

    /// Returns the template unless its syntax is wrong, and notes its problems.
    fn template(&mut self, place: &str, template: Result<Template, String>) -> Option<Template> {
        match template {
            Ok(template) => {
                template.problems().into_iter().for_each(|problem| self.add(place, problem));
                Some(template)
            }
            Err(message) => {
                self.add(place, message);
                None
            }
        }
    }

    /// Notes each forbidden variable that the template uses, and why it is forbidden.
    fn forbid(&mut self, place: &str, template: &Template, forbidden: &[(&str, &str)]) {
        for (name, why) in forbidden {
            if template.names.variables.contains(name) {
                self.add(place, format!("cannot use {name}: {why}"));
            }
        }
    }

    /// The value of a template that has the same value for every message. `None` for other templates, and after an error.
    fn constant(&mut self, place: &str, template: &Template) -> Option<Value> {
        if !template.is_constant() {
            return None;
        }
        match template.value(&Context::empty(self.calendar)) {
            Ok(value) => Some(value),
            Err(fail) => {
                self.add(place, fail.into_text());
                None
            }
        }
    }
}

fn rule(text: &RuleText, mut notes: RuleProblems<'_>) -> Option<Rule> {
    if let Some(Err(message)) = text.routing_key.as_deref().map(pattern::check) {
        notes.add("routing_key", message);
    }
    let condition = text.when.as_deref().and_then(|source| when(source, &mut notes));
    let message_id = text.message_id.as_deref().and_then(|source| message_id(source, &mut notes));
    let fields = match &text.action {
        RuleAction::Skip => {
            if text.message_id.is_some() {
                notes.add("message_id", "is not needed with action = \"skip\"");
            }
            None
        }
        RuleAction::Task(given) => {
            let templates = fields(given, &mut notes);
            Some(in_order(templates, &mut notes)?)
        }
    };
    let pattern = text.routing_key.as_deref().map(Arc::from);
    Some(Rule { name: text.name.as_str().into(), pattern, condition, message_id, fields })
}

fn when(source: &str, notes: &mut RuleProblems<'_>) -> Option<Template> {
    if source.trim_start().starts_with("{{") {
        let own = source.replace("{{", "").replace("}}", "");
        notes.add("when", format!("is an expression without braces: write {}", shorten(own.trim(), MAX_SHOWN)));
        return None;
    }
    let template = notes.template("when", Template::expression(source))?;
    notes.forbid(
        "when",
        &template,
        &[
            ("task", "the condition is tried before the fields of the task are known"),
            ("reference", "the condition is tried before the message has its id"),
        ],
    );
    if template.is_constant()
        && let Err(fail) = condition::try_on(&template, &Context::empty(notes.calendar))
    {
        notes.add("when", fail.into_text());
    }
    Some(template)
}

fn message_id(source: &str, notes: &mut RuleProblems<'_>) -> Option<Template> {
    const PLACE: &str = "message_id";
    let template = notes.template(PLACE, Template::new(source))?;
    notes.forbid(
        PLACE,
        &template,
        &[
            ("now", "the id of an event does not depend on the time at which it arrives"),
            ("task", "the id is computed before the fields of the task"),
            ("reference", "it is made from the id"),
        ],
    );
    if let Some(value) = notes.constant(PLACE, &template) {
        match field_value::text(&value) {
            Ok(Some(_)) => notes.add(PLACE, "is the same for every message; use a part that differs for each event"),
            Ok(None) => notes.add(PLACE, "is empty; use a part that differs for each event, or remove message_id"),
            Err(why) => notes.add(PLACE, template.unusable(why)),
        }
    }
    Some(template)
}

fn fields(given: &BTreeMap<String, Scalar>, notes: &mut RuleProblems<'_>) -> BTreeMap<&'static str, Template> {
    let mut templates = BTreeMap::new();
    let mut fixed = BTreeMap::new();
    for (name, value) in given {
        let Some(known) = FIELDS.into_iter().find(|known| known == name) else {
            let hint = suggest(name, FIELDS).map_or_else(
                || format!("the known ones are {}", FIELDS.join(", ")),
                |known| format!("did you mean {known}?"),
            );
            notes.add(&format!("field {name}"), format!("is not a field of a task; {hint}"));
            continue;
        };
        let place = format!("field {known}");
        if let Some(template) = notes.template(&place, template(known, value)) {
            references(known, &template, given, notes);
            let value = notes.constant(&place, &template).map(|value| field_value::field(known, &value));
            match value {
                Some(Err(why)) => notes.add(&place, template.unusable(why)),
                Some(Ok(value)) => {
                    fixed.insert(known, value);
                }
                None => {}
            }
            templates.insert(known, template);
        }
    }
    for problem in fixed::problems(notes.mapping, given, &fixed) {
        notes.add(&format!("field {}", problem.field), problem.text);
    }
    templates
}

fn template(field: &str, value: &Scalar) -> Result<Template, String> {
    let template = match value {
        Scalar::Boolean(on) if field == "remember" => return Ok(Template::fixed(Value::Bool(*on))),
        Scalar::Boolean(_) => return Err("is a boolean; a text is allowed".to_owned()),
        Scalar::Integer(number) => Template::fixed(Value::from(number.to_string())),
        Scalar::Float(number) => Template::fixed(Value::from(number.to_string())),
        Scalar::Text(text) => Template::new(text)?,
    };
    if field == "remember" && !template.is_whole() {
        return Err("is a text; true or false without quotes is allowed, or one expression in braces".to_owned());
    }
    Ok(template)
}

/// Notes fields that a template uses and that its rule does not have.
fn references(field: &str, template: &Template, given: &BTreeMap<String, Scalar>, notes: &mut RuleProblems<'_>) {
    let place = format!("field {field}");
    for name in &template.names.fields {
        if given.contains_key(name) {
            continue;
        }
        let others = given.keys().map(String::as_str);
        let hint = suggest(name, others).map_or_else(String::new, |near| format!("; did you mean task.{near}?"));
        notes.add(&place, format!("uses task.{name}, which is not a field of this rule{hint}"));
    }
}

/// Sorts the fields, so that each one comes after the fields that it uses.
fn in_order(templates: BTreeMap<&'static str, Template>, notes: &mut RuleProblems<'_>) -> Option<Vec<Field>> {
    let known: BTreeSet<&'static str> = templates.keys().copied().collect();
    let mut waiting: Vec<Field> = Vec::new();
    for (name, template) in templates {
        let named = template.names.fields.iter().filter_map(|name| known.get(name.as_str()).copied());
        waiting.push(Field { name, references: named.collect(), template });
    }
    let mut fields: Vec<Field> = Vec::new();
    while !waiting.is_empty() {
        let is_done = |name: &&str| fields.iter().any(|field| field.name == *name);
        let Some(at) = waiting.iter().position(|field| field.references.iter().all(is_done)) else {
            // A field that no other one waits for is not part of the circle.
            while let Some(unused) = waiting.iter().position(|field| !is_used(field.name, &waiting)) {
                waiting.remove(unused);
            }
            let circle: Vec<&str> = waiting.iter().map(|field| field.name).collect();
            notes.add("task", format!("has fields that refer to each other in a circle: {}", circle.join(", ")));
            return None;
        };
        fields.push(waiting.remove(at));
    }
    Some(fields)
}

/// Whether one of the fields uses the field of this name.
fn is_used(name: &str, fields: &[Field]) -> bool {
    fields.iter().any(|field| field.references.contains(&name))
}
