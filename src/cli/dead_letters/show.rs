//! `dead-letters show`: everything about one message.

use std::ops::ControlFlow;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::running_rules::warn_if_outdated;
use super::{CommandContext, failed, warn};
use crate::cli::{Error, json, print};
use crate::dead_letters::Source;
use crate::dead_letters::cause::field;
use crate::dead_letters::fetched::FetchedMessage;
use crate::dead_letters::list_entry::{Interner, ListEntry};
use crate::dead_letters::preview::{Preview, Previewer};
use crate::message::dead_letter::{DeadLetter, published_to};
use crate::message::failure::shorten;
use crate::message::retry_state::{PastAttempt, RULES, RetryState, string};
use crate::visible;

pub(super) const EXAMPLES: &str = "Examples:
  wolkvox-task-worker dead-letters show order-17
  wolkvox-task-worker dead-letters show order-17 --json";

/// The most messages with the same id that are shown.
const MAX_SHOWN_MESSAGES: usize = 10;
/// Bytes of a body that are shown without `--full`.
const SHORT_BODY_BYTES: usize = 4_096;

/// Arguments of `dead-letters show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The message id, the publisher's id, or the id that a replay gives
    id: String,
    /// Print JSON, with the whole body
    #[arg(long)]
    json: bool,
    /// Print the whole body instead of its first 4 KiB
    #[arg(long)]
    full: bool,
}

/// Everything about one message.
#[derive(Debug, Serialize)]
struct MessageDetails {
    #[serde(flatten)]
    dead_letter: DeadLetter,
    queue: String,
    cause: String,
    rule: Option<String>,
    /// The digest of the rules that were in force.
    rules: Option<String>,
    action: Option<String>,
    history: Vec<PastAttempt>,
    published_to: String,
    /// The publisher's headers that did not fit a copy, separated by commas.
    lost_headers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    replay: Preview,
}

/// Runs the command.
///
/// # Errors
/// What RabbitMQ answered, or that there is no such message.
pub(super) async fn run(context: &CommandContext, args: &Args) -> Result<ExitCode, Error> {
    let (mut shown, mut texts) = (Vec::new(), Interner::default());
    let previewer = Previewer::new(&context.dead_letters.config);
    let visit = |found: FetchedMessage| {
        let entry = ListEntry::new(&found, &mut texts);
        let published_as = found.dead_letter.published_as.as_deref();
        if [Some(&*entry.id), published_as].into_iter().flatten().any(|id| visible::is_shown_as(id, &args.id)) {
            shown.push(everything(context, found, &entry, &previewer));
        }
        if shown.len() < MAX_SHOWN_MESSAGES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let scanned = context.dead_letters.scan(&Source::DEAD, &context.stop, visit).await.map_err(failed)?;
    warn(&scanned);
    if shown.is_empty() {
        return Err(Error::failed(format!(
            "no dead letter has the id {} among the {} of {}; somebody else may be reading the queue now. \"find {0}\" looks \
             elsewhere, too.",
            visible::line(&args.id),
            scanned.seen,
            context.dead()
        )));
    }
    let now = previewer.as_ref().ok().and_then(Previewer::rules);
    if args.json {
        print(&json(&shown)?)?;
    } else {
        let texts: Vec<String> = shown.iter().map(|shown| text(shown, args.full, now.as_deref())).collect();
        print(&texts.join("\n\n"))?;
    }
    warn_if_outdated(context, now.as_deref()).await;
    Ok(ExitCode::SUCCESS)
}

fn everything(
    context: &CommandContext,
    found: FetchedMessage,
    entry: &ListEntry,
    previewer: &Result<Previewer, String>,
) -> MessageDetails {
    let queue = context.dead_letters.queues.of(found.source).to_owned();
    let replay = match previewer {
        Ok(previewer) => previewer.preview(&found.message, &queue, &found.message.body, context.now),
        Err(why) => Preview::unknown(why),
    };
    let (state, _) = RetryState::read(&found.message, None);
    let (exchange, key) = published_to(&found.message);
    let (body, body_base64) = match std::str::from_utf8(&found.message.body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(&found.message.body))),
    };
    MessageDetails {
        queue,
        cause: entry.cause.to_string(),
        rule: entry.rule.as_deref().map(ToOwned::to_owned),
        rules: found.message.header(RULES).and_then(string),
        action: entry.action.as_deref().map(ToOwned::to_owned),
        history: state.history,
        lost_headers: Some(state.dropped).filter(|names| !names.is_empty()),
        published_to: if exchange.is_empty() { key } else { format!("{exchange} with {key}") },
        body,
        body_base64,
        replay,
        dead_letter: found.dead_letter,
    }
}

