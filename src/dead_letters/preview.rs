//! Shows what a replay of a dead letter sends, with the mapper that `run` uses. Pure, except that it reads a rules
//! file.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::body::indented;
use super::copy::as_received;
use crate::broker::Message;
use crate::config::{self, Config, ReferencePlace};
use crate::message::mapper::{Mapped, Mapper, fields_of};
use crate::message::reference::Reference;
use crate::message::retry_state::RetryState;

/// Maps dead letters as the worker maps their replays.
pub struct Previewer {
    mapper: Mapper,
    work: String,
    operation: String,
    reference: ReferencePlace,
}

/// What people look for in the CRM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TaskFacts {
    /// The task's name.
    pub name: String,
    /// The record that it belongs to.
    pub id_record: String,
    /// The reference in the task; none where `task.reference` is not set.
    pub reference: Option<String>,
}

impl std::fmt::Display for TaskFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, record {}", self.name, self.id_record)?;
        self.reference.iter().try_for_each(|reference| write!(f, ", [ref:{reference}]"))
    }
}

/// The result of mapping a replay, and the rule that mapped it.
#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    /// The rule that matches; none without rules, or when no rule matches.
    pub rule: Option<String>,
    /// The id of the replay.
    pub message_id: Option<String>,
    /// The rules that do not match, each with its reason.
    pub passed: Vec<(String, String)>,
    /// What the worker does.
    #[serde(flatten)]
    pub result: Replayed,
}

/// What the worker does with a replay.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Replayed {
    /// It sends this `insert.php` body.
    Payload(Box<RawValue>),
    /// A rule or `events.unmatched` skips the message: the worker acks it and sends nothing.
    Skipped,
    /// It dead-letters the message again, for these problems, one a line.
    Problems(String),
    /// It cannot be predicted, for this reason.
    Unknown(String),
}

impl Previewer {
    /// The mapper of a configuration. A rules file is read now.
    ///
    /// # Errors
    /// What is wrong with the rules, or that `crm.operation` is not set.
    pub fn new(config: &Config) -> Result<Self, String> {
        let work = config.broker.queue.clone();
        let events = match &config.events.rules_file {
            None => config.events.clone(),
            Some(file) => {
                let text = file.read().map_err(|why| format!("{}: {why}", file.path().display()))?;
                config::read_rules(&config.events, &text).map_err(|problems| problems.to_string())?
            }
        };
        let mapper = Mapper::without_examples(&Config { events, ..config.clone() });
        let (operation, reference) = (config.crm.operation.clone().unwrap_or_default(), config.task.reference);
        mapper.map(|mapper| Self { mapper, work, operation, reference }).map_err(|problems| problems.to_string())
    }

    /// The task that a replay of a message of the queue `from` creates; none when the worker refuses or skips it. `id` is the
    /// message's id.
    #[must_use]
    pub fn task(&self, message: &Message, from: &str, id: &str, now: Timestamp) -> Option<TaskFacts> {
        let preview = self.preview(message, from, &message.body, now);
        let Replayed::Payload(payload) = &preview.result else {
            return None;
        };
        let fields = fields_of(payload.get().as_bytes());
        let text = |name: &str| fields.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let id = preview.message_id.as_deref().unwrap_or(id);
        let reference =
            (self.reference != ReferencePlace::None).then(|| Reference::new(&self.work, &self.operation, id));
        let without = |name: String| match &reference {
            // It has a place of its own.
            Some(reference) => name.trim_end_matches(&format!("[ref:{reference}]")).trim_end().to_owned(),
            None => name,
        };
        let (name, id_record) = (without(text("name")), text("id_record"));
        Some(TaskFacts { name, id_record, reference: reference.map(|reference| reference.to_string()) })
    }

    /// The digest of the rules, as in `x-wtw-rules`; none without rules.
    #[must_use]
    pub fn rules(&self) -> Option<Arc<str>> {
        self.mapper.digest()
    }

    /// Maps a replay with `body` of a message of the queue `from`.
    #[must_use]
    pub fn preview(&self, message: &Message, from: &str, body: &[u8], now: Timestamp) -> Preview {
        let message = as_received(message, from, &self.work, body);
        let (state, _) = RetryState::read(&message, Some(&self.work));
        let explained = self.mapper.explain(&message, &state, now);
        let (message_id, result) = match explained.result {
            Ok(Mapped::Send { body, message_id, .. }) => (message_id, payload(&body)),
            Ok(Mapped::Skip { .. }) => (None, Replayed::Skipped),
            Err(failure) => (None, Replayed::Problems(failure.to_string())),
        };
        Preview {
            rule: explained.chosen.map(|rule| rule.to_string()),
            message_id,
            passed: explained.passed.into_iter().map(|(rule, why)| (rule.to_string(), why)).collect(),
            result,
        }
    }
}

fn payload(body: &[u8]) -> Replayed {
    match serde_json::from_slice(body) {
        Ok(value) => Replayed::Payload(value),
        Err(error) => Replayed::Unknown(error.to_string()),
    }
}

