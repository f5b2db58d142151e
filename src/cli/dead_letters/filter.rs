//! Which dead letters are meant.

use std::time::Duration;

use jiff::Timestamp;

use crate::broker::Message;
use crate::duration;
use crate::message::dead_letter::{DeadLetter, failed_at};
use crate::message::failure::Kind;
use crate::suggest::suggest;

/// What the broker gives as the reason where it gave a message up itself, and what is said of a letter without reasons.
const BROKERS: [&str; 5] = ["expired", "delivery_limit", "maxlen", "rejected", "unexplained"];

/// Letters that meet every one of these are meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only of this kind, such as rejected; may be given again for more kinds
    #[arg(long, value_name = "KIND", value_parser = kind)]
    pub kind: Vec<String>,
    /// Only those given up at least so long ago, such as 2h; none of which the time is unknown
    #[arg(long, value_name = "DURATION", value_parser = age)]
    pub older_than: Option<Duration>,
    /// Only those given up within so long, such as 30m; none of which the time is unknown
    #[arg(long, value_name = "DURATION", value_parser = age)]
    pub newer_than: Option<Duration>,
    /// Only those with this text in their reason, the CRM's words or the body, in capitals or not
    #[arg(long, value_name = "TEXT")]
    pub text: Option<String>,
    /// Only the one with this message id, or the id that a replay would give it; may be given again
    #[arg(long, value_name = "ID")]
    pub id: Vec<String>,
}

impl Filter {
    /// Whether it says anything.
    #[must_use]
    pub fn is_given(&self) -> bool {
        let Self { kind, older_than, newer_than, text, id } = self;
        !kind.is_empty() || older_than.is_some() || newer_than.is_some() || text.is_some() || !id.is_empty()
    }

    /// Whether it means this letter, at `now`.
    #[must_use]
    pub fn takes(&self, message: &Message, letter: &DeadLetter, now: Timestamp) -> bool {
        let age = failed_at(message).map(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        (self.kind.is_empty() || self.kind.contains(&letter.kind))
            && (self.id.is_empty() || self.id.iter().any(|id| id == letter.id()))
            && self.older_than.is_none_or(|least| age.is_some_and(|age| age >= least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age <= most))
            && self.text.as_ref().is_none_or(|text| holds(text, message, letter))
    }
}

fn holds(text: &str, message: &Message, letter: &DeadLetter) -> bool {
    let text = text.to_lowercase();
    let body = String::from_utf8_lossy(&message.body);
    [Some(letter.message.as_str()), letter.crm_message.as_deref(), Some(&*body)]
        .into_iter()
        .flatten()
        .any(|place| place.to_lowercase().contains(&text))
}

fn kind(text: &str) -> Result<String, String> {
    let known = || Kind::ALL.iter().map(|kind| kind.as_str()).chain(BROKERS);
    if known().any(|kind| kind == text) {
        return Ok(text.to_owned());
    }
    let all = known().collect::<Vec<_>>().join(", ");
    let meant = suggest(text, known()).map(|kind| format!("; did you mean {kind}?")).unwrap_or_default();
    Err(format!("is not one of {all}{meant}"))
}

/// A duration of the command line.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("allowed is {}", duration::ALLOWED))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::broker::{HeaderValue, Headers, Properties};
    use crate::message::retry_state::{number, text};

    fn letter(id: Option<&str>, kind: &str, reason: &str, failed_at: Option<&str>) -> Message {
        let mut headers = BTreeMap::from([
            ("x-wtw-dead-letter", number(1)),
            ("x-wtw-error-kind", text(kind)),
            ("x-wtw-error-message", text(reason)),
        ]);
        headers.extend(failed_at.map(|at| ("x-wtw-failed-at", text(at))));
        let headers: BTreeMap<_, HeaderValue> = headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let mut properties = Properties::default().with_headers(Headers::from(headers));
        if let Some(id) = id {
            properties = properties.with_message_id(id.into());
        }
        Message { body: r#"{"name":"Ñandú"}"#.into(), properties, ..Message::default() }
    }

    #[test]
    fn every_condition_has_to_hold() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let message = letter(Some("m-1"), "rejected", "the OWNER is inactive", Some("2026-01-01T11:00:00.000Z"));
        let nameless = letter(None, "expired", "too old", None);
        let derived = DeadLetter::read(&nameless).id().to_owned();
        let is = |filter: &Filter, message: &Message| filter.takes(message, &DeadLetter::read(message), now);
        let hours = |hours: u64| Some(Duration::from_secs(hours * 3_600));
        let none = Filter::default();
        for (filter, takes) in [
            (none.clone(), [true, true]),
            (Filter { kind: vec!["rejected".into()], ..none.clone() }, [true, false]),
            (Filter { kind: vec!["rejected".into(), "expired".into()], ..none.clone() }, [true, true]),
            (Filter { older_than: hours(1), ..none.clone() }, [true, false]),
            (Filter { older_than: hours(2), ..none.clone() }, [false, false]),
            (Filter { newer_than: hours(1), ..none.clone() }, [true, false]),
            (Filter { newer_than: Some(Duration::from_secs(60)), ..none.clone() }, [false, false]),
            (Filter { text: Some("owner".into()), ..none.clone() }, [true, false]),
            (Filter { text: Some("ñANDÚ".into()), ..none.clone() }, [true, true]),
            (Filter { id: vec!["m-1".into()], ..none.clone() }, [true, false]),
            (Filter { id: vec![derived], ..none.clone() }, [false, true]),
            (Filter { id: vec!["m-1".into()], kind: vec!["expired".into()], ..none.clone() }, [false, false]),
        ] {
            assert_eq!([is(&filter, &message), is(&filter, &nameless)], takes, "{filter:?}");
        }
    }

    #[test]
    fn a_mistyped_kind_is_refused_with_the_nearest() {
        assert_eq!(kind("delivery_limit").as_deref(), Ok("delivery_limit"));
        assert!(kind("rejectd").unwrap_err().contains("did you mean rejected?"));
    }
}
