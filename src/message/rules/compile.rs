//! From rules as they are written to compiled ones, or to everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;

use jiff::tz::TimeZone;
use minijinja::Environment;

use super::condition::ConditionDraft;
use super::engine::{self, Patterns};
use super::moment::Calendar;
use super::template::Draft;
use super::{Field, Rule, Rules, Used, digest, pattern};
use crate::config::{self, Action, Events, Priority, Problem, RuleText, Scalar};
use crate::message::payload::REQUIRED;
use crate::message::task::FIELDS;
use crate::suggest::suggest;

/// Stack for the engine's compiler, which calls itself for each link of a long chain.
const STACK: usize = 64 << 20;

/// What a text holds that handles dates: zone and holidays decide its value, too.
const DATES: [&str; 5] = ["|", "now", "published_at", "timestamp", "headers"];

/// Compiles all rules.
pub(super) fn rules(events: &Events, task: &config::Task, timezone: &TimeZone) -> Result<Rules, Vec<Problem>> {
    let compiled = thread::scope(|scope| {
        let work = || compile(events, task, timezone);
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        thread.map_err(|error| error.to_string())?.join().map_err(|_| "the template engine crashed".to_owned())
    });
    compiled.unwrap_or_else(|why| Err(vec![Problem::new("rules", "events", format!("cannot be compiled: {why}"))]))
}

fn compile(events: &Events, task: &config::Task, timezone: &TimeZone) -> Result<Rules, Vec<Problem>> {
    let calendar = Arc::new(Calendar { timezone: timezone.clone(), holidays: events.holidays.clone() });
    let mut problems = Vec::new();
    let drafts: Vec<RuleDraft<'_>> =
        events.rules.iter().map(|rule| RuleDraft::new(rule, task, &mut problems)).collect();
    let mut patterns = Patterns::new();
    for text in drafts.iter().flat_map(RuleDraft::all).flat_map(|draft| &draft.names.patterns) {
        // One that is wrong was found with the template's other faults.
        if let Ok(pattern) = engine::pattern(text) {
            patterns.insert(text.clone(), pattern);
        }
    }
    let mut env = engine::environment(&calendar, patterns);
    let rules: Vec<Rule> =
        drafts.into_iter().enumerate().filter_map(|(at, draft)| draft.compile(at, &mut env, &mut problems)).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let (digest, identity) = digests(events, timezone);
    Ok(Rules { calendar, env, rules, unmatched: events.unmatched, digest, identity })
}

/// The digest of all that is written, and that of what decides which message gets which id.
fn digests(events: &Events, timezone: &TimeZone) -> (Arc<str>, Arc<str>) {
    let choice = |rule: &RuleText| {
        let is_skip = rule.action == Action::Skip;
        format!("{:?}", (&rule.routing_key, &rule.when, &rule.message_id, is_skip))
    };
    let mut choices: Vec<String> = events.rules.iter().map(choice).collect();
    let texts = || events.rules.iter().flat_map(|rule| rule.when.iter().chain(&rule.message_id));
    if texts().any(|text| DATES.iter().any(|name| text.contains(name))) {
        choices.push(format!("{:?}", (timezone.iana_name(), &events.holidays)));
    }
    let rest = events.rules.iter().map(|rule| format!("{:?}", (&rule.name, &rule.action)));
    let mut all: Vec<String> = rest.chain(choices.iter().cloned()).collect();
    all.push(format!("{:?}", (events.unmatched, &events.holidays)));
    (digest(all.iter().map(String::as_str)), digest(choices.iter().map(String::as_str)))
}

/// A rule that was read, not yet compiled.
struct RuleDraft<'a> {
    text: &'a RuleText,
    condition: Option<ConditionDraft>,
    message_id: Option<Draft>,
    fields: Option<BTreeMap<&'static str, Draft>>,
}

/// Notes what is wrong with one rule.
struct Notes<'a> {
    rule: &'a RuleText,
    problems: &'a mut Vec<Problem>,
}

impl Notes<'_> {
    fn add(&mut self, place: &str, message: impl Into<String>) {
        let key = format!("rule {}, {place}", self.rule.name);
        self.problems.push(Problem::new(key, &self.rule.source, message));
    }

    /// The draft, unless its syntax is wrong; its faults are noted.
    fn draft(&mut self, place: &str, draft: Result<Draft, String>) -> Option<Draft> {
        match draft {
            Ok(draft) => {
                draft.faults().into_iter().for_each(|fault| self.add(place, fault));
                Some(draft)
            }
            Err(message) => {
                self.add(place, message);
                None
            }
        }
    }
}

impl<'a> RuleDraft<'a> {
    fn new(text: &'a RuleText, task: &config::Task, problems: &mut Vec<Problem>) -> Self {
        let mut notes = Notes { rule: text, problems };
        if let Some(Err(message)) = text.routing_key.as_deref().map(pattern::check) {
            notes.add("routing_key", message);
        }
        let condition = text.when.as_deref().and_then(|source| condition(source, &mut notes));
        let message_id = text.message_id.as_deref().and_then(|source| {
            let draft = notes.draft("message_id", Draft::template(source))?;
            for (name, why) in [
                ("now", "the id of an event does not depend on the time at which it arrives"),
                ("task", "the id is made before the task"),
            ] {
                if draft.names.variables.contains(name) {
                    notes.add("message_id", format!("cannot use {name}: {why}"));
                }
            }
            Some(draft)
        });
        let fields = match &text.action {
            Action::Skip => {
                if text.message_id.is_some() {
                    notes.add("message_id", "is not needed with action = \"skip\"");
                }
                None
            }
            Action::Task(given) => Some(fields(given, task, &mut notes)),
        };
        Self { text, condition, message_id, fields }
    }