fn text(shown: &MessageDetails, full: bool, rules_now: Option<&str>) -> String {
    let dead_letter = &shown.dead_letter;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("{name:<16}  {}", visible::line(&value.replace('\n', " "))));
        }
    };
    line("message id", dead_letter.message_id.clone());
    line("published as", dead_letter.published_as.clone());
    line("id in a replay", dead_letter.derived_id.clone());
    line("queue", Some(shown.queue.clone()));
    line("kind", Some(dead_letter.kind.clone()));
    line("stage", dead_letter.stage.clone());
    line("rule", shown.rule.clone());
    line("rules", shown.rules.as_deref().map(|digest| rules(digest, rules_now)));
    line("reason", Some(dead_letter.message.clone()));
    line("CRM's code", dead_letter.crm_code.map(|code| code.to_string()));
    line("CRM's words", dead_letter.crm_message.clone());
    line("HTTP status", dead_letter.http_status.map(|status| status.to_string()));
    line("failed", dead_letter.failed_at.clone());
    line("published to", Some(shown.published_to.clone()));
    line("lost headers", shown.lost_headers.clone());
    line("replayed before", Some(dead_letter.replay_count.to_string()));
    line("last action", shown.action.clone());
    let exists = if dead_letter.possibly_created { "maybe" } else { "no, as far as this message says" };
    line("task in the CRM", Some(exists.to_owned()));
    line("attempts", Some(dead_letter.attempts.to_string()));
    for attempt in &shown.history {
        let PastAttempt { at, outcome, message, duration_ms, .. } = attempt;
        let said = message.as_deref().unwrap_or_default();
        line("", Some(format!("{at}  {outcome:<12}  {duration_ms:>6} ms  {said}")));
    }
    let body = match (&shown.body, &shown.body_base64) {
        (Some(text), _) => text.clone(),
        (None, base64) => format!("not text; in Base64:\n{}", base64.as_deref().unwrap_or_default()),
    };
    let body = match full || body.len() <= SHORT_BODY_BYTES {
        true => body,
        false => format!("{}\n({} bytes in all; --full prints them)", shorten(&body, SHORT_BODY_BYTES), body.len()),
    };
    let (heading, sent) = shown.replay.words();
    let id = shown.replay.message_id.as_deref().map(|id| format!(", with the id {id}")).unwrap_or_default();
    let next = |problems| next_step(dead_letter, problems, rules_now.is_some());
    let next = shown.replay.problems().map(next).unwrap_or_default();
    let replay = format!("{heading}{id}:\n{sent}{next}");
    format!("{}\n\nbody\n{}\n\n{}", lines.join("\n"), visible::lines(&body), visible::lines(&replay))
}

/// What to do with a message that the worker refuses again for these problems.
fn next_step(dead_letter: &DeadLetter, problems: &str, has_rules: bool) -> String {
    let id = shell_word(dead_letter.id());
    let replay = format!("wolkvox-task-worker dead-letters replay {id}");
    let correct = match (has_rules, field(dead_letter)) {
        // A batch is refused before any rule is tried.
        _ if problems.contains("batch of CloudEvents") => {
            "publish each of its events as a message of its own".to_owned()
        }
        (true, _) => format!("correct the rule, or the event with: {replay} --edit"),
        (false, Some(field)) => format!("correct the field with: {replay} --set {field}=VALUE"),
        (false, None) => format!("correct the body with: {replay} --edit"),
    };
    format!("\nNext: {correct}\nOr remove it with: wolkvox-task-worker dead-letters discard {id} --reason TEXT")
}

/// A text as one word of a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'@');
    let is_simple = !text.is_empty() && !text.starts_with('-') && text.bytes().all(is_plain);
    if is_simple { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The rules that were in force, and whether this configuration has the same ones.
fn rules(digest: &str, now: Option<&str>) -> String {
    match now {
        Some(now) if now == digest => format!("{digest}, the same as now"),
        Some(now) => format!("{digest}; they have changed since, to {now}"),
        None => format!("{digest}; this configuration has no rules"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;

    #[test]
    fn refused_message_is_shown_with_the_command_that_corrects_it() {
        let mut dead_letter = DeadLetter::read(&Message::default());
        dead_letter.message_id = Some("order 17".to_owned());
        dead_letter.stage = Some("decode".to_owned());
        dead_letter.message = "wolkvox_owner: is missing; a text is required".to_owned();
        let next = |dead_letter: &DeadLetter, has_rules| next_step(dead_letter, &dead_letter.message, has_rules);
        assert!(next(&dead_letter, false).contains("replay 'order 17' --set wolkvox_owner=VALUE"));
        assert!(next(&dead_letter, true).contains("correct the rule, or the event with:"));
        dead_letter.message = "\"a b\": is not a known field".to_owned();
        assert!(next(&dead_letter, false).contains("replay 'order 17' --edit"));
        dead_letter.message =
            "the message is a batch of CloudEvents; publish each event as a message of its own".to_owned();
        for has_rules in [true, false] {
            let next = next(&dead_letter, has_rules);
            assert!(next.starts_with("\nNext: publish each of its events") && !next.contains("correct"), "{next}");
            assert!(next.ends_with("dead-letters discard 'order 17' --reason TEXT"), "{next}");
        }
    }
}
