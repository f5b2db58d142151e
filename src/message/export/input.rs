//! Reads the input of `publish` message by message: a JSON object, an array of objects, JSON lines, or an export.

use std::io::{self, BufRead as _, BufReader, Read};

use serde::Deserialize as _;
use serde_json::value::RawValue;

use super::values::short;
use super::{digest, read};
use crate::broker::Properties;
use crate::json_object::{self, Members};
use crate::message::body::foreign;

/// The largest input, in bytes (1 GiB).
pub const MAX_INPUT: u64 = 1 << 30;
/// The largest message in it, in bytes of JSON: four times RabbitMQ's default limit, because Base64 and escapes need more.
const MAX_MESSAGE: u64 = 64 << 20;

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The body.
    pub body: Vec<u8>,
    /// Properties, with the message id.
    pub properties: Properties,
    /// Its number in the input, from 1.
    pub place: usize,
    /// The line on which it begins, from 1.
    pub line: usize,
}

impl Outgoing {
    /// A digest of body and properties, by which a change of the input is noticed.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let digest = digest(&[format!("{:?}", self.properties).as_bytes(), &self.body]);
        u64::try_from(digest >> 64).unwrap_or_default()
    }
}

/// Where a message gets its id from, if it is not from an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// From this field of the message.
    Field(String),
    /// Derived from the batch's name, the message's number, and its content.
    Batch(String),
}

/// What is wrong with the input, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput {
    /// The number of the message, from 1.
    pub place: usize,
    /// The line on which it begins, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
    /// Whether the rest of the input cannot be read.
    pub is_end: bool,
}

/// The messages of an input, read on demand.
pub struct Input<R: Read> {
    bytes: Bytes<R>,
    ids: Ids,
    array: Array,
    /// The largest message, in bytes.
    largest: u64,
    place: usize,
    is_over: bool,
}

/// The position in an array.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Array {
    Outside,
    Begun,
    AfterElement,
}

impl<R: Read> Input<R> {
    /// Reads the messages of `reader`.
    #[must_use]
    pub fn new(reader: R, ids: Ids) -> Self {
        Self::with_limits(reader, ids, MAX_INPUT, MAX_MESSAGE)
    }

    /// The same with other limits, in bytes.
    pub(super) fn with_limits(reader: R, ids: Ids, input: u64, largest: u64) -> Self {
        let bytes = Bytes { reader: BufReader::new(reader), line: 1, input, message: largest };
        Self { bytes, ids, array: Array::Outside, largest, place: 0, is_over: false }
    }

    /// The JSON of the next message, and the line on which it begins. A JSON error ends the input.
    fn next_json(&mut self) -> Result<Option<(Box<RawValue>, usize)>, String> {
        if self.place == 0 {
            self.bytes.skip_byte_order_mark()?;
        }
        loop {
            let next = self.bytes.next_visible()?;
            match (self.array, next) {
                (Array::Outside, None) => return Ok(None),
                (Array::Outside, Some(b'[')) => self.array = Array::Begun,
                (Array::Begun | Array::AfterElement, Some(b']')) => self.array = Array::Outside,
                (Array::AfterElement, Some(b',')) => {
                    self.bytes.skip();
                    self.bytes.next_visible()?;
                    return self.json().map(Some);
                }
                (Array::AfterElement, Some(_)) => return Err("a comma or ] is missing before it".to_owned()),
                (Array::Begun | Array::AfterElement, None) => return Err("the array has no end".to_owned()),
                (Array::Outside | Array::Begun, Some(_)) => return self.json().map(Some),
            }
            self.bytes.skip();
        }
    }

    fn json(&mut self) -> Result<(Box<RawValue>, usize), String> {
        if self.bytes.peek()? != Some(b'{') {
            let named = foreign::input(self.bytes.reader.buffer());
            return Err(named.unwrap_or_else(|| "it is not a JSON object".to_owned()));
        }
        if self.array == Array::Begun {
            self.array = Array::AfterElement;
        }
        let line = self.bytes.line;
        self.bytes.message = self.largest;
        let mut json = serde_json::Deserializer::from_reader(&mut self.bytes);
        match Box::<RawValue>::deserialize(&mut json) {
            Ok(value) => Ok((value, line)),
            Err(error) => Err(format!("it is not JSON: {}", error_text(&error, line))),
        }
    }

