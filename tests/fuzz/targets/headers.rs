//! Any headers on a delivery: they are read without a panic, and a copy fits the frame.
#![no_main]

use lapin::types::{AMQPValue, FieldTable};
use libfuzzer_sys::fuzz_target;
use wolkvox_task_worker::broker::{Message, Properties, ShortString};
use wolkvox_task_worker::message::dead_letter::DeadLetter;
use wolkvox_task_worker::message::retry_state::{HEADERS, RetryState, copy_properties};

fuzz_target!(|input: (Vec<(u8, String, i64, bool)>, String, u8)| {
    let (entries, routing_key, frame) = input;
    let mut headers = FieldTable::default();
    for (choice, text, number, switch) in entries {
        let ours = HEADERS.get(usize::from(choice)).map(|header| header.name.to_owned());
        let Ok(name) = ShortString::try_new(ours.unwrap_or_else(|| text.chars().take(20).collect::<String>())) else {
            continue;
        };
        let value = match number.rem_euclid(4) {
            0 => AMQPValue::LongLongInt(number),
            1 => AMQPValue::Boolean(switch),
            2 => AMQPValue::Void,
            _ => AMQPValue::LongString(text.into()),
        };
        headers.insert(name, value);
    }
    let message = Message {
        properties: Properties::default().with_headers(headers),
        routing_key: routing_key.chars().take(60).collect(),
        ..Message::default()
    };
    let (state, _) = RetryState::read(&message, None);
    let copy = copy_properties(&message, &state, Vec::new(), 4_096 << (frame % 6));
    let copied = Message { properties: copy, ..Message::default() };
    let (again, invalid) = RetryState::read(&copied, None);
    assert!(invalid.is_empty(), "{invalid:?}");
    assert_eq!((again.attempts, again.round), (state.attempts, state.round));
    let _ = DeadLetter::read(&message);
});
