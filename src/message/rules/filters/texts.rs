//! The filters on texts. Numbers and dates count as the texts that they are written as.

use std::borrow::Cow;

use crate::message::rules::parameters::Arguments;
use crate::message::rules::value::Value;
use crate::message::rules::work::{FailureReason, Work, fits};

/// The longest argument of `trim`, in bytes. `trim` compares every character at both ends with it.
const MAX_TRIMMED: usize = 64;
/// The longest text in which `regex_replace` looks for matches, in bytes.
const MAX_SEARCHED: usize = 65_536;
/// The bytes of the remaining text for which each search costs one step. A pattern may read all of the
/// remaining text before it matches a short part.
const SEARCHED_PER_STEP: usize = 2_048;

/// The text of a value, which is read.
fn read<'v>(work: &mut Work<'_>, of: &'v Value) -> Result<Cow<'v, str>, FailureReason> {
    let text = of.written()?;
    work.handle(text.len())?;
    Ok(text)
}

/// `string`: the text that is written.
pub(super) fn string(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    match of {
        Value::Text(_) => Ok(of.clone()),
        other => Ok(Value::from(read(work, other)?.into_owned())),
    }
}

pub(super) fn upper(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?.to_uppercase();
    work.made(text)
}

pub(super) fn lower(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?.to_lowercase();
    work.made(text)
}

/// `capitalize`: the first letter large, all others small.
pub(super) fn capitalize(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    let text: String = first.chain(letters.as_str().to_lowercase().chars()).collect();
    work.made(text)
}

/// `title`: the first letter of each word large, all others small.
pub(super) fn title(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let mut titled = String::with_capacity(text.len());
    let mut is_inside = false;
    for letter in text.chars() {
        match is_inside {
            true => titled.extend(letter.to_lowercase()),
            false => titled.extend(letter.to_uppercase()),
        }
        is_inside = !(letter.is_whitespace() || matches!(letter, '-' | '(' | '{' | '[' | '<'));
    }
    work.made(titled)
}

/// `trim`: without white space, or without some characters, at both ends.
pub(super) fn trim(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let trimmed = match arguments.text(0) {
        Some(characters) if characters.len() > MAX_TRIMMED => {
            return Err(format!("chars has {} bytes; at most {MAX_TRIMMED} are allowed", characters.len()).into());
        }
        Some(characters) => text.trim_matches(|c| characters.contains(c)),
        None => text.trim(),
    };
    Ok(Value::text(trimmed))
}

/// `replace`: every part that is equal to a text by another.
pub(super) fn replace(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let (part, by) = (arguments.text(0).unwrap_or_default(), arguments.text(1).unwrap_or_default());
    let found = text.matches(part).count();
    let (more, less) = (found.saturating_mul(by.len()), found * part.len());
    work.handle(text.len().saturating_add(more) - less)?;
    Ok(Value::from(text.replace(part, by)))
}

/// `split`: the parts between a text, or between white space.
pub(super) fn split(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let parts: Box<dyn Iterator<Item = &str>> = match arguments.text(0) {
        Some(between) => Box::new(text.split(between)),
        None => Box::new(text.split_whitespace()),
    };
    let mut entries = Vec::new();
    for part in parts {
        work.spend(1)?;
        entries.push(Value::text(part));
    }
    Ok(Value::from(entries))
}

/// `truncate`: at most the given number of characters, cut between words where possible, with `…` where it was cut.
pub(super) fn truncate(work: &mut Work<'_>, of: &Value, arguments: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let most = arguments.whole(0).and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    if text.chars().nth(most).is_none() {
        return Ok(Value::text(&text));
    }
    let end = text.char_indices().nth(most.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
    let (kept, rest) = text.split_at(end);
    let is_between = rest.starts_with(char::is_whitespace);
    let word = if is_between { None } else { kept.rfind(char::is_whitespace) };
    // A cut that loses more than half is no better than one inside a word.
    let end =
        word.filter(|at| kept.get(..*at).is_some_and(|left| left.chars().count() * 2 >= most)).unwrap_or(kept.len());
    let kept = kept.get(..end).unwrap_or(kept).trim_end();
    work.made(format!("{kept}…"))
}

/// `digits`: the digits of a text.
pub(super) fn digits(work: &mut Work<'_>, of: &Value, _: &Arguments<'_>) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    Ok(Value::from(text.chars().filter(char::is_ascii_digit).collect::<String>()))
}

/// `regex_replace`: every match of a pattern replaced; `$1` is the first group.
pub(super) fn regex_replace(
    work: &mut Work<'_>,
    of: &Value,
    arguments: &Arguments<'_>,
) -> Result<Value, FailureReason> {
    let text = read(work, of)?;
    let by = arguments.text(1).unwrap_or_default();
    let pattern = arguments.pattern.ok_or("the pattern must be written in the rule, in quotes")?;
    if text.len() > MAX_SEARCHED {
        let bytes = text.len();
        return Err(
            format!("the text has {bytes} bytes; regex_replace takes at most {MAX_SEARCHED}, see truncate").into()
        );
    }
    let mut replaced = String::new();
    let mut end = 0;
    let groups = by.matches('$').count();
    for found in pattern.captures_iter(&text) {
        let whole = found.get_match();
        work.spend(1 + (text.len() - end) / SEARCHED_PER_STEP)?;
        // Before it is made: a replacement can name the match many times.
        let size = by.len().saturating_add(groups.saturating_mul(whole.len()));
        work.handle(size)?;
        fits(replaced.len().saturating_add(size))?;
        replaced.push_str(text.get(end..whole.start()).unwrap_or_default());
        end = whole.end();
        found.expand(by, &mut replaced);
    }
    replaced.push_str(text.get(end..).unwrap_or_default());
    work.made(replaced)
}
