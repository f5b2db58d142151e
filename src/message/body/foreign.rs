//! Recognises bodies of other systems and encodings. The error then says what the publisher must change, instead of quoting
//! a JSON parser.

use crate::json_object::Members;

/// How gzip begins (RFC 1952).
pub(super) const GZIP: &[u8] = b"\x1f\x8b";

/// The first bytes of a format, its name, and what its publisher can do.
type MagicNumber = (&'static [u8], &'static str, &'static str);

const AS_DATA: &str = "send the JSON as bytes, in a data section";
const AS_JSON: &str = "send JSON as UTF-8 text";
pub(super) const UNCOMPRESSED: &str = "send it uncompressed, or as gzip with the property content_encoding set to gzip";

/// AMQP 1.0 sections begin with a descriptor (part 3, section 3.2): RabbitMQ leaves them in a body that it converts for
/// AMQP 0-9-1. The others are the magic numbers of their formats.
const MAGIC_NUMBERS: [MagicNumber; 31] = [
    (b"\x00\x53\x77", "an AMQP 1.0 value (section amqp-value)", AS_DATA),
    (b"\x00\x53\x76", "an AMQP 1.0 sequence (section amqp-sequence)", AS_DATA),
    (b"\x00\x53\x75", "an AMQP 1.0 data section with its descriptor", AS_DATA),
    (b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x77", "an AMQP 1.0 value (section amqp-value)", AS_DATA),
    (b"\x00\xa3", "an AMQP 1.0 section with a symbolic descriptor", AS_DATA),
    (b"\xff\xfe\x00\x00", "UTF-32 text", AS_JSON),
    (b"\x00\x00\xfe\xff", "UTF-32 text", AS_JSON),
    (b"\xff\xfe", "UTF-16 text", AS_JSON),
    (b"\xfe\xff", "UTF-16 text", AS_JSON),
    (b"{\x00\x00\x00", "UTF-32 text", AS_JSON),
    (b"\x00\x00\x00{", "UTF-32 text", AS_JSON),
    (b"{\x00", "UTF-16 text", AS_JSON),
    (b"\x00{", "UTF-16 text", AS_JSON),
    (GZIP, "gzip", "set its property content_encoding to gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNCOMPRESSED),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", UNCOMPRESSED),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with Snappy", UNCOMPRESSED),
    (b"BZh", "compressed with bzip2", UNCOMPRESSED),
    (b"\xfd7zXZ\x00", "compressed with xz", UNCOMPRESSED),
    (b"PK\x03\x04", "a zip archive", UNCOMPRESSED),
    (b"\x78\x01", "compressed with zlib", UNCOMPRESSED),
    (b"\x78\x5e", "compressed with zlib", UNCOMPRESSED),
    (b"\x78\x9c", "compressed with zlib", UNCOMPRESSED),
    (b"\x78\xda", "compressed with zlib", UNCOMPRESSED),
    (b"\xac\xed\x00\x05", "a serialized Java object", AS_JSON),
    (b"\x00\x01\x00\x00\x00\xff\xff\xff\xff", "a serialized .NET object", AS_JSON),
    (b"Obj\x01", "an Avro file", AS_JSON),
    (b"\x80\x02", "a Python pickle", AS_JSON),
    (b"\x80\x03", "a Python pickle", AS_JSON),
    (b"\x80\x04", "a Python pickle", AS_JSON),
    (b"\x80\x05", "a Python pickle", AS_JSON),
];

/// Names a format by its first bytes.
pub(super) fn bytes(body: &[u8]) -> Option<String> {
    beginning(body).map(|(_, what, advice)| format!("the body is {what}; {advice}"))
}

/// Names the format of an input that is not JSON, by its first bytes.
pub(crate) fn input(bytes: &[u8]) -> Option<String> {
    beginning(bytes).map(|(_, what, _)| format!("it is {what}, not JSON as UTF-8 text"))
}

fn beginning(bytes: &[u8]) -> Option<&'static MagicNumber> {
    MAGIC_NUMBERS.iter().find(|(start, ..)| bytes.starts_with(start))
}

/// Names the format of a body that is not UTF-8 from `byte` on.
pub(super) fn not_utf8(body: &[u8], byte: usize) -> String {
    let hint = match body.first() {
        Some(b'{' | b'[' | b'"') => "is it Latin-1 or Windows-1252? Send JSON as UTF-8",
        // Maps of up to 15 members, then maps of any size.
        Some(0x80..=0x8f | 0xde | 0xdf) => "is it MessagePack? Send JSON as UTF-8 text",
        Some(0xa0..=0xbf | 0xd9) => "is it CBOR? Send JSON as UTF-8 text",
        _ => "send JSON as UTF-8 text, not a binary format",
    };
    format!("the body is not UTF-8 text from byte {byte}; {hint}")
}

/// Names the format of a text that is not a JSON object.
pub(super) fn text(text: &str) -> Option<String> {
    let start = text.trim_start();
    let what = match start.as_bytes() {
        [b'[', ..] => return array(start),
        [b'"', ..] => {
            let inner: String = serde_json::from_str(start.trim_end()).ok()?;
            inner.trim_start().starts_with('{').then_some("a string that holds JSON: it was encoded twice")?
        }
        [b'{', ..] if is_json_lines(start) => {
            return Some("the body is several JSON objects; publish each as a message of its own".to_owned());
        }
        [b'<', ..] => "XML or HTML",
        [b'e', b'y', b'J', ..] | [b'e', b'w', ..] if is_base64(start) => "JSON in Base64, or a JSON Web Token",
        [b'a' | b'O', b':', digit, ..] if digit.is_ascii_digit() => "serialized by PHP",
        [b'-', b'-', b'-', b'\n' | b'\r', ..] => "YAML",
        [first, ..] if *first != b'{' && start.contains(is_binary) => "binary data, such as Protobuf or Avro",
        _ if is_form(start) => "a form (application/x-www-form-urlencoded)",
        _ => return None,
    };
    Some(format!("the body is {what}; a task message is a JSON object"))
}

fn is_base64(text: &str) -> bool {
    text.trim_end().bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=-_.\r\n".contains(&b))
}

fn is_json_lines(text: &str) -> bool {
    let objects = serde_json::Deserializer::from_str(text).into_iter::<Members<'_>>();
    objects.take(2).filter(Result::is_ok).count() == 2
}

/// A control character that no text has.
fn is_binary(c: char) -> bool {
    c.is_control() && !c.is_whitespace()
}

fn is_form(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.%+*~[]".contains(c);
    let is_pair = |pair: &str| {
        pair.split_once('=')
            .is_some_and(|(name, value)| !name.is_empty() && name.chars().all(is_plain) && value.chars().all(is_plain))
    };
    text.trim_end().split('&').all(is_pair)
}

fn array(text: &str) -> Option<String> {
    let elements: Vec<&serde_json::value::RawValue> = serde_json::from_str(text).ok()?;
    let first = elements.first().map_or("", |value| value.get());
    if let [args, kwargs, embed] = elements.as_slice()
        && args.get().starts_with('[')
        && kwargs.get().starts_with('{')
        && embed.get().contains("\"callbacks\"")
    {
        return Some(named("a Celery task (protocol 2)"));
    }
    let is_event = serde_json::from_str::<Members<'_>>(first).is_ok_and(|members| members.get("specversion").is_some());
    is_event.then(|| "the body is a batch of CloudEvents; publish each event as a message of its own".to_owned())
}

/// A kind of JSON object, and the members that every object of it has.
type Shape = (&'static str, &'static [&'static str]);

/// None of these members is a field of a task message. The first kind that fits is named.
const SHAPES: [Shape; 25] = [
    ("a CloudEvent", &["specversion", "type", "source"]),
    ("a MassTransit envelope", &["messageType", "message"]),
    ("a Debezium change event", &["payload", "schema"]),
    ("a Debezium change event", &["before", "after", "op"]),
    ("a Debezium change event", &["source", "op", "ts_ms"]),
    ("a Canal change event", &["database", "table", "isDdl"]),
    ("a Maxwell change event", &["database", "table", "type", "data"]),
    ("a Celery task (protocol 1)", &["task", "args", "kwargs"]),
    ("a Kombu envelope", &["body", "content-encoding", "properties"]),
    ("a Laravel job", &["displayName", "job", "data"]),
    ("an Active Job", &["job_class", "job_id", "arguments"]),
    ("a Sidekiq job", &["class", "args", "jid"]),
    ("a Dramatiq message", &["queue_name", "actor_name", "args"]),
    ("a NestJS message", &["pattern", "data"]),
    ("a Symfony Messenger envelope", &["body", "headers"]),
    ("a .NET object with its type name", &["$type"]),
    ("a JSON-RPC request", &["jsonrpc", "method"]),
    ("an Amazon SNS notification", &["Type", "TopicArn", "Message"]),
    ("an Amazon EventBridge event", &["detail-type", "detail"]),
    ("an Amazon S3 or SQS event", &["Records"]),
    ("an Azure Event Grid event", &["eventType", "eventTime", "data"]),
    ("a Google Pub/Sub push", &["message", "subscription"]),
    ("an OpenTelemetry export", &["resourceSpans"]),
    ("an export of dead letters, which `publish` takes", &["wtw_export"]),
    ("the body of an insert.php call, of which only `fields` belongs here", &["operation", "module", "fields"]),
];

/// Names the system that a JSON object comes from.
pub(crate) fn object(members: &Members<'_>) -> Option<String> {
    let is_shape = |(_, names): &&Shape| names.iter().all(|name| members.get(name).is_some());
    SHAPES.iter().find(is_shape).map(|(what, _)| named(what))
}

fn named(what: &str) -> String {
    format!(
        "the body is {what}, not a task message; publish a task message, or configure [[rules]] that turn it into one"
    )
}
