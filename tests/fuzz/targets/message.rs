//! Any bytes as a task message: it is refused with a reason, or mapped to a complete request body.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use wolkvox_task_worker::config::{Config, Sources, UnknownFields};
use wolkvox_task_worker::message::payload::Mapping;
use wolkvox_task_worker::message::task::{FIELDS, decode};

static MAPPING: LazyLock<Mapping> = LazyLock::new(|| {
    let given = [("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TIMEZONE", "America/Bogota")];
    let environment = given.map(|(key, value)| (key.into(), value.into())).into();
    let sources = Sources { environment, ..Sources::default() };
    Mapping::new(&Config::load(&sources, &[]).expect("valid").config).expect("an operation")
});

fuzz_target!(|body: &[u8]| {
    for unknown in [UnknownFields::Reject, UnknownFields::Ignore] {
        match decode(body, unknown).and_then(|decoded| MAPPING.map(decoded)) {
            Ok(payload) => {
                let body = serde_json::to_value(&payload).expect("JSON");
                let fields = body["fields"].as_object().expect("an object");
                assert!(FIELDS.iter().all(|field| fields.contains_key(*field)));
                assert!(fields.values().all(|value| !matches!(value, Value::Null)));
            }
            Err(failure) => assert!(!failure.message.is_empty()),
        }
    }
});
