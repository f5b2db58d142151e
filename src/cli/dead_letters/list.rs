//! `dead-letters list`: what is there, grouped by kind and reason, or letter by letter.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;

use serde::Serialize;

use super::filter::Filter;
use super::{Desk, one_line};
use crate::cli::{Error, print};
use crate::message::dead_letter::DeadLetter;
use crate::message::failure::shorten;

/// Groups told apart at most; the letters of any more are counted together, by kind.
const MOST_GROUPS: usize = 1_000;
/// Longest reason by which groups are told apart, in bytes.
const REASON: usize = 300;
/// Ids that a group names.
const EXAMPLES: usize = 3;

/// Arguments of `dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// List each letter instead of groups, sorted by when it was given up
    #[arg(long)]
    each: bool,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// The most letters that --each lists: those that are met first, which need not be the oldest
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

/// Letters of one kind with one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The kind of failure.
    pub kind: String,
    /// The reason, shortened.
    pub message: String,
    /// How many there are.
    pub count: u64,
    /// How many of them may have made a task.
    pub possibly_created: u64,
    /// When the first was given up, as far as it is known.
    pub oldest: Option<String>,
    /// When the last was given up.
    pub newest: Option<String>,
    /// The ids of some of them.
    pub ids: Vec<String>,
}

/// Letters, counted in bounded memory.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<(String, String), Group>);

impl Groups {
    /// Counts a letter.
    pub fn add(&mut self, letter: &DeadLetter) {
        let mut key = (letter.kind.clone(), shorten(&letter.message, REASON));
        if self.0.len() >= MOST_GROUPS && !self.0.contains_key(&key) {
            key.1 = "(various other reasons)".to_owned();
        }
        let group = self.0.entry(key).or_insert_with_key(|(kind, message)| Group {
            kind: kind.clone(),
            message: message.clone(),
            ..Group::default()
        });
        group.count += 1;
        group.possibly_created += u64::from(letter.possibly_created);
        if let Some(at) = &letter.failed_at {
            if group.oldest.as_ref().is_none_or(|oldest| at < oldest) {
                group.oldest = Some(at.clone());
            }
            if group.newest.as_ref().is_none_or(|newest| at > newest) {
                group.newest = Some(at.clone());
            }
        }
        if group.ids.len() < EXAMPLES {
            group.ids.push(letter.id().to_owned());
        }
    }

    /// The groups by kind, the largest of a kind first.
    #[must_use]
    pub fn sorted(self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.0.into_values().collect();
        groups.sort_by(|a, b| (&a.kind, b.count, &a.message).cmp(&(&b.kind, a.count, &b.message)));
        groups
    }
}

/// Runs the command.
///
/// # Errors
/// What the broker said.
pub(super) async fn run(desk: &Desk, args: &Args) -> Result<ExitCode, Error> {
    if args.each { each(desk, args).await } else { groups(desk, args).await }
}

