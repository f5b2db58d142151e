//! How an insert ends: as the account answers, or as a fault says.

use std::io::Write as _;

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::sandbox::account::{Account, Ids};
use crate::sandbox::answer::{Answer, Verdict};
use crate::sandbox::client::ConnectionEnd;
use crate::sandbox::faults::{Action, Fault};
use crate::sandbox::recorded::{Recorded, calls};

/// What PHP prints if the server does not hide its warnings.
const PHP_WARNING: &str = "<br />\n<b>Warning</b>:  Undefined array key \"source\" in \
     <b>/var/www/html/server/API/v2/custom/insert.php</b> on line <b>42</b><br />\n";
/// Header lines that no server should send: without a colon, with a space before it, with an empty name.
const BAD_HEADERS: &str =
    "connection: close\r\nPHP message: Notice on line 42\r\nX-Broken : yes\r\n: nothing\r\nNoColon\r\n";

/// How a call ends.
pub(super) enum Ending {
    /// With an answer.
    Answer(Answer),
    /// Without an answer; the connection stays open.
    Hang,
    /// Without an HTTP answer; the connection ends in this way.
    Connection(ConnectionEnd),
}

/// How an insert of the task with this id ends.
pub(super) fn ending(fault: Option<Fault>, account: &Account, recorded: &Recorded, id: &str) -> Ending {
    let created = || created(account, recorded, id);
    let Some(fault) = fault else { return Ending::Answer(created()) };
    let retry_after = |answer: Answer| match fault.retry_after {
        Some(seconds) => answer.with(header::RETRY_AFTER, seconds),
        None => answer,
    };
    let refused =
        |status, code, text: &str| Answer::json(status, &Verdict::refused(status, code, text.to_owned()).body(account));
    let answer = match &fault.action {
        Action::Hang => return Ending::Hang,
        Action::Drop | Action::Reset => return Ending::Connection(ConnectionEnd::Reset),
        Action::Raw(bytes) => return Ending::Connection(ConnectionEnd::Write(bytes.clone())),
        Action::Close => return Ending::Connection(ConnectionEnd::Write(retry_after(created()).to_wire(""))),
        Action::BadHeader => {
            return Ending::Connection(ConnectionEnd::Write(retry_after(created()).to_wire(BAD_HEADERS)));
        }
        Action::Status(status) => Answer::html(*status),
        Action::Code(code, text) => refused(StatusCode::OK, *code, text),
        Action::Api(status, text) => refused(*status, status.as_u16(), text),
        Action::Delay(_) => created(),
        Action::Garbage => Answer::new(StatusCode::OK, "application/json", "{\"code\": 2\u{fffd}"),
        Action::Bom => with_body(created(), |body| [b"\xef\xbb\xbf", body].concat()),
        Action::Warning => Answer {
            headers: Answer::new(StatusCode::OK, "text/html", "").headers,
            ..with_body(created(), |body| [PHP_WARNING.as_bytes(), body].concat())
        },
        Action::Gzip => with_body(created(), gzip).with(header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        Action::StringCode => {
            let verdict = Verdict::created(data(account, id)).with_string_code();
            verdict.answer(account)
        }
    };
    Ending::Answer(retry_after(answer))
}

fn created(account: &Account, recorded: &Recorded, id: &str) -> Answer {
    recorded
        .answer(calls::CREATED, account, Some(id))
        .unwrap_or_else(|| Verdict::created(data(account, id)).answer(account))
}

fn data(account: &Account, id: &str) -> Value {
    match account.ids {
        Ids::None => json!({}),
        Ids::ObjectId | Ids::Uuid | Ids::Number => json!({"wolkvox_id": account.written_id(id)}),
    }
}

fn with_body(answer: Answer, change: impl FnOnce(&[u8]) -> Vec<u8>) -> Answer {
    Answer { body: Bytes::from(change(&answer.body)), ..answer }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to a vector cannot fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}