    fn all(&self) -> impl Iterator<Item = &Draft> {
        let condition = self.condition.iter().flat_map(ConditionDraft::drafts);
        condition.chain(&self.message_id).chain(self.fields.iter().flat_map(BTreeMap::values))
    }

    fn compile(self, at: usize, env: &mut Environment<'static>, problems: &mut Vec<Problem>) -> Option<Rule> {
        let mut notes = Notes { rule: self.text, problems };
        let condition = self.condition.as_ref().map(|draft| {
            let variables = draft.drafts().into_iter().flat_map(|part| part.names.variables.iter().copied()).collect();
            (draft.compile(env, &format!("{at}/when")), variables)
        });
        let condition = match condition {
            Some((Ok(part), variables)) => Some(Used { part, variables }),
            Some((Err(message), _)) => {
                notes.add("when", message);
                None
            }
            None => None,
        };
        let message_id =
            self.message_id.and_then(|draft| used(&draft, env, &format!("{at}/message_id"), "message_id", &mut notes));
        let fields = match self.fields {
            None => None,
            Some(drafts) => Some(in_order(&drafts, at, env, &mut notes)?),
        };
        let pattern = self.text.routing_key.as_deref().map(Arc::from);
        Some(Rule { name: self.text.name.as_str().into(), pattern, condition, message_id, fields })
    }
}

fn used(
    draft: &Draft,
    env: &mut Environment<'static>,
    key: &str,
    place: &str,
    notes: &mut Notes<'_>,
) -> Option<Used<super::Template>> {
    match draft.compile(env, key.to_owned()) {
        Ok(part) => Some(Used { part, variables: draft.names.variables.clone() }),
        Err(message) => {
            notes.add(place, message);
            None
        }
    }
}

fn condition(source: &str, notes: &mut Notes<'_>) -> Option<ConditionDraft> {
    let draft = match ConditionDraft::new(source) {
        Ok(draft) => draft,
        Err(message) => {
            notes.add("when", message);
            return None;
        }
    };
    for part in draft.drafts() {
        part.faults().into_iter().for_each(|fault| notes.add("when", fault));
        if part.names.variables.contains("task") {
            notes.add("when", "cannot use task: the condition is tried before the task is made");
        }
    }
    Some(draft)
}

fn fields(
    given: &BTreeMap<String, Scalar>,
    task: &config::Task,
    notes: &mut Notes<'_>,
) -> BTreeMap<&'static str, Draft> {
    let mut drafts = BTreeMap::new();
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
        let draft = notes.draft(&place, draft(known, value));
        if let Some(draft) = draft {
            references(known, &draft, given, notes);
            drafts.insert(known, draft);
        }
    }
    let configured = |name: &str| match name {
        "name_module" => task.name_module.is_some(),
        "wolkvox_owner" => task.wolkvox_owner.is_some(),
        _ => false,
    };
    for name in REQUIRED {
        if !given.contains_key(name) && !configured(name) {
            notes.add(&format!("field {name}"), "is missing; every task needs it");
        }
    }
    drafts
}

fn draft(field: &str, value: &Scalar) -> Result<Draft, String> {
    let draft = match value {
        Scalar::Switch(on) if field == "remember" => return Ok(Draft::fixed(*on)),
        Scalar::Switch(_) => return Err("is a switch; a text is allowed".to_owned()),
        Scalar::Integer(number) => Draft::fixed(number.to_string()),
        Scalar::Float(number) => Draft::fixed(number.to_string()),
        Scalar::Text(text) => Draft::template(text)?,
    };
    if field == "remember" && !draft.is_whole() {
        return Err("is a text; true or false without quotes is allowed, or one expression in braces".to_owned());
    }
    let fixed = draft.fixed_value().and_then(|value| value.as_str());
    if let (true, Some(text)) = (field == "priority", fixed)
        && !text.is_empty()
        && Priority::from_name(text).is_none()
    {
        return Err(format!("is {text:?}; high, normal or low is allowed"));
    }
    Ok(draft)
}

/// The fields that a template names must be fields of the same rule.
fn references(field: &str, draft: &Draft, given: &BTreeMap<String, Scalar>, notes: &mut Notes<'_>) {
    let place = format!("field {field}");
    for (name, _) in &draft.names.fields {
        if given.contains_key(name) {
            continue;
        }
        let others = given.keys().map(String::as_str);
        let hint = suggest(name, others).map_or_else(String::new, |near| format!("; did you mean task.{near}?"));
        notes.add(&place, format!("uses task.{name}, which is not a field of this rule{hint}"));
    }
}

/// Compiles the fields in an order in which each one's references stand before it.
fn in_order(
    drafts: &BTreeMap<&'static str, Draft>,
    at: usize,
    env: &mut Environment<'static>,
    notes: &mut Notes<'_>,
) -> Option<Vec<Field>> {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut fields = Vec::new();
    while fields.len() < drafts.len() {
        let references = |draft: &Draft| -> Vec<&'static str> {
            let names =
                draft.names.fields.iter().filter_map(|(name, _)| FIELDS.into_iter().find(|field| field == name));
            names.filter(|name| drafts.contains_key(name)).collect()
        };
        let ready = drafts.iter().find(|(name, draft)| {
            !done.contains(**name) && references(draft).iter().all(|reference| done.contains(reference))
        });
        let Some((name, draft)) = ready else {
            let circle: Vec<&str> = drafts.keys().copied().filter(|name| !done.contains(name)).collect();
            notes.add("task", format!("has fields that need each other: {}", circle.join(", ")));
            return None;
        };
        done.insert(name);
        let template = used(draft, env, &format!("{at}/{name}"), &format!("field {name}"), notes)?;
        fields.push(Field { name, references: references(draft), template });
    }
    Some(fields)
}