impl Preview {
    /// A result that only says why there is no preview.
    #[must_use]
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { rule: None, message_id: None, passed: Vec::new(), result: Replayed::Unknown(why.into()) }
    }

    /// Why the worker dead-letters it again, if it does.
    #[must_use]
    pub fn problems(&self) -> Option<&str> {
        if let Replayed::Problems(problems) = &self.result { Some(problems) } else { None }
    }

    /// A heading and a text for people.
    #[must_use]
    pub fn words(&self) -> (String, String) {
        let by = self.rule.as_ref().map(|rule| format!(" by rule {rule}")).unwrap_or_default();
        let passed = self.passed.iter().map(|(rule, why)| format!("rule {rule} does not match: {why}"));
        match &self.result {
            Replayed::Payload(payload) => {
                let sent = indented(payload.get()).unwrap_or_else(|| payload.get().to_owned());
                (format!("A replay sends this{by}"), sent)
            }
            Replayed::Skipped => {
                let why = passed.collect::<Vec<_>>().join("\n");
                (format!("A replay is skipped{by}: the worker acks it and sends nothing"), why)
            }
            Replayed::Problems(problems) => ("A replay fails again".to_owned(), problems.clone()),
            Replayed::Unknown(why) => ("What a replay sends is not known".to_owned(), why.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::broker::{Headers, Properties};
    use crate::config::Sources;
    use crate::message::retry_state::text;

    const RULES: &str = r#"
[[rules]]
name = "closed"
routing_key = "ticket.closed"
when = "headers.region == 'co'"
message_id = "ticket-{{ body.number }}"
[rules.task]
name = "Call {{ body.customer.name }}"
name_module = "cases"
id_record = "{{ body.customer.crm_id }}"
completion_date = "2026-10-01 10:00:00"
wolkvox_owner = "ADMIN_@demo"
"#;

    fn config(rules: &str) -> Config {
        let path = std::env::temp_dir().join(format!("preview-{}.toml", uuid::Uuid::now_v7()));
        std::fs::write(&path, rules).unwrap();
        let environment = [("WTW_CRM_OPERATION", "demo"), ("WTW_EVENTS_RULES_FILE", path.to_str().unwrap())];
        let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
        let sources = Sources { environment, ..Sources::default() };
        Config::load(&sources, &[]).unwrap().config
    }

    fn event(body: &str) -> Message {
        let ours = [
            ("x-wtw-original-exchange", "events"),
            ("x-wtw-original-routing-key", "ticket.closed"),
            ("region", "co"),
            ("x-wtw-message-id", "ticket-7"),
        ];
        let headers = ours.into_iter().map(|(name, value)| (name.into(), text(value))).collect::<BTreeMap<_, _>>();
        let properties = Properties::default().with_headers(Headers::from(headers));
        Message { body: body.as_bytes().to_vec(), properties, ..Message::default() }
    }

    #[test]
    fn preview_maps_an_event_with_the_current_rules() {
        let config = config(RULES);
        let dead_letter = event(r#"{"number":7,"customer":{"name":"Ana","crm_id":"64b1f0"}}"#);
        let preview = |config: &Config, dead_letter: &Message| {
            Previewer::new(config).unwrap().preview(dead_letter, "q.dead", &dead_letter.body, Timestamp::UNIX_EPOCH)
        };
        let sent = preview(&config, &dead_letter);
        assert_eq!((sent.rule.as_deref(), sent.message_id.as_deref()), (Some("closed"), Some("ticket-7")));
        let (heading, words) = sent.words();
        assert!(heading.ends_with("by rule closed") && words.contains("\"name\": \"Call Ana\""), "{heading}\n{words}");
        let bad = event(r#"{"number":7,"customer":{"name":"Ana","crmid":"64b1f0"}}"#);
        let refused = preview(&config, &bad);
        let problems = refused.problems().unwrap();
        for part in ["rule closed, field id_record", "crm_id", "did you mean"] {
            assert!(problems.contains(part), "{problems}");
        }
        std::fs::write(config.events.rules_file.as_ref().unwrap().path(), RULES.replace("crm_id", "crmid")).unwrap();
        assert!(preview(&config, &bad).words().1.contains("\"id_record\": \"64b1f0\""), "the rule was corrected");
    }

    #[test]
    fn task_facts_name_the_task_its_record_and_its_reference() {
        let mut config = config(RULES);
        let dead_letter = event(r#"{"number":7,"customer":{"name":"Ana","crm_id":"64b1f0"}}"#);
        let facts = |config: &Config, message: &Message| {
            Previewer::new(config).unwrap().task(message, "q.dead", "ticket-7", Timestamp::UNIX_EPOCH)
        };
        assert_eq!(facts(&config, &dead_letter).unwrap().to_string(), "Call Ana, record 64b1f0");
        config.task.reference = ReferencePlace::Name;
        let reference = Reference::new(&config.broker.queue, "demo", "ticket-7");
        let with_reference = facts(&config, &dead_letter).unwrap().to_string();
        assert_eq!(with_reference, format!("Call Ana, record 64b1f0, [ref:{reference}]"));
        assert_eq!(facts(&config, &event("{}")), None, "the worker refuses it");
    }

    #[test]
    fn preview_of_a_message_that_lost_headers_is_not_skipped() {
        let config = config(&format!("{RULES}\n[[rules]]\nname = \"later\"\naction = \"skip\"\n"));
        for (header, is_skipped) in [("other", true), ("x-wtw-dropped-headers", false)] {
            let headers = BTreeMap::from([(header.into(), text("region"))]);
            let properties = Properties::default().with_headers(Headers::from(headers));
            let dead_letter = Message { properties, ..Message::default() };
            let preview =
                Previewer::new(&config).unwrap().preview(&dead_letter, "q.dead", b"{}", Timestamp::UNIX_EPOCH);
            assert_eq!(matches!(preview.result, Replayed::Skipped), is_skipped, "{preview:?}");
            let is_named = preview.problems().is_some_and(|problems| problems.contains("\"region\""));
            assert_eq!(is_named, !is_skipped, "{preview:?}");
        }
    }

    #[test]
    fn preview_names_rules_that_do_not_match_with_reasons() {
        let config = config(&RULES.replace("'co'", "'mx'"));
        let refused = Previewer::new(&config).unwrap().preview(&event("{}"), "q.dead", b"{}", Timestamp::UNIX_EPOCH);
        assert!(refused.problems().unwrap().contains("closed"), "{refused:?}");
    }
}
