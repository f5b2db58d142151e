//! `dead-letters list`: counts failed messages by cause, or lists each one.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::process::ExitCode;

use super::choice::FilterArgs;
use super::{Tool, cell, failed, json, read_exit, seconds, warn};
use crate::cli::{Error, print};
use crate::dead_letters::Source;
use crate::dead_letters::entry::{Entry, Texts};
use crate::dead_letters::group::{Group, Groups};
use crate::message::dead_letter::{DeadLetter, failed_at};

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

impl Args {
    fn sources(&self) -> &'static [Source] {
        if self.discarded { &Source::DISCARDED } else { &Source::DEAD }
    }
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered.
pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode, Error> {
    if args.each { each(tool, args).await } else { groups(tool, args).await }
}

async fn groups(tool: &Tool, args: &Args) -> Result<ExitCode, Error> {
    let (mut groups, mut texts) = (Groups::default(), Texts::default());
    let filter = args.filter.filter(&[]);
    let visit = |found: crate::dead_letters::fetched::FetchedMessage| {
        let entry = Entry::new(&found, &mut texts);
        if filter.takes(&entry, tool.now, || Cow::Borrowed(&found.message.body)) {
            groups.add(&entry);
        }
        ControlFlow::Continue(())
    };
    let scanned = tool.dead_letters.scan(args.sources(), &tool.stop, visit).await.map_err(failed)?;
    let groups = groups.sorted();
    print(&if args.json { json(&groups)? } else { group_table(&groups) })?;
    warn(&scanned);
    read_exit(&scanned, &filter, groups.iter().map(|group| group.count).sum())
}

async fn each(tool: &Tool, args: &Args) -> Result<ExitCode, Error> {
    let (mut dead_letters, mut more, mut texts) = (Vec::new(), false, Texts::default());
    let filter = args.filter.filter(&[]);
    let visit = |found: crate::dead_letters::fetched::FetchedMessage| {
        let entry = Entry::new(&found, &mut texts);
        if !filter.takes(&entry, tool.now, || Cow::Borrowed(&found.message.body)) {
            return ControlFlow::Continue(());
        }
        more = dead_letters.len() >= args.limit;
        if more {
            return ControlFlow::Break(());
        }
        dead_letters.push((failed_at(&found.message), found.dead_letter));
        ControlFlow::Continue(())
    };
    let scanned = tool.dead_letters.scan(args.sources(), &tool.stop, visit).await.map_err(failed)?;
    // RabbitMQ returns messages that were read before in no fixed order.
    dead_letters.sort_by_key(|(at, _)| *at);
    let only: Vec<&DeadLetter> = dead_letters.iter().map(|(_, dead_letter)| dead_letter).collect();
    print(&if args.json { json(&only)? } else { table(&dead_letters) })?;
    if more {
        eprintln!("there are more than these, which were met first; --limit says how many are listed");
    }
    warn(&scanned);
    read_exit(&scanned, &filter, dead_letters.len() as u64)
}

fn group_table(groups: &[Group]) -> String {
    let row = |kind: &str, count: &str, maybe: &str, oldest: &str, newest: &str, cause: &str| {
        format!("{kind:<22}  {count:>8}  {maybe:>12}  {oldest:<20}  {newest:<20}  {cause}")
    };
    let mut rows = vec![row("kind", "messages", "maybe in CRM", "oldest", "newest", "cause")];
    for group in groups {
        let (count, maybe) = (group.count.to_string(), group.possibly_created.to_string());
        rows.push(row(
            &cell(&group.kind),
            &count,
            &maybe,
            &seconds(group.oldest),
            &seconds(group.newest),
            &cell(&group.cause),
        ));
        let ids: Vec<String> = group.ids.iter().map(|id| cell(id)).collect();
        let more = if group.count > ids.len() as u64 { ", …" } else { "" };
        rows.push(format!("  ids: {}{more}", ids.join(", ")));
    }
    rows.push(format!("dead letters: {}", groups.iter().map(|group| group.count).sum::<u64>()));
    rows.join("\n")
}

fn table(dead_letters: &[(Option<jiff::Timestamp>, DeadLetter)]) -> String {
    let row = |id: &str, kind: &str, attempts: &str, failed_at: &str, reason: &str| {
        format!("{id:<39}  {kind:<22}  {attempts:>8}  {failed_at:<20}  {reason}")
    };
    let mut rows = vec![row("message id", "kind", "attempts", "failed", "reason")];
    rows.extend(dead_letters.iter().map(|(at, dead_letter)| {
        row(
            &cell(dead_letter.id()),
            &cell(&dead_letter.kind),
            &dead_letter.attempts.to_string(),
            &seconds(*at),
            &cell(&dead_letter.message),
        )
    }));
    rows.push(format!("dead letters: {}", dead_letters.len()));
    rows.join("\n")
}
