//! A message's task: what it takes, and panics on the way. Whatever crashes, its delivery is settled, and settled once.

mod ledger;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::{BoxFuture, ready};
use secrecy::SecretString;
use tracing::{Event, Metadata, Subscriber, span, subscriber};

use super::*;
use crate::broker::{HeaderValue, Headers, Properties, Publish, PublishError};
use crate::config::{Config, Sources};
use crate::crm::classify::HttpResult;
use crate::ledger::Limits;
use crate::ledger::memory::MemoryLedger;
use crate::message::retry_state::{ATTEMPTS, ERROR_MESSAGE, POSSIBLY_CREATED, string};

const CRASH: &str = "on purpose";

/// Where it crashes, and how often.
#[derive(Clone, Copy, Debug, Default)]
struct Crashes {
    /// The clock, as processing and the ledger ask it.
    clock: u32,
    /// The clock, as settling asks it.
    settling: u32,
    publisher: u32,
}

/// What the delivery came to: each copy, and how it was settled.
#[derive(Debug, Default)]
struct Outcome {
    copies: Mutex<Vec<(String, Vec<u8>, Properties)>>,
    settled: Mutex<Vec<&'static str>>,
}

fn clock(crashes: u32) -> Clock {
    let left = AtomicU32::new(crashes);
    Clock::new(move || {
        let crash = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(crash.is_err(), "{CRASH}");
        "2026-03-02T03:00:00Z".parse().unwrap()
    })
}

struct Office;

impl Crm for Office {
    fn insert<'a>(&'a self, _: &'a SecretString, _: Bytes) -> BoxFuture<'a, HttpResult> {
        panic!("{CRASH}")
    }

    fn token_information<'a>(&'a self, _: &'a SecretString) -> BoxFuture<'a, HttpResult> {
        panic!("{CRASH}")
    }
}

struct Press {
    outcome: Arc<Outcome>,
    crashes: AtomicU32,
}

impl Publish for Press {
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        let crash = self.crashes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(crash.is_err(), "{CRASH}");
        self.outcome.copies.lock().unwrap().push((queue.to_owned(), body.to_vec(), properties));
        Box::pin(ready(Ok(())))
    }

    fn frame_max(&self) -> usize {
        131_072
    }
}

struct Ticket(Arc<Outcome>);

impl Acker for Ticket {
    fn usable(&self) -> bool {
        true
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.0.settled.lock().unwrap().push("acked");
        Box::pin(ready(Ok(())))
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.0.settled.lock().unwrap().push("returned");
        Box::pin(ready(Ok(())))
    }
}

fn sources() -> Sources {
    let given = [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TOKENS", "a")];
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    Sources { environment, ..Sources::default() }
}

fn worker(crashes: Crashes, outcome: &Arc<Outcome>) -> Arc<Worker> {
    let config = Config::load(&sources(), &[]).unwrap().config;
    let events = Arc::new(Events::new("/", "wolkvox.tasks", Timestamp::UNIX_EPOCH));
    let limits = Limits { retention: config.ledger.retention, max_entries: config.ledger.max_entries };
    Arc::new(Worker {
        crm: Arc::new(Office),
        gate: Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, clock(0), Box::new(|_, _| {})),
        schedule: Schedule::from(&config.retry),
        mapping: Mapping::new(&config).unwrap(),
        rules: Rules {
            unknown_fields: config.task.unknown_fields,
            max_age: None,
            on_unknown: config.retry.on_unknown,
            hold: config.gate.hold,
            patience: Duration::from_secs(25),
        },
        settler: Settler {
            publisher: Arc::new(Press { outcome: Arc::clone(outcome), crashes: AtomicU32::new(crashes.publisher) }),
            queue: config.broker.queue.clone(),
            dead_letter_queue: config.broker.dead_letter_queue.clone(),
            clock: clock(crashes.settling),
            events: Arc::clone(&events),
        },
        ledger: Arc::new(MemoryLedger::new(limits, clock(0))),
        running: Running::default(),
        events,
        clock: clock(crashes.clock),
        stop: CancellationToken::new(),
    })
}

/// A message that asks for nothing but what crashes: its attempts are ill-typed.
fn message(body: &[u8]) -> Message {
    let mut headers = Headers::default();
    headers.insert(ATTEMPTS.into(), HeaderValue::Boolean(true));
    headers.insert("trace".into(), HeaderValue::LongLongInt(7));
    let properties = Properties::default().with_message_id("id".into()).with_headers(headers);
    Message { body: body.to_vec(), properties, routing_key: "wolkvox.tasks".to_owned(), ..Message::default() }
}

