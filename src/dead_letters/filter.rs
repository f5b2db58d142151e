//! Selects dead letters by kind, id, cause and so on, with the same conditions on the command line and in the console's
//! addresses.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use url::form_urlencoded;

use super::body;
use super::list_entry::ListEntry;
use crate::duration;
use crate::message::failure::Kind;
use crate::suggest::suggest;
use crate::visible;

/// Kinds that the worker does not write: RabbitMQ's reasons, and a message without a reason.
const OTHER_KINDS: [&str; 5] =
    ["broker-expired", "broker-delivery_limit", "broker-maxlen", "broker-rejected", "unexplained"];

/// Selects the messages that meet all of these conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of one of these kinds.
    pub kind: Vec<String>,
    /// With one of these ids.
    pub id: Vec<String>,
    /// With this normalised cause, as it is or as `list` prints it.
    pub cause: Option<String>,
    /// That matched this rule.
    pub rule: Option<String>,
    /// Whose reason begins with this field.
    pub field: Option<String>,
    /// Dead-lettered at least this long ago.
    pub older_than: Option<Duration>,
    /// Dead-lettered at most this long ago.
    pub newer_than: Option<Duration>,
    /// With this text in the id, the reason, the CRM's words or the body, upper or lower case. `body.customer.id:17` means
    /// that value in the body.
    pub text: Option<String>,
    /// Whose task may exist (true) or does not exist (false), as the message says.
    pub in_doubt: Option<bool>,
    /// Replayed before.
    pub failed_again: bool,
    /// Last replayed or discarded by this action.
    pub action: Option<String>,
}

impl Filter {
    /// Whether it has a condition.
    #[must_use]
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }

    /// Whether a message meets it at `now`. `body` is called only when the text is searched in it.
    pub fn takes<'a>(&self, entry: &ListEntry, now: Timestamp, body: impl FnOnce() -> Cow<'a, [u8]>) -> bool {
        let age = entry.failed_at.map(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        let same =
            |wanted: &Option<String>, held: Option<&str>| wanted.as_deref().is_none_or(|wanted| held == Some(wanted));
        (self.kind.is_empty() || self.kind.iter().any(|kind| **kind == *entry.kind))
            && (self.id.is_empty() || self.id.iter().any(|id| visible::is_shown_as(&entry.id, id)))
            && self.cause.as_ref().is_none_or(|cause| visible::is_shown_as(&entry.cause, cause))
            && same(&self.rule, entry.rule.as_deref())
            && same(&self.field, entry.field.as_deref())
            && same(&self.action, entry.action.as_deref())
            && self.older_than.is_none_or(|least| age.is_some_and(|age| age >= least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age <= most))
            && self.in_doubt.is_none_or(|wanted| entry.possibly_created == wanted)
            && (!self.failed_again || entry.replays > 0)
            && self.text.as_ref().is_none_or(|text| holds(text, entry, body))
    }

    /// The conditions that are texts, by their names in the query.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let texts = [
            ("cause", &self.cause),
            ("rule", &self.rule),
            ("field", &self.field),
            ("text", &self.text),
            ("action", &self.action),
        ];
        texts.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// The filter as a query string; empty without conditions.
    #[must_use]
    pub fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for kind in &self.kind {
            query.append_pair("kind", kind);
        }
        for id in &self.id {
            query.append_pair("id", id);
        }
        let ages = [("older", self.older_than), ("newer", self.newer_than)];
        for (name, value) in self.texts() {
            query.append_pair(name, value);
        }
        for (name, age) in ages {
            if let Some(age) = age {
                query.append_pair(name, &duration::format(age));
            }
        }
        if let Some(doubt) = self.in_doubt {
            query.append_pair("doubt", if doubt { "yes" } else { "no" });
        }
        if self.failed_again {
            query.append_pair("again", "yes");
        }
        query.finish()
    }

    /// Reads what [`Self::query`] writes. Unknown names and empty values are ignored.
    ///
    /// # Errors
    /// A value that cannot be understood.
    pub fn from_query(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            let text = || Some(value.to_owned());
            match &*name {
                // Another version may have other kinds.
                "kind" => filter.kind.push(value.to_owned()),
                "id" => filter.id.push(value.to_owned()),
                "cause" => filter.cause = text(),
                "rule" => filter.rule = text(),
                "field" => filter.field = text(),
                "text" => filter.text = text(),
                "action" => filter.action = text(),
                "older" => filter.older_than = Some(age(value)?),
                "newer" => filter.newer_than = Some(age(value)?),
                "doubt" | "again" if !["yes", "no"].contains(&value) => {
                    return Err(format!("{name} is yes or no, not {value:?}"));
                }
                "doubt" => filter.in_doubt = Some(value == "yes"),
                "again" => filter.failed_again = value == "yes",
                // These belong to the console's page, not to the filter.
                "view" | "page" => {}
                other => return Err(format!("there is no filter {other:?}")),
            }
        }
        Ok(filter)
    }

    /// The filter in words, for confirmations and the audit; "all" without conditions.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut add = |name: &str, value: &str| words.push(format!("{name} {value}"));
        for kind in &self.kind {
            add("kind", kind);
        }
        for id in self.id.iter().take(5) {
            add("id", id);
        }
        for (name, value) in self.texts() {
            add(name, value);
        }
        for (name, value) in [("older than", self.older_than), ("newer than", self.newer_than)] {
            if let Some(value) = value {
                add(name, &duration::format(value));
            }
        }
        match self.in_doubt {
            Some(true) => add("in doubt", "only"),
            Some(false) => add("in doubt", "none"),
            None => {}
        }
        if self.failed_again {
            add("failed again after replay", "only");
        }
        if words.is_empty() { "all".to_owned() } else { words.join(", ") }
    }
}

