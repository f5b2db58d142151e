//! The ways in which a secret may be written: in other case, percent-encoded, escaped, in Base64 or hexadecimal. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// How often an encoding within an encoding is undone.
const LEVELS: usize = 4;
/// The shortest secret that is looked for in Base64 and hexadecimal, in bytes.
const LONG_ENOUGH: usize = 6;

/// A text that must not be shown, and what is shown instead.
pub(super) struct Secret {
    text: String,
    /// All ways in which it can be written, in lower case, as characters.
    spellings: Vec<Vec<char>>,
    label: &'static str,
}

impl Secret {
    pub(super) fn new(text: String, label: &'static str) -> Self {
        let mut spellings = vec![text.clone()];
        if text.len() >= LONG_ENOUGH {
            spellings.push(text.bytes().map(|byte| format!("{byte:02x}")).collect());
            // In the Base64 of a longer text, the secret can begin at any of the three bytes of a group. The characters at
            // its ends also encode bits of the neighbouring bytes, so they are left out.
            for (before, from) in [(0, 0), (1, 2), (2, 3)] {
                let is_whole = (before + text.len()).is_multiple_of(3);
                spellings.extend([&STANDARD, &URL_SAFE].map(|encoding| {
                    let encoded = encoding.encode(padded(&text, before));
                    let end = encoded.trim_end_matches('=').len() - usize::from(!is_whole);
                    encoded.get(from..end).unwrap_or_default().to_owned()
                }));
            }
        }
        let spellings = spellings.iter().map(|text| text.chars().map(lower).collect()).collect();
        Self { text: text.to_lowercase(), spellings, label }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

fn padded(text: &str, before: usize) -> Vec<u8> {
    [&vec![0; before], text.as_bytes()].concat()
}

fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

/// A character of the decoded text in lower case, and its bytes in the original text.
#[derive(Clone, Copy)]
struct Character {
    is: char,
    from: usize,
    to: usize,
}

/// Replaces secrets in a text. Where two overlap, the longer counts.
pub(super) fn replace(text: &str, secrets: &[Secret]) -> String {
    let mut spans: Vec<(usize, usize, &str)> = Vec::new();
    let mut characters = characters_of(text);
    for _ in 0..=LEVELS {
        for secret in secrets {
            spans.extend(
                secret
                    .spellings
                    .iter()
                    .flat_map(|spelling| positions(&characters, spelling).map(|(from, to)| (from, to, secret.label))),
            );
        }
        let Some(decoded) = decode(&characters) else { break };
        characters = decoded;
    }
    spans.sort_by_key(|(from, to, _)| (*from, std::cmp::Reverse(*to)));
    let mut shown = String::with_capacity(text.len());
    let mut done = 0;
    for (from, to, label) in spans {
        if from >= done {
            shown.push_str(text.get(done..from).unwrap_or_default());
            shown.push_str(label);
        }
        done = done.max(to);
    }
    shown.push_str(text.get(done..).unwrap_or_default());
    shown
}

fn characters_of(text: &str) -> Vec<Character> {
    let characters = text.char_indices();
    characters.map(|(from, c)| Character { is: lower(c), from, to: from + c.len_utf8() }).collect()
}

/// Where a spelling is, in bytes of the original text.
fn positions<'a>(text: &'a [Character], spelling: &'a [char]) -> impl Iterator<Item = (usize, usize)> + 'a {
    let windows = text.windows(spelling.len().max(1));
    let hits = windows.filter(move |window| window.iter().map(|character| &character.is).eq(spelling));
    hits.filter_map(|window| Some((window.first()?.from, window.last()?.to)))
}

/// A text in lower case with one level of encoding undone.
pub(super) fn decoded(text: &str) -> String {
    let characters = characters_of(text);
    decode(&characters).unwrap_or(characters).iter().map(|character| character.is).collect()
}

/// The same text with one level of encoding undone; none where there is no encoding.
fn decode(text: &[Character]) -> Option<Vec<Character>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.first() {
        let (is, length) = escape(rest).unwrap_or((first.is, 1));
        let (escaped, behind) = rest.split_at_checked(length)?;
        decoded.push(Character { is: lower(is), from: first.from, to: escaped.last()?.to });
        rest = behind;
    }
    (decoded.len() < text.len()).then_some(decoded)
}

/// The character of an escape at the beginning, and its length in characters.
fn escape(text: &[Character]) -> Option<(char, usize)> {
    let [first, second, ..] = text else { return None };
    match (first.is, second.is) {
        ('%', _) => Some((number(text.get(1..3)?, 16)?, 3)),
        ('\\', 'u') => Some((number(text.get(2..6)?, 16)?, 6)),
        ('\\', 'x') => Some((number(text.get(2..4)?, 16)?, 4)),
        ('\\', c) if c.is_ascii_punctuation() => Some((c, 2)),
        ('&', '#') => {
            let end = text.iter().take(10).position(|character| character.is == ';')?;
            let c = match text.get(2)?.is {
                'x' => number(text.get(3..end)?, 16)?,
                _ => number(text.get(2..end)?, 10)?,
            };
            Some((c, end + 1))
        }
        ('&', _) => {
            let end = text.iter().take(6).position(|character| character.is == ';')?;
            let name: String = text.get(1..end)?.iter().map(|character| character.is).collect();
            let known = [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\'')];
            known.iter().find(|(known, _)| *known == name).map(|(_, c)| (*c, end + 1))
        }
        _ => None,
    }
}

fn number(digits: &[Character], radix: u32) -> Option<char> {
    let digits: String = digits.iter().map(|character| character.is).collect();
    char::from_u32(u32::from_str_radix(&digits, radix).ok()?)
}
