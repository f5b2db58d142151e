//! Makes control characters and hidden characters visible in text from messages, publishers and the CRM, for terminals,
//! pages and JSON.

use std::fmt::Write as _;

/// Whether a character controls a terminal or page, or cannot be seen: control characters (C0, C1, DEL), text direction,
/// joiners and other zero-width characters, line and paragraph separators, tags, variation selectors, and the format controls of
/// shorthand and of musical notation.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The name that is shown for a hidden character: `[U+202E]`.
#[must_use]
pub fn name(c: char) -> String {
    format!("[U+{:04X}]", u32::from(c))
}

/// One line of text: hidden characters and line ends are shown by name.
#[must_use]
pub fn line(text: &str) -> String {
    shown(text, |_| false)
}

/// Whether `given` means this text: it is the text, or what [`line`] shows of it, as people copy it from a terminal.
#[must_use]
pub fn is_shown_as(text: &str, given: &str) -> bool {
    // Most texts are compared once for each message, so the second one is made only where it can be equal.
    text == given || (given.contains("[U+") && line(text) == given)
}

/// The text that [`line`] shows like this; none if it names no hidden character.
#[must_use]
pub fn unshown(shown: &str) -> Option<String> {
    let mut text = String::with_capacity(shown.len());
    let mut rest = shown;
    while let Some((before, after)) = rest.split_once("[U+") {
        text.push_str(before);
        let named = after.split_once(']').and_then(|(hex, after)| {
            let c = char::from_u32(u32::from_str_radix(hex, 16).ok()?)?;
            is_hidden(c).then_some((c, after))
        });
        rest = if let Some((c, after)) = named {
            text.push(c);
            after
        } else {
            text.push_str("[U+");
            after
        };
    }
    text.push_str(rest);
    (text != shown && line(&text) == shown).then_some(text)
}

/// Several lines of text: hidden characters are shown by name; line ends and tabs stay.
#[must_use]
pub fn lines(text: &str) -> String {
    shown(text, |c| matches!(c, '\n' | '\t'))
}

fn shown(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !is_kept(c) {
            shown.push_str(&name(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// JSON without hidden characters: each is written as `\uXXXX`, so the values stay the same.
#[must_use]
pub fn json(json: &str) -> String {
    escaped(json, |c| matches!(c, '\n' | '\t' | '\r'))
}

/// A log line without hidden characters: each is written as `\uXXXX`. ASCII's own stay: the colours of a terminal begin with
/// one, and the log's format has escaped those in values.
#[must_use]
pub fn log_line(line: &str) -> String {
    escaped(line, |c| c.is_ascii_control() && c != '\u{7f}')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    // Most texts need no change, and some are large.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') || is_kept(char::from(byte))) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !is_kept(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a `String` cannot fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_named_and_others_stay_unchanged() {
        for (text, shown) in [
            ("añadir 日本 🎉 e\u{301}", "añadir 日本 🎉 e\u{301}"),
            ("a\x1b[31mb", "a[U+001B][31mb"),
            ("a\u{9b}2J", "a[U+009B]2J"),
            ("exe\u{202e}gnp", "exe[U+202E]gnp"),
            ("a\u{200b}b\u{2066}c\u{feff}", "a[U+200B]b[U+2066]c[U+FEFF]"),
            ("a\nb\u{2028}c", "a[U+000A]b[U+2028]c"),
            ("tag\u{e0041}", "tag[U+E0041]"),
            ("a\u{1bca0}\u{1bca3}\u{1d173}\u{1d17a}b", "a[U+1BCA0][U+1BCA3][U+1D173][U+1D17A]b"),
            ("\u{1bc9f}\u{1d172}\u{1d17b}", "\u{1bc9f}\u{1d172}\u{1d17b}"),
        ] {
            assert_eq!(line(text), shown);
        }
        assert_eq!(lines("a\n\tb\r\x07"), "a\n\tb[U+000D][U+0007]");
    }

    #[test]
    fn shown_text_names_the_text_with_hidden_characters() {
        for text in ["pri-\u{202e}evil-1", "a\u{9b}\nb[U+0041]", "[U+\u{200b}"] {
            assert!(is_shown_as(text, text) && is_shown_as(text, &line(text)), "{text:?}");
            assert_eq!(unshown(&line(text)).as_deref(), Some(text));
        }
        assert!(!is_shown_as("pri-evil-1", "pri-[U+202E]evil-1"));
        for plain in ["m-1", "a[U+0041]", "[U+202e]", "[U+", "[U+FFFFFFFFF]x"] {
            assert_eq!(unshown(plain), None, "{plain}");
        }
    }

    #[test]
    fn json_keeps_its_values_without_hidden_characters() {
        let value = "\u{9b}2J\u{202e}\u{200b}\u{e0041}\u{7f}ñ";
        let written = json(&serde_json::to_string_pretty(&[value]).unwrap());
        assert!(!written.chars().any(|c| is_hidden(c) && c != '\n'), "{written:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&written).unwrap(), [value]);
    }
}
