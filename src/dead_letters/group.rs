//! Counts dead letters by cause, in bounded memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::list_entry::ListEntry;

/// The most groups. Further messages are counted by kind only.
const MAX_GROUPS: usize = 1_000;
/// The most ids that a group lists.
const MAX_EXAMPLES: usize = 3;
/// The cause of messages beyond [`MAX_GROUPS`].
const OTHERS: &str = "(various other causes)";

/// Messages of one kind with one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The kind of failure.
    pub kind: String,
    /// The normalised cause.
    pub cause: String,
    /// The rule that matched.
    pub rule: Option<String>,
    /// The field that the reasons name first.
    pub field: Option<String>,
    /// How many there are.
    pub count: u64,
    /// How many of them may have created a task.
    pub possibly_created: u64,
    /// How many of them failed again after a replay.
    pub failed_again: u64,
    /// When the first was dead-lettered, if that is known.
    #[serde(with = "crate::clock::optional")]
    pub oldest: Option<Timestamp>,
    /// When the last was dead-lettered.
    #[serde(with = "crate::clock::optional")]
    pub newest: Option<Timestamp>,
    /// The reason of one of them, with its values.
    pub example: String,
    /// The ids of some of them.
    pub ids: Vec<String>,
    /// Some of the reasons for which operators discarded them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub discard_reasons: Vec<String>,
}

/// Messages by cause.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<(Arc<str>, Arc<str>), Group>);

impl Groups {
    /// Counts a message.
    pub fn add(&mut self, entry: &ListEntry) {
        let mut key = (Arc::clone(&entry.kind), Arc::clone(&entry.cause));
        if self.0.len() >= MAX_GROUPS && !self.0.contains_key(&key) {
            key.1 = OTHERS.into();
        }
        let group = self.0.entry(key).or_insert_with_key(|(kind, cause)| Group {
            kind: kind.to_string(),
            cause: cause.to_string(),
            rule: entry.rule.as_deref().map(ToOwned::to_owned),
            field: entry.field.as_deref().map(ToOwned::to_owned),
            count: 0,
            possibly_created: 0,
            failed_again: 0,
            oldest: None,
            newest: None,
            example: entry.reason.to_string(),
            ids: Vec::new(),
            discard_reasons: Vec::new(),
        });
        group.count += 1;
        group.possibly_created += u64::from(entry.possibly_created);
        group.failed_again += u64::from(entry.replays > 0);
        if let Some(at) = entry.failed_at {
            group.oldest = Some(group.oldest.map_or(at, |oldest| oldest.min(at)));
            group.newest = Some(group.newest.map_or(at, |newest| newest.max(at)));
        }
        if group.ids.len() < MAX_EXAMPLES {
            group.ids.push(entry.id.to_string());
        }
        if let Some(reason) = entry.discard_reason.as_deref()
            && group.discard_reasons.len() < MAX_EXAMPLES
            && !group.discard_reasons.iter().any(|known| known == reason)
        {
            group.discard_reasons.push(reason.to_owned());
        }
    }

    /// The groups, the largest first.
    #[must_use]
    pub fn sorted(self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.0.into_values().collect();
        groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| (&a.kind, &a.cause).cmp(&(&b.kind, &b.cause))));
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::Source;
    use crate::dead_letters::fetched::FetchedMessage;
    use crate::dead_letters::list_entry::Interner;

    fn entry(kind: &str, cause: &str, at: Option<&str>, possibly_created: bool) -> ListEntry {
        let found = FetchedMessage::new(Source::Dead, Box::default());
        ListEntry {
            kind: kind.into(),
            cause: cause.into(),
            failed_at: at.map(|at| at.parse().unwrap()),
            possibly_created,
            ..ListEntry::new(&found, &mut Interner::default())
        }
    }

    #[test]
    fn counter_groups_by_kind_and_cause() {
        let mut groups = Groups::default();
        for (kind, cause, at, maybe) in [
            ("unknown", "timeout", Some("2026-01-03T00:00:00Z"), true),
            ("rejected", "b", None, false),
            ("unknown", "timeout", Some("2026-01-01T00:00:00Z"), false),
            ("rejected", "a", None, false),
            ("unknown", "timeout", None, true),
            ("rejected", "b", None, false),
        ] {
            groups.add(&entry(kind, cause, at, maybe));
        }
        let groups = groups.sorted();
        let counted: Vec<_> = groups.iter().map(|g| (g.kind.as_str(), g.cause.as_str(), g.count)).collect();
        assert_eq!(counted, [("unknown", "timeout", 3), ("rejected", "b", 2), ("rejected", "a", 1)]);
        let unknown = serde_json::to_value(&groups[0]).unwrap();
        assert_eq!((&unknown["possibly_created"], unknown["ids"].as_array().unwrap().len()), (&2.into(), 3));
        assert_eq!(unknown["oldest"], "2026-01-01T00:00:00.000Z");
        assert_eq!(unknown["newest"], "2026-01-03T00:00:00.000Z");
    }

    #[test]
    fn group_lists_each_reason_of_a_discard_once() {
        let mut groups = Groups::default();
        for reason in [Some("not ours"), Some("entered by hand"), Some("not ours"), None] {
            let entry = entry("rejected", "a", None, false);
            groups.add(&ListEntry { discard_reason: reason.map(Into::into), ..entry });
        }
        assert_eq!(groups.sorted()[0].discard_reasons, ["not ours", "entered by hand"]);
    }

    #[test]
    fn counter_bounds_the_number_of_groups() {
        let mut groups = Groups::default();
        for n in 0..MAX_GROUPS + 10 {
            groups.add(&entry("rejected", &n.to_string(), None, false));
        }
        let groups = groups.sorted();
        assert_eq!(groups.len(), MAX_GROUPS + 1);
        assert_eq!(groups.iter().map(|group| group.count).sum::<u64>(), MAX_GROUPS as u64 + 10);
        assert_eq!(groups.first().map(|group| group.count), Some(10), "{:?}", groups.first());
    }
}
