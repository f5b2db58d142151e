//! The normalised cause of a failure: the same text for all messages that failed for the same reason, whatever their
//! values. Pure.

use crate::message::dead_letter::DeadLetter;
use crate::message::failure::{CUT, Kind, shorten};

/// The most bytes of a text that are read.
const MAX_TEXT_BYTES: usize = 8_192;
/// Longest cause, in bytes.
const MAX_CAUSE_BYTES: usize = 200;
/// Longest routing key in a cause, in bytes.
const MAX_KEY_BYTES: usize = 80;

/// The cause by which messages are grouped: the CRM's code and words, or else the reason without its values; with the
/// rule's name in front. Of a message that no rule matched: its routing key, and the reasons of the rules with that key.
#[must_use]
pub fn of(dead_letter: &DeadLetter, rule: Option<&str>) -> String {
    let named = rule.map_or_else(String::new, |rule| format!("rule {rule}"));
    let message = dead_letter.message.strip_prefix(&named).unwrap_or(&dead_letter.message);
    let cause = match (dead_letter.crm_code, &dead_letter.crm_message) {
        (Some(code), Some(said)) => format!("code {code}: {}", normalised(said)),
        (Some(code), None) => format!("code {code}"),
        (None, _) if dead_letter.kind == Kind::Unmatched.as_str() => {
            unmatched(message).unwrap_or_else(|| normalised(message))
        }
        (None, _) => normalised(message),
    };
    let cause = match rule {
        // The worker's own reason begins with the rule.
        Some(_) if message.len() < dead_letter.message.len() && dead_letter.crm_code.is_none() => {
            format!("{named}{cause}")
        }
        Some(_) => format!("{named}: {cause}"),
        None => cause,
    };
    shorten(&cause, MAX_CAUSE_BYTES)
}

/// The cause of `no rule matches (routing key "…"); rule A: …; rule B: …`. Rules whose `routing_key` does not match are left
/// out: they are the same for all messages with this key.
fn unmatched(reason: &str) -> Option<String> {
    let (key, rules) = beginning(reason).strip_prefix("no rule matches (routing key \"")?.split_once("\")")?;
    let words: Vec<String> = key.split('.').map(normalised).collect();
    // Before the first rule there can be the names of lost headers.
    let reasons = rules.split("; rule ").skip(1).filter_map(|rule| rule.split_once(": "));
    let reasons = reasons.filter(|(_, why)| !why.starts_with("the routing key does not match "));
    let reasons = reasons.map(|(name, why)| format!("; rule {name}: {}", normalised(why)));
    let key = shorten(&words.join("."), MAX_KEY_BYTES);
    Some(format!("no rule matches (routing key \"{key}\"){}", reasons.collect::<String>()))
}

/// The part of a text that is read. A dead letter that others put on the queue has no limit.
fn beginning(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT_BYTES)).unwrap_or(text)
}

/// The first field that the reason of a message names: `completion_date: is …`.
#[must_use]
pub fn field(dead_letter: &DeadLetter) -> Option<&str> {
    if !matches!(dead_letter.stage.as_deref(), Some("decode" | "map")) {
        return None;
    }
    // A rule's problem begins with `rule NAME, field FIELD, column N: `.
    let (place, _) = dead_letter.message.split_once(": ")?;
    let place = place.split(", ").find_map(|part| part.strip_prefix("field ")).unwrap_or(place);
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    Some(place).filter(|place| is_name(place) && place.len() <= 64)
}

/// A text without its values: quoted text becomes `"…"`; numbers, ids and dates become `N`.
#[must_use]
pub fn normalised(text: &str) -> String {
    let text = beginning(text);
    let mut left = String::with_capacity(text.len().min(MAX_CAUSE_BYTES * 2));
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if left.len() > MAX_CAUSE_BYTES * 2 {
            break;
        }
        match c {
            '"' | '`' => {
                quoted(&mut rest, c);
                left.push_str("\"…\"");
            }
            // In a path, as in `body.items[0]`, a bracket follows a name.
            '[' | '{' if !left.ends_with(char::is_alphanumeric) && begins_json(rest.peek()) && listed(&mut rest) => {
                left.push('N');
            }
            c if c.is_whitespace() || c.is_control() => {
                if !left.ends_with(' ') {
                    left.push(' ');
                }
            }
            c if c.is_alphanumeric() => {
                let mut word = String::from(c);
                while let Some(next) =
                    rest.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | ':' | '.' | '@' | '+'))
                {
                    word.push(next);
                }
                left.push_str(&without_value(&word));
            }
            c => left.push(c),
        }
    }
    left.trim().to_owned()
}

