//! Maps a message to the request body for the CRM: directly, or through the first rule that matches. Pure.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::broker::Message;
use crate::config::{Config, Events, Problem, Problems, ReferencePlace, UnknownFields};
use crate::message::body;
use crate::message::event;
use crate::message::failure::{Failure, Kind, Stage, shorten};
use crate::message::payload::{Mapping, Payload};
use crate::message::reference::Reference;
use crate::message::retry_state::{self, RetryState, string};
use crate::message::rules::{Applied, FieldValue, Incoming, Rules, Trace};
use crate::message::task;

mod counts;
mod examples;

use counts::Counts;
pub use counts::RuleCounts;

/// The most bytes of the names of lost headers in a reason.
const MAX_LOST: usize = 300;
/// Bytes that the CRM's form needs besides the message's own fields.
const BESIDE_MESSAGE: usize = 256;

/// Creates request bodies from messages: directly, or through the first rule that matches.
pub struct Mapper {
    mapping: Mapping,
    unknown_fields: UnknownFields,
    /// The field that the message's reference is appended to.
    reference_place: ReferencePlace,
    queue: String,
    operation: String,
    /// None without rules.
    rules: RwLock<Option<Arc<Rules>>>,
    counts: Counts,
}

/// Compiled rules whose examples passed.
pub struct CompiledRules(Rules);

impl CompiledRules {
    /// The digest of everything that decides which id a message gets, see [`Mapper::identity`].
    #[must_use]
    pub fn identity(&self) -> String {
        self.0.identity.to_string()
    }
}

/// The result of mapping a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A request is sent.
    Send {
        /// The body of insert.php.
        body: Bytes,
        /// The rule that created it; none without rules.
        rule: Option<Arc<str>>,
        /// The message's id, which is the same on every copy.
        message_id: Option<String>,
    },
    /// Nothing is sent.
    Skip {
        /// The rule that skips it; none when no rule matched.
        rule: Option<Arc<str>>,
        /// What the conditions of the rules above compare and the message does not have; names only.
        missing: Option<Box<str>>,
    },
}

/// How a message was mapped, for people.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The result, or why the message fails.
    pub result: Result<Mapped, Failure>,
    /// The rules that did not match, each with its reason.
    pub passed: Vec<(Arc<str>, String)>,
    /// The rule that matched.
    pub chosen: Option<Arc<str>>,
}

impl Mapper {
    /// Compiles the rules of a configuration and runs their examples.
    ///
    /// # Errors
    /// Every problem in the rules, including failed examples; or `crm.operation` is not set.
    pub fn new(config: &Config) -> Result<Self, Problems> {
        let mapper = Self::without_examples(config)?;
        let problems = mapper.failed_examples(&config.events);
        if problems.is_empty() { Ok(mapper) } else { Err(Problems(problems)) }
    }

    /// Runs the examples of its rules: a problem for each that fails.
    #[must_use]
    pub fn failed_examples(&self, events: &Events) -> Vec<Problem> {
        self.current().map(|rules| examples::run(self, &rules, events)).unwrap_or_default()
    }

    /// Compiles the rules without running their examples.
    ///
    /// # Errors
    /// Every problem in the rules; or `crm.operation` is not set.
    pub fn without_examples(config: &Config) -> Result<Self, Problems> {
        let mapping = Mapping::new(config)
            .map_err(|message| Problems(vec![Problem::new("crm.operation", "not set", message)]))?;
        let compiled = match config.events.rules.is_empty() {
            true => None,
            false => Some(Rules::compile(&config.events, &mapping.defaults, &mapping.timezone).map_err(Problems)?),
        };
        let mapper = Self {
            mapping,
            unknown_fields: config.task.unknown_fields,
            reference_place: config.task.reference,
            queue: config.broker.queue.clone(),
            operation: config.crm.operation.clone().unwrap_or_default(),
            rules: RwLock::new(None),
            counts: Counts::default(),
        };
        if let Some(rules) = compiled {
            mapper.replace(CompiledRules(rules));
        }
        Ok(mapper)
    }

    /// Compiles new rules and runs their examples. The current rules stay in use until [`Self::replace`].
    ///
    /// # Errors
    /// Every problem in the new rules, including failed examples.
    pub fn compile(&self, events: &Events) -> Result<CompiledRules, Problems> {
        let rules = Rules::compile(events, &self.mapping.defaults, &self.mapping.timezone).map_err(Problems)?;
        let problems = examples::run(self, &rules, events);
        if problems.is_empty() { Ok(CompiledRules(rules)) } else { Err(Problems(problems)) }
    }

