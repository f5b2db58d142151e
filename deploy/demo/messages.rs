//! The messages of the demo: ordinary tasks, with special ones among them. Except for the dates they are the same in every run.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How many messages the demo publishes.
pub(crate) const COUNT: usize = 300;
/// A special message that is marked as early is among the first of this number.
const EARLY: usize = 16;
/// `id_record` of the first message. All have the same number of digits, so that no record number contains another one.
const FIRST_RECORD: usize = 48_213;
const SEED: u64 = 2026;

/// A message to publish, and its expected result.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The AMQP message id.
    pub(crate) id: String,
    /// `id_record` and name of the task in the CRM.
    pub(crate) task: (String, String),
    pub(crate) expected: Expected,
    /// The sandbox's rule for this message.
    pub(crate) fault: Option<Value>,
    export: Value,
}

/// The expected result of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Created,
    DeadLettered {
        kind: String,
        /// Whether the CRM created the task before its answer was lost.
        in_crm: bool,
    },
}

#[derive(Deserialize)]
struct People {
    customers: Vec<String>,
    owners: Vec<String>,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    name_module: String,
    priority: Option<String>,
    description: String,
    days: i64,
    remind_days: Option<i64>,
    /// The dates have an offset, instead of being wall-clock times of the account.
    #[serde(default)]
    zoned: bool,
}

/// A message with a bad body, or one that the sandbox answers with a fault.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Special {
    #[serde(rename = "what")]
    _what: String,
    #[serde(default = "one")]
    count: usize,
    #[serde(default)]
    early: bool,
    edit: Option<Edit>,
    fault: Option<Map<String, Value>>,
    /// The kind of its dead letter.
    expect: Option<String>,
    #[serde(default)]
    in_crm: bool,
}

/// How a good body is changed.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Edit {
    Body(String),
    BodyBase64(String),
    Cut(usize),
    Pad(usize),
    Without(Vec<String>),
    Rename(HashMap<String, String>),
    With(Map<String, Value>),
}

fn one() -> usize {
    1
}

/// All messages, in the order in which they are published.
pub(crate) fn all(now: Timestamp) -> Result<Vec<Message>, String> {
    let mut chance = fastrand::Rng::with_seed(SEED);
    let people: People = read("people.json", include_str!("data/people.json"))?;
    let templates: Vec<Template> = read("templates.json", include_str!("data/templates.json"))?;
    let specials: Vec<Special> = read("specials.json", include_str!("data/specials.json"))?;
    let mut places = places(&specials, &mut chance);
    let mut messages = Vec::with_capacity(COUNT);
    for place in 0..COUNT {
        let body = task(place, &people, &templates, now, &mut chance)?;
        messages.push(message(place, body, places.remove(&place), now)?);
    }
    Ok(messages)
}

/// The messages as `publish` takes them.
pub(crate) fn export(messages: &[Message]) -> String {
    let lines = messages.iter().map(|message| format!("{}\n", message.export));
    lines.collect()
}

/// The sandbox's rules for all messages.
pub(crate) fn faults(messages: &[Message]) -> Vec<Value> {
    messages.iter().filter_map(|message| message.fault.clone()).collect()
}

fn read<'a, T: Deserialize<'a>>(name: &str, json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("deploy/demo/data/{name}: {error}"))
}

/// Chooses a place in the order for each special message.
fn places(specials: &[Special], chance: &mut fastrand::Rng) -> HashMap<usize, Special> {
    let (mut early, mut later): (Vec<_>, Vec<_>) = (0..COUNT).partition(|place| *place < EARLY);
    chance.shuffle(&mut early);
    chance.shuffle(&mut later);
    let mut places = HashMap::new();
    for special in specials {
        let free = if special.early { &mut early } else { &mut later };
        for place in free.drain(..special.count.min(free.len())) {
            places.insert(place, special.clone());
        }
    }
    places
}