/// The one dead letter that handling a message ends in; its delivery is acked after it, once.
async fn dead_letter(crashes: Crashes, body: &[u8]) -> Message {
    let outcome = Arc::new(Outcome::default());
    let worker = worker(crashes, &outcome);
    let delivery = Delivery {
        message: Box::new(message(body)),
        receipt: Box::new(Ticket(Arc::clone(&outcome))),
        lost: CancellationToken::new(),
    };
    Arc::clone(&worker).handle(delivery).await;
    assert_eq!(*outcome.settled.lock().unwrap(), ["acked"], "{crashes:?}");
    let counts = worker.events.counts();
    assert_eq!((counts.in_flight, counts.unconfirmed), (0, 0), "{crashes:?}");
    assert_eq!(counts.dead_lettered.values().sum::<u64>(), 1, "{crashes:?}");
    let mut copies = std::mem::take(&mut *outcome.copies.lock().unwrap());
    assert_eq!(copies.len(), 1, "{crashes:?}");
    let (queue, body, properties) = copies.remove(0);
    assert_eq!(queue, "wolkvox.tasks.dead");
    Message { body, properties, ..Message::default() }
}

#[track_caller]
fn assert_poison(letter: &Message, body: &[u8]) {
    let said = |name| letter.header(name).and_then(string);
    assert_eq!((letter.id(), &*letter.body), (Some("id"), body));
    assert_eq!(said("x-wtw-error-kind").as_deref(), Some("poison"));
    assert_eq!(said(ERROR_MESSAGE).as_deref(), Some("processing it crashed"));
}

const TASK: &[u8] =
    br#"{"name":"n","name_module":"m","completion_date":"2026-03-03 10:00:00","id_record":"1","wolkvox_owner":"o"}"#;

/// A log that crashes when it is told of ill-typed headers.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        assert!(event.metadata().fields().field("headers").is_none(), "{CRASH}");
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_the_headers_are_read_is_poison() {
    // With one subscriber alone, a thread without any that comes to the event first would turn it off for all.
    let _second = tracing::Dispatch::new(Log);
    let _log = subscriber::set_default(Log);
    let letter = dead_letter(Crashes::default(), b"no task").await;
    assert_poison(&letter, b"no task");
    assert_eq!(letter.header("trace"), Some(&HeaderValue::LongLongInt(7)));
    assert_eq!(letter.header(POSSIBLY_CREATED), Some(&HeaderValue::Boolean(true)), "nobody knows");
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_it_is_processed_or_of_the_ledger_after_it_is_poison() {
    for crashes in
        [Crashes::default(), Crashes { clock: 1, ..Crashes::default() }, Crashes { clock: 2, ..Crashes::default() }]
    {
        let letter = dead_letter(crashes, TASK).await;
        assert_poison(&letter, TASK);
        assert_eq!(letter.header(POSSIBLY_CREATED), Some(&HeaderValue::Boolean(true)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_it_is_settled_is_poison_without_its_headers_where_it_must() {
    for (settling, headers) in [(1, true), (2, false)] {
        let letter = dead_letter(Crashes { settling, ..Crashes::default() }, b"no task").await;
        assert_poison(&letter, b"no task");
        assert_eq!(letter.header("trace").is_some(), headers);
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_panics_is_asked_again() {
    let letter = dead_letter(Crashes { publisher: 3, ..Crashes::default() }, b"no task").await;
    assert_eq!(letter.header("x-wtw-error-kind").and_then(string).as_deref(), Some("invalid_message"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_settled_at_all_is_returned() {
    let outcome = Arc::new(Outcome::default());
    let receipt = Box::new(Ticket(Arc::clone(&outcome)));
    let delivery = Delivery { message: Box::new(message(b"no task")), receipt, lost: CancellationToken::new() };
    worker(Crashes { settling: 3, ..Crashes::default() }, &outcome).handle(delivery).await;
    assert_eq!(*outcome.settled.lock().unwrap(), ["returned"]);
    assert!(outcome.copies.lock().unwrap().is_empty());
}

/// Hundreds of messages are in hand, and what they take together is to stay near the processor.
#[tokio::test]
async fn a_messages_task_is_small() {
    let outcome = Arc::new(Outcome::default());
    let worker = worker(Crashes::default(), &outcome);
    let receipt = Box::new(Ticket(Arc::clone(&outcome)));
    let delivery = Delivery { message: Box::new(message(b"")), receipt, lost: CancellationToken::new() };
    let outer = size_of_val(&Arc::clone(&worker).handle(delivery));
    let receipt = Box::new(Ticket(outcome));
    let delivery = Delivery { message: Box::new(message(b"")), receipt, lost: CancellationToken::new() };
    let inner = size_of_val(&worker.handle_within(delivery, &Span::none()));
    assert!(outer <= 192 && inner <= 2_048, "{outer} and {inner} bytes");
}