    /// Uses these rules from the next message on.
    pub fn replace(&self, CompiledRules(rules): CompiledRules) {
        self.counts.track(rules.names());
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(rules));
    }

    fn current(&self) -> Option<Arc<Rules>> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there are rules, so that messages are events.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.current().is_some()
    }

    /// The digest of the current rules, for `x-wtw-rules`; none without rules.
    #[must_use]
    pub fn digest(&self) -> Option<Arc<str>> {
        self.current().map(|rules| Arc::clone(&rules.digest))
    }

    /// The digest of everything that decides which id a message gets. When it changes, the ledger may not find a message
    /// that was sent before.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<str>> {
        self.current().map(|rules| Arc::clone(&rules.identity))
    }

    /// What each rule has done since the process started, in the rules' order; empty without rules.
    #[must_use]
    pub fn counts(&self) -> Vec<RuleCounts> {
        self.counts.read()
    }

    /// Messages that no rule matched since the process started.
    #[must_use]
    pub fn unmatched(&self) -> u64 {
        self.counts.unmatched()
    }

    /// Maps a message. `state` holds the original exchange and routing key, and what was fixed when a worker first saw the
    /// message.
    ///
    /// # Errors
    /// What is wrong with the message, or with the rule that matched.
    pub fn map(&self, message: &Message, state: &RetryState, now: Timestamp) -> Result<Mapped, Failure> {
        let Some(rules) = self.current() else {
            let message_id = id(message, state);
            let body = self.direct(message, message_id.as_deref())?;
            return Ok(Mapped::Send { body, rule: None, message_id });
        };
        let mut trace = Trace::default();
        let result = self.by_rules(&rules, message, state, now, &mut trace);
        self.counts.add(&trace, &result, now);
        result
    }

    /// Maps a message and records how each rule was tried. It changes no counter.
    #[must_use]
    pub fn explain(&self, message: &Message, state: &RetryState, now: Timestamp) -> Explained {
        match self.current() {
            None => Explained { result: self.map(message, state, now), passed: Vec::new(), chosen: None },
            Some(rules) => self.explain_with(&rules, message, state, now),
        }
    }

    fn explain_with(&self, rules: &Rules, message: &Message, state: &RetryState, now: Timestamp) -> Explained {
        let mut trace = Trace::default();
        let result = self.by_rules(rules, message, state, now, &mut trace);
        let passed = trace.passed.into_iter().map(|(rule, reason)| (rule, reason.to_string())).collect();
        Explained { result, passed, chosen: trace.chosen }
    }

    /// The reference in the task of a message with this id; `None` if `task.reference` is not set.
    #[must_use]
    pub fn reference(&self, message_id: &str) -> Option<Reference> {
        (self.reference_place != ReferencePlace::None).then(|| Reference::new(&self.queue, &self.operation, message_id))
    }

    /// The insert.php body of a task message.
    fn direct(&self, message: &Message, message_id: Option<&str>) -> Result<Bytes, Failure> {
        let task = body::unpacked(message)?;
        let payload = self.mapping.map(task::decode(&task, self.unknown_fields)?)?;
        self.json(payload, task.len(), message_id)
    }

    /// The payload as JSON, with the message's reference where that is configured.
    fn json(&self, mut payload: Payload<'_>, size: usize, message_id: Option<&str>) -> Result<Bytes, Failure> {
        if let Some(reference) = message_id.and_then(|id| self.reference(id)) {
            payload.append_reference(self.reference_place, reference);
        }
        let mut json = Vec::with_capacity(size + BESIDE_MESSAGE);
        serde_json::to_writer(&mut json, &payload).map_err(|error| unwritable(&error))?;
        Ok(json.into())
    }

    fn by_rules(
        &self,
        rules: &Rules,
        message: &Message,
        state: &RetryState,
        now: Timestamp,
        trace: &mut Trace,
    ) -> Result<Mapped, Failure> {
        // Checked even if no rule reads the body.
        body::check_size(&message.body)?;
        event::refuse_batch(message)?;
        let incoming = Incoming {
            message,
            exchange: &state.exchange,
            routing_key: &state.routing_key,
            first_seen_at: state.first_seen_at.unwrap_or(now),
            queue: &self.queue,
            operation: &self.operation,
        };
        let may_skip = !has_matched_before(message, state) && state.dropped.is_empty();
        let applied = rules.apply(incoming, state.message_id.as_deref(), may_skip, trace);
        match applied.map_err(|failure| with_lost_headers(failure, &state.dropped))? {
            Applied::Skip { rule: Some(rule) } if !state.dropped.is_empty() => Err(no_skip(&rule, &state.dropped)),
            Applied::Skip { rule } => Ok(Mapped::Skip { rule, missing: trace.missing() }),
            Applied::Task { rule, fields, message_id } => {
                let body = self.task(&fields, message_id.as_deref());
                let body = body.map_err(|failure| of_rule(failure, &rule).with_id(message_id.as_deref()))?;
                Ok(Mapped::Send { body, rule: Some(rule), message_id })
            }
        }
    }

    /// The insert.php body of a rule's fields. They are checked like those of a task message.
    fn task(&self, fields: &[(&'static str, FieldValue)], message_id: Option<&str>) -> Result<Bytes, Failure> {
        let message = serde_json::to_vec(&AsMessage(fields)).map_err(|error| unwritable(&error))?;
        if message.len() > task::MAX_BODY {
            let text = format!("the task has more than {} bytes; shorten its fields, see truncate", task::MAX_BODY);
            return Err(Failure::new(Stage::Map, Kind::InvalidTask, text));
        }
        let decoded = task::decode(&message, UnknownFields::Reject)?;
        let payload = self.mapping.check(decoded).map_err(|problems| {
            // The fields' values come from the event, and errors of rules never hold them.
            let lines = problems.iter().map(problem_text).collect();
            Failure::of_problems(Stage::Map, Kind::InvalidTask, lines)
        })?;
        self.json(payload, message.len(), message_id)
    }
}

/// The text of a problem of a task that a rule created. A rule without a required field is refused at start. So a field that
/// is missing here has a template that gave an empty text.
fn problem_text(problem: &task::FieldProblem) -> String {
    let text = problem.without_value();
    match problem.field.as_str() {
        "reminder_date" => text,
        _ => text.replacen(": is missing;", ": the template gave an empty text;", 1),
    }
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::new(Stage::Map, Kind::InvalidTask, error.to_string())
}

/// The message's id when no rule sets one.
fn id(message: &Message, state: &RetryState) -> Option<String> {
    state.message_id.clone().or_else(|| message.id().map(str::to_owned))
}

/// Whether an earlier delivery of the message may have matched a rule. Then it is never skipped as unmatched.
fn has_matched_before(message: &Message, state: &RetryState) -> bool {
    let is_unmatched =
        || message.header(retry_state::ERROR_KIND).and_then(string).as_deref() == Some(Kind::Unmatched.as_str());
    // Only a rule that matched leaves an id or an attempt. After two replays, the kind of the first dead letter is not
    // known any more.
    let has_traces = state.message_id.is_some() || state.first_attempt_at.is_some() || state.replays > 1;
    state.first_seen_at.is_some() && (has_traces || !is_unmatched())
}

/// The failure of a message that a rule skips, although its copy lost headers: another rule may have matched the message
/// with them.
fn no_skip(rule: &Arc<str>, dropped: &str) -> Failure {
    let text = format!("rule {rule} skips the message, but {}; another rule may need them", lost_headers(dropped));
    Failure::new(Stage::Map, Kind::Unmatched, text).by_rule(rule)
}

/// Adds the lost headers to the reason of a message that no rule matches.
fn with_lost_headers(failure: Failure, dropped: &str) -> Failure {
    if dropped.is_empty() || failure.kind != Kind::Unmatched {
        return failure;
    }
    let mut lines: Vec<String> = failure.problems.iter().map(ToString::to_string).collect();
    // The reason is cut, so this comes before the rules.
    lines.insert(lines.len().min(1), lost_headers(dropped));
    Failure::of_problems(failure.stage, failure.kind, lines)
}

fn lost_headers(dropped: &str) -> String {
    format!("its copy lost headers that were too large ({:?})", shorten(dropped, MAX_LOST))
}

/// A failure of a task that a rule created.
fn of_rule(failure: Failure, rule: &Arc<str>) -> Failure {
    let problems: Vec<String> = failure.problems.iter().map(|problem| format!("rule {rule}: {problem}")).collect();
    let named = match problems.is_empty() {
        true => Failure::new(Stage::Map, failure.kind, format!("rule {rule}: {}", failure.message)),
        false => Failure::of_problems(Stage::Map, failure.kind, problems),
    };
    Failure { stage: named.stage, message: named.message, problems: named.problems, ..failure }.by_rule(rule)
}

/// The fields as a task message has them.
struct AsMessage<'a>(&'a [(&'static str, FieldValue)]);

impl Serialize for AsMessage<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            match value {
                FieldValue::Text(text) => map.serialize_entry(name, text)?,
                FieldValue::Boolean(on) => map.serialize_entry(name, on)?,
            }
        }
        map.end()
    }
}

/// The fields of an insert.php body, by name.
pub(crate) fn fields_of(body: &[u8]) -> BTreeMap<String, serde_json::Value> {
    let mut body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    serde_json::from_value(body.get_mut("fields").map(serde_json::Value::take).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
