//! Reads a message's body as UTF-8 text: checks its size, decompresses it, and recognises other formats. Pure.

use std::borrow::Cow;
use std::io::Read as _;

use flate2::read::MultiGzDecoder;

use crate::broker::Message;
use crate::message::failure::{Failure, Kind, ProblemLine, Stage, shorten};

pub(crate) mod foreign;

/// The largest body, in bytes (256 KiB). A compressed body must not be larger before or after decompression.
pub const MAX_BODY: usize = 262_144;

const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The body of a message, decompressed if its `content_encoding` is gzip.
///
/// # Errors
/// See [`unpack`].
pub fn unpacked(message: &Message) -> Result<Cow<'_, [u8]>, Failure> {
    let encoding = message.properties.content_encoding().as_ref();
    unpack(&message.body, encoding.map(|encoding| encoding.as_str()))
}

/// Decompresses a body whose `content_encoding` is gzip. With other encodings the body stays unchanged: publishers write
/// character sets there (Celery writes `utf-8`), and [`text`] reports a body that is not text.
///
/// # Errors
/// `too_large` for more than [`MAX_BODY`] bytes, compressed or not; `invalid_message` for what is not gzip, is gzip twice, or
/// has another compression.
pub fn unpack<'a>(body: &'a [u8], content_encoding: Option<&str>) -> Result<Cow<'a, [u8]>, Failure> {
    check_size(body)?;
    let is_gzip =
        content_encoding.is_some_and(|name| ["gzip", "x-gzip"].contains(&name.trim().to_lowercase().as_str()));
    if !is_gzip {
        check_encoding(body, content_encoding.unwrap_or_default())?;
        return Ok(Cow::Borrowed(body));
    }
    let mut unpacked = Vec::new();
    // One byte over the limit is enough to refuse the body.
    let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX).saturating_add(1);
    if let Err(error) = MultiGzDecoder::new(body).take(limit).read_to_end(&mut unpacked) {
        let what = "content_encoding is gzip, but the body is not gzip";
        if body.starts_with(foreign::GZIP) {
            return Err(invalid(&format!("the body is gzip, but damaged: it cannot be unpacked: {error}")));
        }
        let start = shorten(&String::from_utf8_lossy(body.get(..16).unwrap_or(body)), 16);
        let text = format!("{what}: it begins with {start:?}");
        let line = ProblemLine { text, without_value: Some(what.to_owned()) };
        return Err(Failure::of_lines(Stage::Decode, Kind::InvalidMessage, Box::new([line])));
    }
    if unpacked.len() > MAX_BODY {
        let text = format!("the body has more than {MAX_BODY} bytes once unpacked; at most {MAX_BODY} are allowed");
        return Err(Failure::new(Stage::Decode, Kind::TooLarge, text));
    }
    if unpacked.starts_with(foreign::GZIP) {
        return Err(invalid("the body is gzip twice; compress it once"));
    }
    Ok(Cow::Owned(unpacked))
}

/// Names a compression that the worker does not read. A text was not compressed, whatever its `content_encoding` says.
fn check_encoding(body: &[u8], content_encoding: &str) -> Result<(), Failure> {
    const UNREAD: [&str; 9] = ["br", "zstd", "deflate", "compress", "lz4", "snappy", "bzip2", "xz", "zlib"];
    let name = content_encoding.trim().to_lowercase();
    match UNREAD.contains(&name.as_str()) && std::str::from_utf8(body).is_err() {
        true => Err(invalid(&format!(
            "content_encoding is {name}, which the worker does not read; {}",
            foreign::UNCOMPRESSED
        ))),
        false => Ok(()),
    }
}

/// Refuses a body over [`MAX_BODY`].
///
/// # Errors
/// `too_large`.
pub(crate) fn check_size(body: &[u8]) -> Result<(), Failure> {
    match body.len() > MAX_BODY {
        true => Err(Failure::new(Stage::Decode, Kind::TooLarge, too_large(body.len()))),
        false => Ok(()),
    }
}

/// What is wrong with a body of more than [`MAX_BODY`] bytes.
pub(crate) fn too_large(bytes: usize) -> String {
    format!("the body has {bytes} bytes; at most {MAX_BODY} are allowed")
}

/// The body as text, which can be JSON.
///
/// # Errors
/// `invalid_message` for an empty body, one with a byte-order mark, and one that is not UTF-8. A known format is named.
pub fn text(body: &[u8]) -> Result<&str, Failure> {
    if let Some(named) = foreign::bytes(body) {
        return Err(invalid(&named));
    }
    let text = std::str::from_utf8(body).map_err(|error| invalid(&foreign::not_utf8(body, error.valid_up_to())))?;
    if text.starts_with(BYTE_ORDER_MARK) {
        return Err(invalid("the body begins with a byte-order mark; send JSON as UTF-8 without one"));
    }
    if text.trim().is_empty() {
        return Err(invalid("the body is empty; send JSON"));
    }
    Ok(text)
}

/// Why a text is not the JSON object of a task message. A known format is named.
pub(crate) fn not_an_object(text: &str, error: &serde_json::Error) -> Failure {
    if let Some(named) = foreign::text(text) {
        return invalid(&named);
    }
    // The parser's error quotes the whole text.
    let found = match text.trim_start().bytes().next() {
        Some(b'[') => "it is an array",
        Some(b'"') => "it is a string",
        Some(b'-' | b'0'..=b'9') => "it is a number",
        Some(b't' | b'f') => "it is a boolean",
        Some(b'n') => "it is null",
        _ => "",
    };
    let reason = match error.is_data() && !found.is_empty() {
        true => found.to_owned(),
        false => reason(error),
    };
    invalid(&format!("the body is not a task message, a JSON object: {reason}"))
}

/// Why a text is not JSON. The parser's words are kept where a publisher understands them.
pub(crate) fn reason(error: &serde_json::Error) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("recursion limit", "lists and objects are nested more than 128 deep"),
        ("EOF", "the text ends before the JSON is complete"),
        ("expected ident", "this is not JSON"),
        ("expected value", "this is not JSON"),
        ("key must be", "a key must be a text in double quotes"),
        ("trailing characters", "there is more text after the JSON"),
    ];
    let text = error.to_string();
    match WORDS.iter().find(|(theirs, _)| text.starts_with(theirs)) {
        Some((_, ours)) if error.line() > 0 => format!("line {}, column {}: {ours}", error.line(), error.column()),
        Some((_, ours)) => (*ours).to_owned(),
        None => text,
    }
}

pub(crate) fn invalid(text: &str) -> Failure {
    Failure::new(Stage::Decode, Kind::InvalidMessage, text)
}

#[cfg(test)]
mod tests;