/// Skips a quotation. An escaped quotation mark does not end it.
fn quoted(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, mark: char) {
    while let Some(c) = rest.next() {
        if c == '\\' {
            rest.next();
        } else if c == mark {
            return;
        }
    }
}

/// Whether this can follow the opening bracket of a list or an object. In `FIELD [status]` the brackets hold no value.
fn begins_json(next: Option<&char>) -> bool {
    next.is_some_and(|c| matches!(c, '"' | '[' | ']' | '{' | '}' | '-' | '0'..='9'))
}

/// Skips a list or an object up to its closing bracket, or up to the mark where it was shortened. False, and nothing is skipped,
/// if the bracket never closes.
fn listed(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> bool {
    let (mut within, mut depth) = (rest.clone(), 1_usize);
    while depth > 0 {
        match within.next() {
            Some('"') => quoted(&mut within, '"'),
            Some('[' | '{') => depth += 1,
            Some(']' | '}') => depth -= 1,
            Some(_) => {}
            None if !rest.clone().any(|c| c == CUT) => return false,
            None => {
                let _ = rest.find(|c| *c == CUT);
                rest.next_if(|c| matches!(c, ']' | '}'));
                return true;
            }
        }
    }
    *rest = within;
    true
}

/// A word, or `N` if it is a user or contains a digit, and is no name of an encoding. Punctuation after it stays.
fn without_value(word: &str) -> String {
    let end = word.trim_end_matches(['-', ':', '.', '+', '@']);
    let marks = word.get(end.len()..).unwrap_or_default();
    match end.chars().any(|c| c.is_numeric() || c == '@') && !end.starts_with("UTF-") {
        true => format!("N{marks}"),
        false => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;
    use crate::config::UnknownFields;
    use crate::message::task::decode;

    #[test]
    fn cause_leaves_values_out() {
        for (one, other, cause) in [
            (
                r#"completion_date: is "2026-13-01", not a date that exists"#,
                r#"completion_date: is "a \"b\" 7", not a date that exists"#,
                r#"completion_date: is "…", not a date that exists"#,
            ),
            (
                "id_record: is 4711; a string is allowed",
                "id_record: is 1e400; a string is allowed",
                "id_record: is N; a string is allowed",
            ),
            ("the body has 300000 bytes", "the body has 300001 bytes", "the body has N bytes"),
            ("no answer of 10.0.0.7:443.", "no answer of 10.0.0.8:443.", "no answer of N."),
            (
                "the body is UTF-16 text, 7 bytes",
                "the body is UTF-16 text, 8 bytes",
                "the body is UTF-16 text, N bytes",
            ),
            ("order 0190c2f0-7b1e-7a4e", "order 77aa-1", "order N"),
            ("name: is [1,2]; a string", "name: is [1,[\"]\",{\"a\":2}],3]; a string", "name: is N; a string"),
            ("name: is {}; a string", "name: is [[\"aaa…]; a string", "name: is N; a string"),
            ("code [ 7", "code [ 8", "code [ N"),
            ("FIELD [priority] 7", "FIELD [priority] 8", "FIELD [priority] N"),
            ("body.items[0] is null", "body.items[10] is null", "body.items[N] is null"),
            ("the owner agent@demo is inactive", "the owner ana@demo is inactive", "the owner N is inactive"),
        ] {
            assert_eq!(normalised(one), cause);
            assert_eq!(normalised(other), cause);
        }
        for [priority, remember] in
            [["\"low\u{e9}\"", "\"yes\""], ["\"LONG\"", "[\"LONG\",{}]"], ["\"LONG\\ud800\"", "{\"LONG\":1}"]]
        {
            let body = format!("{{\"priority\":{priority},\"remember\":{remember}}}").replace("LONG", &"x".repeat(200));
            let decoded = decode(body.as_bytes(), UnknownFields::Reject).unwrap();
            let problems: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
            let cause = normalised(&problems.join("; "));
            assert!(cause.starts_with("priority: is \"…\"") && !cause.contains("xx"), "{cause}");
            assert!(cause.ends_with("; true or false is allowed, without quotes"), "{cause}");
            assert!(cause.contains("; remember: is "), "{cause}");
        }
        assert_eq!(normalised("THE OWNER\nIS  INACTIVE"), "THE OWNER IS INACTIVE");
        assert!(normalised(&"word ".repeat(10_000)).len() < MAX_CAUSE_BYTES * 3);
        assert_eq!(normalised("an open \"quotation"), "an open \"…\"");
    }

    #[test]
    fn cause_holds_the_crms_words_and_the_rule() {
        let dead_letter = DeadLetter {
            crm_code: Some(417),
            crm_message: Some("THE OWNER agent_7@demo IS INACTIVE".to_owned()),
            message: "whatever".to_owned(),
            ..DeadLetter::read(&Message::default())
        };
        assert_eq!(of(&dead_letter, None), "code 417: THE OWNER N IS INACTIVE");
        assert_eq!(of(&dead_letter, Some("closed")), "rule closed: code 417: THE OWNER N IS INACTIVE");
        for (message, cause) in [
            ("rule t2, field name, column 4: body is null", "rule t2, field name, column N: body is null"),
            ("rule t2: priority: is 7; high is allowed", "rule t2: priority: is N; high is allowed"),
            ("no answer", "rule t2: no answer"),
        ] {
            let dead_letter = DeadLetter { message: message.to_owned(), ..DeadLetter::read(&Message::default()) };
            assert_eq!(of(&dead_letter, Some("t2")), cause);
        }
    }

    #[test]
    fn cause_of_an_unmatched_message_holds_its_key_and_the_rules_with_that_key() {
        let other = "rule a: the routing key does not match order.#; ".repeat(50);
        let rules = |key: &str, why: &str| {
            format!(
                "no rule matches (routing key \"{key}\"); {other}rule b2: {why}; rule c: the routing key does not match x"
            )
        };
        let missing = "column 1: body is an object without \"rating\" (has: \"a\"; did you mean \"a\"?)";
        for (message, cause) in [
            (
                rules("ticket.closed", "body.rating < 3 is not true"),
                "no rule matches (routing key \"ticket.closed\"); rule b2: body.rating < N is not true",
            ),
            (
                rules("ticket.closed.4711", missing),
                "no rule matches (routing key \"ticket.closed.N\"); rule b2: column N: body is an object without \"…\" (has: \
                 \"…\"; did you mean \"…\"?)",
            ),
            (
                rules("ticket.created", "the routing key does not match y"),
                "no rule matches (routing key \"ticket.created\")",
            ),
            (
                "no rule matches (routing key \"a\"); its copy lost headers (\"x: y\"); rule b2: a is not true"
                    .to_owned(),
                "no rule matches (routing key \"a\"); rule b2: a is not true",
            ),
            ("no rule matches (routing key \"\")".to_owned(), "no rule matches (routing key \"\")"),
            ("lost the 3rd".to_owned(), "lost the N"),
        ] {
            let dead_letter =
                DeadLetter { kind: "unmatched".to_owned(), message, ..DeadLetter::read(&Message::default()) };
            assert_eq!(of(&dead_letter, None), cause);
        }
        let long = rules(&"word.".repeat(5_000), &"word ".repeat(5_000));
        let dead_letter =
            DeadLetter { kind: "unmatched".to_owned(), message: long, ..DeadLetter::read(&Message::default()) };
        assert!(of(&dead_letter, None).len() <= MAX_CAUSE_BYTES);
    }

    #[test]
    fn field_is_read_from_a_reason() {
        for (stage, reason, expected) in [
            ("map", "completion_date: is missing", Some("completion_date")),
            ("map", "rule closed, field id_record, column 4: body.customer is missing", Some("id_record")),
            ("decode", "the body is not JSON: eof", None),
            ("send", "completion_date: is missing", None),
        ] {
            let dead_letter = DeadLetter {
                stage: Some(stage.to_owned()),
                message: reason.to_owned(),
                ..DeadLetter::read(&Message::default())
            };
            assert_eq!(field(&dead_letter), expected, "{reason}");
        }
    }
}