    fn outgoing(&self, json: &str, line: usize) -> Result<Outgoing, String> {
        let place = self.place;
        if let Some(exported) = read(json) {
            let (body, properties) = exported?;
            return Ok(Outgoing { body, properties, place, line });
        }
        let id = match &self.ids {
            Ids::Field(name) => field(json, name)?,
            Ids::Batch(name) => {
                let id = digest(&[name.as_bytes(), &place.to_be_bytes(), json.as_bytes()]);
                format!("publish-{id:032x}")
            }
        };
        let properties = Properties::default().with_content_type("application/json".into());
        let properties = properties.with_message_id(short("its id", id)?);
        Ok(Outgoing { body: json.as_bytes().to_vec(), properties, place, line })
    }
}

/// The id in a field of a message.
fn field(json: &str, name: &str) -> Result<String, String> {
    let members: Members<'_> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let value =
        members.get(name).ok_or_else(|| format!("it has no field {name}, from which --id-field takes the id"))?;
    let id = match json_object::text(value) {
        Some(text) => text.into_owned(),
        None => value.get().to_owned(),
    };
    let is_number = value.get().bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if id.is_empty() || !(value.get().starts_with('"') || is_number) {
        return Err(format!("its field {name} cannot be an id; a text that is not empty, or an integer, is allowed"));
    }
    Ok(id)
}

/// A parser's error with the line number of the whole input.
fn error_text(error: &serde_json::Error, begins_on: usize) -> String {
    let (line, column) = (error.line(), error.column());
    let words = error.to_string();
    let words = words.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&words);
    match error.is_io() {
        true => words.to_owned(),
        false => format!("{words} at line {}", (begins_on + line).saturating_sub(1)),
    }
}

impl<R: Read> Iterator for Input<R> {
    type Item = Result<Outgoing, BadInput>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_json();
        self.place += 1;
        let bad = |line, why, is_end| BadInput { place: self.place, line, why, is_end };
        match next {
            Ok(None) => None,
            Ok(Some((json, line))) => Some(self.outgoing(json.get(), line).map_err(|why| bad(line, why, false))),
            Err(why) => {
                let end = bad(self.bytes.line, why, true);
                self.is_over = true;
                Some(Err(end))
            }
        }
    }
}

/// A reader with a limit that counts lines.
struct Bytes<R> {
    reader: BufReader<R>,
    line: usize,
    /// Bytes left for the input.
    input: u64,
    /// Bytes left for the current message.
    message: u64,
}

impl<R: Read> Bytes<R> {
    fn peek(&mut self) -> Result<Option<u8>, String> {
        let held = self.reader.fill_buf().map_err(|error| format!("it cannot be read: {error}"))?;
        Ok(held.first().copied())
    }

    fn skip(&mut self) {
        if self.reader.buffer().first() == Some(&b'\n') {
            self.line += 1;
        }
        self.reader.consume(1);
    }

    /// The next byte that is not white space; it is not consumed.
    fn next_visible(&mut self) -> Result<Option<u8>, String> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.skip(),
                other => return Ok(other),
            }
        }
    }

    /// Editors on Windows begin a file with a byte-order mark.
    fn skip_byte_order_mark(&mut self) -> Result<(), String> {
        if self.peek()? == Some(0xef) && self.reader.buffer().starts_with(b"\xef\xbb\xbf") {
            self.reader.consume(3);
        }
        Ok(())
    }
}

impl<R: Read> Read for Bytes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let bytes = u64::try_from(read).unwrap_or(u64::MAX);
        (self.input, self.message) = (self.input.saturating_sub(bytes), self.message.saturating_sub(bytes));
        if self.message == 0 {
            return Err(io::Error::other("it is larger than 64 MiB, the most that one message may have"));
        }
        if self.input == 0 {
            return Err(io::Error::other("the input is larger than 1 GiB; split it"));
        }
        self.line += buffer.iter().take(read).filter(|byte| **byte == b'\n').count();
        Ok(read)
    }
}
