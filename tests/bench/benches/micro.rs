//! Instructions of single stages, counted by Valgrind. Other load of the machine does not change them, so a regression is visible.
//! `make bench-micro` prints them with the difference from the last run. Stages with hashing vary by one percent, the ledger's file
//! by two, because its threads decide which records share a batch.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gungraun::prelude::*;
use gungraun::{Callgrind, EntryPoint};
use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};
use wolkvox_task_worker::broker::Message;
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config::{Config, Sources, UnknownFields};
use wolkvox_task_worker::crm::classify::{Classified, HttpResult, Reply, classify};
use wolkvox_task_worker::ledger::memory::MemoryLedger;
use wolkvox_task_worker::ledger::sqlite::SqliteLedger;
use wolkvox_task_worker::ledger::{
    AttemptResult, Change, Claim, ClaimId, Digest, Key, Ledger, Limits, NewClaim, Owner,
};
use wolkvox_task_worker::message::mapper::{Mapped, Mapper};
use wolkvox_task_worker::message::payload::Mapping;
use wolkvox_task_worker::message::retry_state::RetryState;
use wolkvox_task_worker::message::sample::Sample;
use wolkvox_task_worker::message::task::{Decoded, decode};

const BODY: &[u8] =
    br#"{"name":"Call back about order 4711","name_module":"cases","completion_date":"2030-03-01 10:00:00",
"id_record":"4711","wolkvox_owner":"agent@example.com","description":"The customer asked on the phone for a call back.",
"status":"created","priority":"high","remember":true,"reminder_date":"2030-03-01T09:00:00-05:00"}"#;

#[library_benchmark]
fn digest_of_a_body() -> Digest {
    Digest::of(black_box(BODY))
}

#[library_benchmark]
fn decode_a_task() -> Decoded<'static> {
    decode(black_box(BODY), UnknownFields::Reject).expect("a task")
}

fn decoded() -> (Mapping, Decoded<'static>) {
    let settings = [("WTW_CRM_OPERATION", "bench"), ("WTW_CRM_TIMEZONE", "America/Bogota")];
    let environment = settings.map(|(name, value)| (name.into(), value.into())).into();
    let sources = Sources { environment, ..Sources::default() };
    let config = Config::load(&sources, &["crm.operation"]).expect("a configuration").config;
    (Mapping::new(&config).expect("a mapping"), decode(BODY, UnknownFields::Reject).expect("a task"))
}

#[library_benchmark]
#[bench::usual(decoded())]
fn map_a_task((mapping, decoded): (Mapping, Decoded<'static>)) -> Vec<u8> {
    serde_json::to_vec(&mapping.map(black_box(decoded)).expect("a payload")).expect("JSON")
}

/// An event of a helpdesk with 2 KB.
fn event() -> Vec<u8> {
    let comment = "The customer asked on the phone for a call back, and said that the line was bad. ".repeat(20);
    format!(
        r#"{{"number":17,"rating":1,"closed_at":"2026-12-30T17:30:00-05:00","customer":{{"name":"Ana","crm_id":4711,"vip":false,
        "phones":["+57 601 555 0100","+57 601 555 0101"]}},"total":17.50,"tags":["slow","web"],"comment":"{comment}"}}"#
    )
    .into_bytes()
}

const RULES: &str = r#"
[crm]
timezone = "America/Bogota"
[[rules]]
name = "opened"
routing_key = "ticket.opened.#"
action = "skip"
[[rules]]
name = "closed"
routing_key = "ticket.closed.#"
when = "body.rating < 3 and body.customer.vip == false"
message_id = "ticket-{{ body.number }}"
[rules.task]
name = "Call {{ body.customer.name }} about ticket {{ body.number }}"
name_module = "cases"
id_record = "{{ body.customer.crm_id }}"
completion_date = "{{ body.closed_at | datetime | add_business_days(2) | at('09:00') }}"
remember = true
reminder_date = "{{ task.completion_date | add('-1h') }}"
wolkvox_owner = "ADMIN_@demo"
priority = "{{ 'high' if body.rating == 1 else 'normal' }}"
description = "{{ body.comment | truncate(500) }}\n[ref:{{ message_id }}]"
"#;

