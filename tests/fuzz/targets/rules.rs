//! Any bytes as an event, through rules with the filters that do most work: a task, a skip, or a reason, never a panic.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use wolkvox_task_worker::config::{Config, Sources};
use wolkvox_task_worker::message::mapper::{Mapped, Mapper};
use wolkvox_task_worker::message::retry_state::RetryState;
use wolkvox_task_worker::message::sample::Sample;

const RULES: &str = r#"
[crm]
timezone = "America/Santiago"

[events]
unmatched = "skip"

[[rules]]
name = "all"
when = "body.a < 3 or body.b == 'x' or ce.type == 't' or body.list | length > 0 or body is mapping"
message_id = "{{ body.id | default(ce.id | default('none', true), true) }}"

[rules.task]
name = "{{ body.name | default('n') | trim | title | truncate(40) }}"
name_module = "{{ {'a': 'cases'}.get(body.kind | default('a'), 'leads') }}"
id_record = "{{ body.phone | default(1) | string | digits | default('7', true) }}"
completion_date = "{{ body.at | default(now) | datetime | add('1d 2h') | add_business_days(3) | at('02:30') | in_timezone('Europe/Madrid') }}"
remember = "{{ body.list is defined }}"
reminder_date = "{{ task.completion_date | add(body.span | default('-1h')) }}"
wolkvox_owner = "{{ body.date | default('01/02/2027') | datetime('%d/%m/%Y') | format(body.form | default('%Y')) }}"
priority = "{{ 'high' if body.list | default([]) | sort | map('string') | unique | length > 1 else 'normal' }}"
status = "{{ 'created' if (body.list | default([1]) | sum | round(2)) // (body.a | default(7)) in [body.list | default([1]) | max] else 'created' }}"
description = """
{% for x in body.list | default([]) %}{{ x }};{% endfor %}
{{ body.text | default('') | regex_replace('(.)|[^a]', '$1') }}{{ body.text | default('x') | replace(body.c | default('a'), body.text | default('b')) }}
{{ body.list | default([]) | join(body.c | default(', ')) }}"""
"#;

static MAPPER: LazyLock<Mapper> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("wtw-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, RULES).expect("written");
    let environment = vec![("WTW_CRM_OPERATION".into(), "demo".into())];
    let loaded = Config::load(&Sources { file: Some(path.clone()), environment, ..Sources::default() }, &[]);
    let _ = std::fs::remove_file(path);
    Mapper::new(&loaded.expect("valid").config).expect("rules")
});

fuzz_target!(|body: &[u8]| {
    let message =
        Sample { body: body.to_vec(), routing_key: "a.b".to_owned(), ..Sample::default() }.message().expect("short");
    let state = RetryState::new(&message);
    let once = MAPPER.map(&message, &state, Timestamp::UNIX_EPOCH);
    match &once {
        Ok(Mapped::Send { body, message_id, .. }) => {
            assert!(serde_json::from_slice::<serde_json::Value>(body).expect("JSON")["fields"].is_object());
            assert!(message_id.as_ref().is_none_or(|id| !id.is_empty() && id.len() <= 255));
        }
        Ok(Mapped::Skip { .. }) => {}
        Err(failure) => assert!(!failure.message.is_empty()),
    }
    assert_eq!(MAPPER.map(&message, &state, Timestamp::UNIX_EPOCH), once, "the same each time");
});