fn holds<'a>(text: &str, entry: &ListEntry, body: impl FnOnce() -> Cow<'a, [u8]>) -> bool {
    if let Some((path, value)) = text.strip_prefix("body.").and_then(|rest| rest.split_once(':')) {
        return body::value_at(&body(), path).is_some_and(|held| held == value);
    }
    let text = text.to_lowercase();
    let has = |place: &str| place.to_lowercase().contains(&text);
    has(&entry.id)
        || has(&entry.reason)
        || entry.crm_message.as_deref().is_some_and(has)
        || has(&String::from_utf8_lossy(&body()))
}

/// Every kind of dead letter.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    Kind::ALL.iter().map(|kind| kind.as_str()).chain(OTHER_KINDS)
}

/// Looks a kind up by name.
///
/// # Errors
/// A name that is not known, with the nearest one.
pub fn kind(text: &str) -> Result<String, String> {
    if kinds().any(|kind| kind == text) {
        return Ok(text.to_owned());
    }
    let all = kinds().collect::<Vec<_>>().join(", ");
    let meant = suggest(text, kinds()).map(|kind| format!("; did you mean {kind}?")).unwrap_or_default();
    Err(format!("{text:?} is not one of {all}{meant}"))
}

/// A duration of the command line or of an address.
///
/// # Errors
/// What is allowed.
pub fn age(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("{text:?} is not a duration; allowed is {}", duration::ALLOWED))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::broker::{HeaderValue, Headers, Message, Properties};
    use crate::dead_letters::Source;
    use crate::dead_letters::fetched::FetchedMessage;
    use crate::dead_letters::list_entry::Interner;
    use crate::message::retry_state::{number, text};

    fn entry(id: Option<&str>, kind: &str, reason: &str, failed_at: Option<&str>) -> (ListEntry, Vec<u8>) {
        let mut headers = BTreeMap::from([
            ("x-wtw-dead-letter", number(1)),
            ("x-wtw-error-stage", text("map")),
            ("x-wtw-error-kind", text(kind)),
            ("x-wtw-error-message", text(reason)),
        ]);
        headers.extend(failed_at.map(|at| ("x-wtw-failed-at", text(at))));
        let headers: BTreeMap<_, HeaderValue> = headers.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let mut properties = Properties::default().with_headers(Headers::from(headers));
        if let Some(id) = id {
            properties = properties.with_message_id(id.into());
        }
        let body = r#"{"name":"Ñandú","customer":{"id":17}}"#.as_bytes().to_vec();
        let message = Message { body: body.clone(), properties, ..Message::default() };
        (ListEntry::new(&FetchedMessage::new(Source::Dead, Box::new(message)), &mut Interner::default()), body)
    }

    #[test]
    fn filter_requires_every_condition() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let named = entry(Some("m-1"), "rejected", "owner: the OWNER is inactive", Some("2026-01-01T11:00:00.000Z"));
        let without_id = entry(None, "expired", "too old", None);
        let derived = without_id.0.id.to_string();
        let is =
            |filter: &Filter, (entry, body): &(ListEntry, Vec<u8>)| filter.takes(entry, now, || Cow::Borrowed(body));
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
            (Filter { text: Some("inactive".into()), ..none.clone() }, [true, false]),
            (Filter { text: Some("ñANDÚ".into()), ..none.clone() }, [true, true]),
            (Filter { text: Some("body.customer.id:17".into()), ..none.clone() }, [true, true]),
            (Filter { text: Some("body.customer.id:1".into()), ..none.clone() }, [false, false]),
            (Filter { field: Some("owner".into()), ..none.clone() }, [true, false]),
            (Filter { in_doubt: Some(true), ..none.clone() }, [false, false]),
            (Filter { failed_again: true, ..none.clone() }, [false, false]),
            (Filter { id: vec!["m-1".into()], ..none.clone() }, [true, false]),
            (Filter { id: vec![derived], ..none.clone() }, [false, true]),
            (Filter { id: vec!["m-1".into()], kind: vec!["expired".into()], ..none.clone() }, [false, false]),
        ] {
            assert_eq!([is(&filter, &named), is(&filter, &without_id)], takes, "{filter:?}");
            assert_eq!(Filter::from_query(&filter.query()).as_ref(), Ok(&filter), "{}", filter.query());
        }
    }

    #[test]
    fn filter_takes_an_id_with_hidden_characters_as_the_list_shows_it() {
        let (evil, _) = entry(Some("pri-\u{202e}evil-1"), "rejected", "no", None);
        for (id, takes) in [
            ("pri-\u{202e}evil-1", true),
            ("pri-[U+202E]evil-1", true),
            ("pri-[U+202D]evil-1", false),
            ("pri-evil-1", false),
        ] {
            let filter = Filter { id: vec![id.to_owned()], ..Filter::default() };
            assert_eq!(filter.takes(&evil, Timestamp::UNIX_EPOCH, || Cow::Borrowed(b"{}")), takes, "{id:?}");
        }
    }

    #[test]
    fn message_dead_lettered_by_rabbitmq_is_in_doubt_with_a_prefixed_kind() {
        let message = Message { body: b"{}".to_vec(), ..Message::default() };
        let found = FetchedMessage::new(Source::Broker, Box::new(message.clone()));
        assert!(found.dead_letter.possibly_created);
        assert!(!FetchedMessage::new(Source::Dead, Box::new(message)).dead_letter.possibly_created);
    }

    #[test]
    fn mistyped_kind_is_refused_with_the_nearest_name() {
        assert_eq!(kind("broker-delivery_limit").as_deref(), Ok("broker-delivery_limit"));
        assert!(kind("rejectd").unwrap_err().contains("did you mean rejected?"));
        assert_eq!(kinds().collect::<std::collections::HashSet<_>>().len(), kinds().count(), "no name twice");
    }
}
