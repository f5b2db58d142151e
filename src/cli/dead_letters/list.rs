//! `dead-letters list`: counts failed messages by cause, or lists each one.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::choice::FilterArgs;
use super::{CommandContext, cell, failed, read_exit, seconds, warn};
use crate::cli::{Error, json, print};
use crate::dead_letters::Source;
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::group::{Group, Groups};
use crate::dead_letters::list_entry::{Interner, ListEntry};
use crate::dead_letters::preview::{Previewer, TaskFacts};
use crate::message::dead_letter::{DeadLetter, failed_at};
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters list
  wolkvox-task-worker dead-letters list --each --kind rejected --newer-than 1h --json";

/// Arguments of `dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    filter: FilterArgs,
    /// List each message instead of groups, sorted by the time of failure
    #[arg(long)]
    each: bool,
    /// List the discarded messages instead
    #[arg(long)]
    discarded: bool,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// The most messages that --each lists: the first ones read, which are not always the oldest
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

/// A message of `--each`.
#[derive(Debug, Serialize)]
struct Listed {
    #[serde(skip)]
    at: Option<Timestamp>,
    #[serde(flatten)]
    dead_letter: DeadLetter,
    /// What to look for in the CRM; none when the worker refuses the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskFacts>,
    /// Why an operator discarded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    discard_reason: Option<String>,
}

impl Args {
    fn noun(&self) -> &'static str {
        if self.discarded { "discarded messages" } else { "dead letters" }
    }

    fn sources(&self) -> &'static [Source] {
        if self.discarded { &Source::DISCARDED } else { &Source::DEAD }
    }
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered.
pub(super) async fn run(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    if args.each { each(context, args).await } else { groups(context, args).await }
}

async fn groups(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    let (mut groups, mut texts) = (Groups::default(), Interner::default());
    let filter = args.filter.filter(&[]);
    let visit = |found: FetchedMessage| {
        let entry = ListEntry::new(&found, &mut texts);
        if filter.takes(&entry, context.now, || Cow::Borrowed(&found.message.body)) {
            groups.add(&entry);
        }
        ControlFlow::Continue(())
    };
    let scanned = context.dead_letters.scan(args.sources(), &context.stop, visit).await;
    let groups = groups.sorted();
    // With an error this is what was read before it, or from the other queue.
    if scanned.is_ok() || !groups.is_empty() {
        print(&if args.json { json(&groups)? } else { group_table(&groups, args.noun()) })?;
    }
    let scanned = scanned.map_err(failed)?;
    warn(&scanned);
    read_exit(&scanned, &filter, groups.iter().map(|group| group.count).sum())
}

async fn each(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    let (mut dead_letters, mut more, mut texts) = (Vec::new(), false, Interner::default());
    let previewer = Previewer::new(&context.dead_letters.config).ok();
    let listed = |found: FetchedMessage, entry: &ListEntry| {
        let from = context.dead_letters.queues.of(found.source);
        Listed {
            at: failed_at(&found.message),
            task: previewer.as_ref().and_then(|previewer| previewer.task(&found.message, from, &entry.id, context.now)),
            discard_reason: entry.discard_reason.as_deref().map(ToOwned::to_owned),
            dead_letter: found.dead_letter,
        }
    };
    let filter = args.filter.filter(&[]);
    let visit = |found: FetchedMessage| {
        let entry = ListEntry::new(&found, &mut texts);
        if !filter.takes(&entry, context.now, || Cow::Borrowed(&found.message.body)) {
            return ControlFlow::Continue(());
        }
        more = dead_letters.len() >= args.limit;
        if more {
            return ControlFlow::Break(());
        }
        dead_letters.push(listed(found, &entry));
        ControlFlow::Continue(())
    };
    let scanned = context.dead_letters.scan(args.sources(), &context.stop, visit).await;
    // RabbitMQ returns messages that were read before in no fixed order.
    dead_letters.sort_by_key(|listed| listed.at);
    if scanned.is_ok() || !dead_letters.is_empty() {
        print(&if args.json { json(&dead_letters)? } else { table(&dead_letters, args.noun()) })?;
    }
    if more {
        eprintln!("there are more messages than these; a filter or a higher --limit shows them");
    }
    let scanned = scanned.map_err(failed)?;
    warn(&scanned);
    read_exit(&scanned, &filter, dead_letters.len() as u64)
}