fn task(
    place: usize,
    people: &People,
    templates: &[Template],
    now: Timestamp,
    chance: &mut fastrand::Rng,
) -> Result<Map<String, Value>, String> {
    const EMPTY: &str = "a list in deploy/demo/data is empty";
    let customer = chance.choice(&people.customers).ok_or(EMPTY)?;
    let owner = chance.choice(&people.owners).ok_or(EMPTY)?;
    let template = chance.choice(templates).ok_or(EMPTY)?;
    let record = FIRST_RECORD + place;
    let name = template.name.replace("{customer}", customer);
    let time = (chance.i64(8..18), 15 * chance.i64(0..4));
    let date = |days: i64| date(now, days, time, template.zoned);
    let mut body = Map::from_iter([
        ("name".to_owned(), json!(format!("{name} (#{record})"))),
        ("name_module".to_owned(), json!(template.name_module)),
        ("completion_date".to_owned(), json!(date(template.days)?)),
        ("id_record".to_owned(), json!(record.to_string())),
        ("wolkvox_owner".to_owned(), json!(owner)),
        ("description".to_owned(), json!(template.description)),
    ]);
    if let Some(priority) = &template.priority {
        body.insert("priority".to_owned(), json!(priority));
    }
    if let Some(days) = template.remind_days {
        body.insert("remember".to_owned(), json!(true));
        body.insert("reminder_date".to_owned(), json!(date(template.days - days)?));
    }
    Ok(body)
}

/// A date some days ahead, during office hours.
fn date(now: Timestamp, days: i64, time: (i64, i64), zoned: bool) -> Result<String, String> {
    let today = now.to_zoned_datetime(TimeZone::UTC).date();
    let (hour, minute) = time;
    let date = today.checked_add(days.days()).map_err(|error| error.to_string())?;
    Ok(if zoned {
        format!("{date}T{hour:02}:{minute:02}:00-05:00")
    } else {
        format!("{date} {hour:02}:{minute:02}:00")
    })
}

fn message(
    place: usize,
    task: Map<String, Value>,
    special: Option<Special>,
    now: Timestamp,
) -> Result<Message, String> {
    let id = format!("demo-{:03}", place + 1);
    let text = |field: &str| {
        let value = task.get(field).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let (record, name) = (text("id_record"), text("name"));
    let fault = special.as_ref().and_then(|special| special.fault.clone());
    let fault = fault.map(|mut rule| {
        rule.insert("name_contains".to_owned(), json!(format!("#{record}")));
        Value::Object(rule)
    });
    let expected = special
        .as_ref()
        .and_then(|special| Some(Expected::DeadLettered { kind: special.expect.clone()?, in_crm: special.in_crm }));
    let body = body(task, special.and_then(|special| special.edit))?;
    Ok(Message {
        export: envelope(&id, place, &body, now),
        id,
        task: (record, name),
        expected: expected.unwrap_or(Expected::Created),
        fault,
    })
}

fn body(mut task: Map<String, Value>, edit: Option<Edit>) -> Result<Vec<u8>, String> {
    match edit {
        Some(Edit::Body(text)) => return Ok(text.into_bytes()),
        Some(Edit::BodyBase64(text)) => {
            return STANDARD.decode(text).map_err(|error| format!("deploy/demo/data/specials.json: {error}"));
        }
        Some(Edit::Cut(length)) => {
            let mut json = Value::Object(task).to_string().into_bytes();
            json.truncate(length);
            return Ok(json);
        }
        Some(Edit::Pad(length)) => {
            task.insert("description".to_owned(), json!("n".repeat(length)));
        }
        Some(Edit::Without(fields)) => task.retain(|field, _| !fields.contains(field)),
        Some(Edit::Rename(names)) => {
            for (old, new) in names {
                if let Some(value) = task.remove(&old) {
                    task.insert(new, value);
                }
            }
        }
        Some(Edit::With(fields)) => task.extend(fields),
        None => {}
    }
    Ok(Value::Object(task).to_string().into_bytes())
}

/// The message as a line of an export.
fn envelope(id: &str, place: usize, body: &[u8], now: Timestamp) -> Value {
    let mut line = json!({
        "wtw_export": 1,
        "message_id": id,
        "properties": {
            "content_type": "application/json",
            "timestamp": now.as_second(),
            "app_id": if place.is_multiple_of(3) { "web-shop" } else { "call-center" },
        },
        "headers": {"source": "demo", "batch": 1, "line": place + 1},
    });
    let (key, value) = match std::str::from_utf8(body) {
        Ok(text) => ("body", json!(text)),
        Err(_) => ("body_base64", json!(STANDARD.encode(body))),
    };
    if let Some(fields) = line.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
    line
}