/// A mapper and a message for it.
fn mapper(rules: &str, body: Vec<u8>) -> (Mapper, Message, RetryState) {
    let path = std::env::temp_dir().join(format!("bench-{}.toml", std::process::id()));
    std::fs::write(&path, rules).expect("written");
    let environment = vec![("WTW_CRM_OPERATION".into(), "bench".into())];
    let loaded = Config::load(&Sources { file: Some(path.clone()), environment, ..Sources::default() }, &[]);
    let _ = std::fs::remove_file(path);
    let mapper = Mapper::new(&loaded.expect("a configuration").config).expect("rules");
    let message =
        Sample { body, routing_key: "ticket.closed.web".to_owned(), ..Sample::default() }.message().expect("a message");
    let state = RetryState::new(&message);
    (mapper, message, state)
}

#[library_benchmark]
#[bench::task_message(mapper("", BODY.to_vec()))]
#[bench::event_through_a_rule(mapper(RULES, event()))]
fn map_a_message((mapper, message, state): (Mapper, Message, RetryState)) -> Mapped {
    mapper.map(black_box(&message), &state, Timestamp::UNIX_EPOCH).expect("a task")
}

fn reply(status: u16, body: &str) -> HttpResult {
    HttpResult::Reply(Reply { status, retry_after: None, is_cut: false, body: body.as_bytes().to_vec() })
}

#[library_benchmark]
#[bench::created(reply(200, r#"{"code":"200","error":"","msg":"Task created","data":{"id":"4711"}}"#))]
#[bench::rejected(reply(412, r#"{"code":412,"error":"THE RECORD DOES NOT EXIST IN THE MODULE","data":[]}"#))]
#[bench::a_page(reply(502, &"<p>Bad gateway</p>".repeat(100)))]
fn classify_a_reply(answer: HttpResult) -> Classified {
    classify(black_box(&answer), Timestamp::UNIX_EPOCH)
}

/// The number of messages that are recorded together.
const TOGETHER: usize = 64;

/// An open ledger.
struct Fixture {
    runtime: Runtime,
    ledger: Arc<dyn Ledger>,
    keys: Vec<Key>,
    folder: Option<PathBuf>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn fixture(ledger: impl Ledger + 'static, runtime: Runtime, folder: Option<PathBuf>, messages: usize) -> Fixture {
    let keys = (0..messages).map(|number| Key::new("queue", "operation", format!("message-{number}"))).collect();
    Fixture { runtime, ledger: Arc::new(ledger), keys, folder }
}

const LIMITS: Limits = Limits { retention: Duration::from_secs(604_800), max_entries: 1_000_000 };

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn memory() -> Fixture {
    fixture(MemoryLedger::new(LIMITS, Clock::system()), runtime(), None, TOGETHER)
}

fn file() -> Fixture {
    let (runtime, folder) = (runtime(), std::env::temp_dir().join(format!("bench.{}", std::process::id())));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("ledger.db");
    let ledger = runtime.block_on(SqliteLedger::open(&path, LIMITS, Clock::system())).expect("a file");
    fixture(ledger, runtime, Some(folder), 64 * TOGETHER)
}

#[library_benchmark]
#[bench::memory(memory())]
fn ledger_of_64_messages(fixture: Fixture) -> Fixture {
    succeed(&fixture);
    fixture
}

/// Counts the whole process, because the file ledger works on its own threads.
fn with_all_threads() -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::with_args(["--collect-atstart=yes"]).entry_point(EntryPoint::None));
    config
}

#[library_benchmark(config = with_all_threads())]
#[bench::file(file())]
fn ledger_of_4096_messages(fixture: Fixture) {
    succeed(&fixture);
}

/// The records of successful messages, many together: a claim and a result for each.
fn succeed(fixture: &Fixture) {
    let one = async |(id, key): (u64, &Key)| {
        let (digest, at, claim) = (Digest([7; 32]), Timestamp::UNIX_EPOCH, ClaimId(id));
        let new = NewClaim {
            claim: Claim { id: claim, owner: Owner(1), at },
            digest,
            attempts: 1,
            in_doubt: false,
            reset: false,
            replay: None,
            epoch: 0,
        };
        fixture.ledger.change(key, Change::Claim { expected: None, new }).await.expect("written");
        let result = AttemptResult::Created;
        let finish = Change::Finish { id: claim, digest, result, attempts: 1, at, epoch: 0 };
        fixture.ledger.change(key, finish).await.expect("written");
    };
    for keys in fixture.keys.chunks(TOGETHER) {
        fixture.runtime.block_on(futures_util::future::join_all((0..).zip(keys).map(one)));
    }
}

library_benchmark_group!(
    name = stages,
    benchmarks = [
        digest_of_a_body,
        decode_a_task,
        map_a_task,
        map_a_message,
        classify_a_reply,
        ledger_of_64_messages,
        ledger_of_4096_messages
    ]
);

main!(library_benchmark_groups = stages);