fn group_table(groups: &[Group], noun: &str) -> String {
    let row = |kind: &str, count: &str, doubtful: &str, oldest: &str, newest: &str, cause: &str| {
        format!("{kind:<22}  {count:>8}  {doubtful:>8}  {oldest:<20}  {newest:<20}  {cause}")
    };
    let mut rows = vec![row("kind", "messages", "in doubt", "oldest", "newest", "cause")];
    for group in groups {
        let (count, doubtful) = (group.count.to_string(), group.possibly_created.to_string());
        rows.push(row(
            &cell(&group.kind),
            &count,
            &doubtful,
            &seconds(group.oldest),
            &seconds(group.newest),
            // Not cut: `--cause` takes what is printed here.
            &visible::line(&group.cause),
        ));
        let ids: Vec<String> = group.ids.iter().map(|id| cell(id)).collect();
        let more = if group.count > ids.len() as u64 { ", …" } else { "" };
        rows.push(format!("  ids: {}{more}", ids.join(", ")));
        let reasons: Vec<String> = group.discard_reasons.iter().map(|reason| cell(reason)).collect();
        rows.extend((!reasons.is_empty()).then(|| format!("  discarded: {}", reasons.join("; "))));
    }
    rows.push(format!("{noun}: {}", groups.iter().map(|group| group.count).sum::<u64>()));
    rows.join("\n")
}

fn table(dead_letters: &[Listed], noun: &str) -> String {
    let row = |id: &str, kind: &str, attempts: &str, failed_at: &str, reason: &str| {
        format!("{id:<39}  {kind:<22}  {attempts:>8}  {failed_at:<20}  {reason}")
    };
    let mut rows = vec![row("message id", "kind", "attempts", "failed", "reason")];
    for Listed { at, dead_letter, task, discard_reason } in dead_letters {
        rows.push(row(
            &cell(dead_letter.id()),
            &cell(&dead_letter.kind),
            &dead_letter.attempts.to_string(),
            &seconds(*at),
            &cell(&dead_letter.message),
        ));
        rows.extend(task.as_ref().map(|task| format!("  task: {}", cell(&task.to_string()))));
        rows.extend(discard_reason.as_ref().map(|reason| format!("  discarded: {}", cell(reason))));
    }
    rows.push(format!("{noun}: {}", dead_letters.len()));
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;
    use crate::dead_letters::filter::Filter;

    #[test]
    fn filter_takes_the_cause_that_the_table_shows() {
        let found = FetchedMessage::new(Source::Dead, Box::default());
        let cause = format!("code 417: THE OWNER IS {}\u{9b} INACTIVE", "VERY ".repeat(30));
        let entry = ListEntry { cause: cause.as_str().into(), ..ListEntry::new(&found, &mut Interner::default()) };
        let mut groups = Groups::default();
        groups.add(&entry);
        let table = group_table(&groups.sorted(), "dead letters");
        let (_, shown) = table.split_once("code 417").unwrap();
        let shown = format!("code 417{}", shown.lines().next().unwrap());
        assert!(shown.ends_with("VERY [U+009B] INACTIVE"), "{shown}");
        for (given, takes) in [(shown.as_str(), true), (cause.as_str(), true), ("code 417", false)] {
            let filter = Filter { cause: Some(given.to_owned()), ..Filter::default() };
            assert_eq!(filter.takes(&entry, Timestamp::UNIX_EPOCH, || Cow::Borrowed(b"")), takes, "{given}");
        }
    }

    #[test]
    fn table_shows_the_task_and_why_a_message_was_discarded() {
        let task =
            TaskFacts { name: "Call Ana".to_owned(), id_record: "4711".to_owned(), reference: Some("abc".to_owned()) };
        let dead_letter = DeadLetter::read(&Message::default());
        let listed = Listed { at: None, dead_letter, task: Some(task), discard_reason: Some("not ours".into()) };
        let table = table(&[listed], "discarded messages");
        let end = "  task: Call Ana, record 4711, [ref:abc]\n  discarded: not ours\ndiscarded messages: 1";
        assert!(table.ends_with(end), "{table}");
    }
}