async fn groups(desk: &Desk, args: &Args) -> Result<ExitCode, Error> {
    let mut groups = Groups::default();
    let looked = desk
        .look(async |message, letter| {
            if args.filter.takes(message, letter, desk.now) {
                groups.add(letter);
            }
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    let groups = groups.sorted();
    print(&if args.json { json(&groups)? } else { group_table(&groups) })?;
    looked.warn();
    Ok(ExitCode::SUCCESS)
}

async fn each(desk: &Desk, args: &Args) -> Result<ExitCode, Error> {
    let mut letters = Vec::new();
    let mut more = false;
    let looked = desk
        .look(async |message, letter| {
            if !args.filter.takes(message, letter, desk.now) {
                return Ok(ControlFlow::Continue(()));
            }
            more = letters.len() >= args.limit;
            if more {
                return Ok(ControlFlow::Break(()));
            }
            letters.push(letter.clone());
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    // Letters that were looked at before come back in no certain order.
    letters.sort_by(|a, b| a.failed_at.cmp(&b.failed_at));
    print(&if args.json { json(&letters)? } else { table(&letters) })?;
    if more {
        eprintln!("there are more than these, which were met first; --limit says how many are listed");
    }
    looked.warn();
    Ok(ExitCode::SUCCESS)
}

fn json(what: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string_pretty(what).map_err(Error::failed)
}

fn group_table(groups: &[Group]) -> String {
    let row = |kind: &str, count: &str, maybe: &str, oldest: &str, newest: &str, reason: &str| {
        format!("{kind:<15}  {count:>7}  {maybe:>14}  {oldest:<20}  {newest:<20}  {reason}")
    };
    let mut rows = vec![row("kind", "letters", "maybe in CRM", "oldest", "newest", "reason")];
    rows.extend(groups.iter().map(|group| {
        let (oldest, newest) = (seconds(group.oldest.as_deref()), seconds(group.newest.as_deref()));
        let maybe = group.possibly_created.to_string();
        row(&one_line(&group.kind), &group.count.to_string(), &maybe, &oldest, &newest, &one_line(&group.message))
    }));
    rows.push(format!("dead letters: {}", groups.iter().map(|group| group.count).sum::<u64>()));
    rows.join("\n")
}

/// A moment without its fraction.
fn seconds(at: Option<&str>) -> String {
    let Some(at) = at else { return "-".to_owned() };
    let whole = at.split_once('.').map_or(at, |(whole, _)| whole);
    one_line(&if whole == at { at.to_owned() } else { format!("{whole}Z") })
}

/// Dead letters as a table for people.
fn table(letters: &[DeadLetter]) -> String {
    let row = |id: &str, kind: &str, attempts: &str, failed_at: &str, reason: &str| {
        format!("{id:<39}  {kind:<15}  {attempts:>8}  {failed_at:<20}  {reason}")
    };
    let mut rows = vec![row("message id", "kind", "attempts", "given up", "reason")];
    rows.extend(letters.iter().map(|letter| {
        let attempts = letter.attempts.to_string();
        let failed_at = seconds(letter.failed_at.as_deref());
        row(&one_line(letter.id()), &one_line(&letter.kind), &attempts, &failed_at, &one_line(&letter.message))
    }));
    rows.push(format!("dead letters: {}", letters.len()));
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;

    fn letter(kind: &str, message: &str, at: Option<&str>, possibly_created: bool) -> DeadLetter {
        DeadLetter {
            kind: kind.to_owned(),
            message: message.to_owned(),
            failed_at: at.map(ToOwned::to_owned),
            possibly_created,
            message_id: Some(format!("{kind}-{message}")),
            ..DeadLetter::read(&Message::default())
        }
    }

    #[test]
    fn letters_are_grouped_by_kind_and_reason() {
        let mut groups = Groups::default();
        for (kind, message, at, maybe) in [
            ("unknown", "timeout", Some("2026-01-03T00:00:00.000Z"), true),
            ("rejected", "b", None, false),
            ("unknown", "timeout", Some("2026-01-01T00:00:00.000Z"), false),
            ("rejected", "a", None, false),
            ("unknown", "timeout", None, true),
            ("rejected", "b", None, false),
        ] {
            groups.add(&letter(kind, message, at, maybe));
        }
        let groups = groups.sorted();
        let told: Vec<_> = groups.iter().map(|g| (g.kind.as_str(), g.message.as_str(), g.count)).collect();
        assert_eq!(told, [("rejected", "b", 2), ("rejected", "a", 1), ("unknown", "timeout", 3)]);
        let unknown = groups.last().unwrap();
        assert_eq!((unknown.possibly_created, unknown.ids.len()), (2, 3));
        assert_eq!(unknown.oldest.as_deref(), Some("2026-01-01T00:00:00.000Z"));
        assert_eq!(unknown.newest.as_deref(), Some("2026-01-03T00:00:00.000Z"));
        assert!(group_table(&groups).contains("2026-01-03T00:00:00Z"), "{}", group_table(&groups));
    }

    #[test]
    fn the_number_of_groups_is_bounded() {
        let mut groups = Groups::default();
        for n in 0..MOST_GROUPS + 10 {
            groups.add(&letter("rejected", &n.to_string(), None, false));
        }
        let groups = groups.sorted();
        assert_eq!(groups.len(), MOST_GROUPS + 1);
        assert_eq!(groups.iter().map(|group| group.count).sum::<u64>(), MOST_GROUPS as u64 + 10);
        assert_eq!(groups.first().map(|group| group.count), Some(10), "{:?}", groups.first());
    }
}
