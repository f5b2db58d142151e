//! Tests of size, compression, and bodies of other systems.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;

use super::*;
use crate::broker::Properties;
use crate::config::UnknownFields;
use crate::message::task::decode;

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Foreign {
    case: String,
    text: Option<String>,
    hex: Option<String>,
    says: String,
}

impl Foreign {
    fn body(&self) -> Vec<u8> {
        match (&self.text, &self.hex) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(hex)) => {
                let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
                let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
                digits.chunks(2).map(byte).collect()
            }
            (Some(_), Some(_)) | (None, None) => panic!("{}: either text or hex", self.case),
        }
    }
}

#[test]
fn bodies_of_other_systems_are_named() {
    let cases: Vec<Foreign> = serde_json::from_str(include_str!("../../../tests/cases/foreign-messages.json")).unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        for unknown in [UnknownFields::Reject, UnknownFields::Ignore] {
            let failure = decode(&case.body(), unknown).unwrap_err();
            assert_eq!(failure.kind, Kind::InvalidMessage, "{}", case.case);
            assert!(failure.message.contains(&case.says), "{}: {failure}", case.case);
        }
    }
}

#[test]
fn task_message_is_not_foreign_whatever_else_it_has() {
    let body = br#"{"name": "a", "name_module": "cases", "id_record": "1", "wolkvox_owner": "o",
        "completion_date": "2026-07-30 09:00:00", "specversion": "1.0", "type": "t", "source": "s", "pattern": 1, "data": 2}"#;
    let decoded = decode(body, UnknownFields::Ignore).unwrap();
    assert_eq!((decoded.task.name.as_deref(), decoded.problems.len()), (Some("a"), 0));
}

#[test]
fn gzip_body_is_unpacked_within_the_limit() {
    let most = vec![b'x'; MAX_BODY];
    for (body, encoding, unpacked) in [
        (gzip(b"{}"), Some("gzip"), Ok(&b"{}"[..])),
        (gzip(b"{}"), Some(" X-GZIP"), Ok(b"{}")),
        ([gzip(b"{"), gzip(b"}")].concat(), Some("gzip"), Ok(b"{}")),
        (gzip(&most), Some("gzip"), Ok(&most)),
        (b"{}".to_vec(), None, Ok(b"{}")),
        (b"{}".to_vec(), Some("utf-8"), Ok(b"{}")),
        (b"{}".to_vec(), Some(""), Ok(b"{}")),
        (
            b"{}".to_vec(),
            Some("gzip"),
            Err("content_encoding is gzip, but the body is not gzip: it begins with \"{}\""),
        ),
        (Vec::new(), Some("gzip"), Err("content_encoding is gzip, but the body is not gzip")),
        (gzip(&gzip(b"{}")), Some("gzip"), Err("the body is gzip twice; compress it once")),
        (b"\x0b\x80".to_vec(), Some("BR"), Err("content_encoding is br, which the worker does not read; send it unc")),
        (b"{}".to_vec(), Some("br"), Ok(b"{}")),
        (gzip(b"{}")[..12].to_vec(), Some("gzip"), Err("it cannot be unpacked: ")),
        (gzip(&[most.clone(), vec![b'x']].concat()), Some("gzip"), Err("more than 262144 bytes once unpacked")),
        (gzip(&vec![0; 2 << 20]), Some("gzip"), Err("more than 262144 bytes once unpacked")),
        (vec![0; MAX_BODY + 1], Some("gzip"), Err("the body has 262145 bytes")),
    ] {
        let mut properties = Properties::default();
        if let Some(encoding) = encoding {
            properties = properties.with_content_encoding(encoding.into());
        }
        let message = Message { body, properties, ..Message::default() };
        match (super::unpacked(&message), unpacked) {
            (Ok(got), Ok(expected)) => assert_eq!(&*got, expected),
            (Err(failure), Err(why)) => {
                assert!(failure.message.contains(why), "{failure}");
                let logged = failure.log_reason();
                assert!(
                    logged.contains(why.split(": it begins").next().unwrap()) && !logged.contains("{}"),
                    "{logged}"
                );
            }
            (got, expected) => panic!("{:?} instead of {:?}", got.map(|body| body.len()), expected.map(<[u8]>::len)),
        }
    }
}
