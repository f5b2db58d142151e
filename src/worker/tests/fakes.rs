//! Fakes of the CRM, the broker and the ledger, and a worker that uses them.

mod ledger;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{
    Acker, CompareOwners as _, Delivery, DeliveryGone, HeaderValue, Headers, Message, Owners, Properties, Publish,
    PublishError,
};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::crm::Crm;
use crate::crm::classify::{HttpResult, Reply};
use crate::gate::Gate;
use crate::ledger::memory::MemoryLedger;
use crate::ledger::{
    Change, Changed, Entry, Key, KeyPrefix, KnownResult, Ledger, LedgerError, LedgerMetadata, Limits, Owner,
};
use crate::message::mapper::Mapper;
use crate::message::retry_state::string;
use crate::observe::events::Telemetry;
use crate::retry::Schedule;
use crate::settle::Settler;
use crate::worker::ownership::{Ownership, ProofConditions};
use crate::worker::recorder::Recorder;
use crate::worker::{InFlightIds, ORPHAN_MARGIN, Worker};

pub(super) use self::ledger::{FakeLedger, LedgerFailure, key};

pub(super) const BODY: &str = r#"{"name": "a", "name_module": "cases", "completion_date": "2026-04-01 10:00:00", "id_record": "7", "wolkvox_owner": "ana"}"#;
pub(super) const PANIC: &str = "on purpose";

/// How the CRM answers one request.
#[derive(Clone, Debug)]
pub(super) enum CrmAnswer {
    Created,
    /// An HTTP status without a `code` in the body.
    Status(u16),
    /// HTTP 200 with this body.
    Body(&'static str),
    /// No answer comes. It is not known whether the task was created.
    NoAnswer,
    Unreachable,
    Panic,
}

/// A CRM that gives the answers of a list and then creates every task.
#[derive(Default)]
pub(super) struct FakeCrm {
    pub(super) script: Mutex<VecDeque<CrmAnswer>>,
    pub(super) takes: Mutex<Duration>,
    /// The bodies of the requests in their order.
    pub(super) requests: Mutex<Vec<String>>,
    pub(super) questions: AtomicU32,
    pub(super) open: AtomicU32,
    /// Whether it answers questions about tokens.
    pub(super) is_down: AtomicBool,
    /// The body of its answers about tokens; empty for a verdict 200 without numbers.
    pub(super) token_information: Mutex<&'static str>,
}

fn reply(status: u16, body: &str) -> HttpResult {
    HttpResult::Reply(Reply { status, retry_after: None, is_cut: false, body: body.as_bytes().to_vec() })
}

impl Crm for FakeCrm {
    fn insert<'a>(&'a self, _: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult> {
        async move {
            self.requests.lock().unwrap().push(String::from_utf8(body.to_vec()).unwrap());
            let answer = self.script.lock().unwrap().pop_front().unwrap_or(CrmAnswer::Created);
            assert!(!matches!(answer, CrmAnswer::Panic), "{PANIC}");
            self.open.fetch_add(1, Ordering::SeqCst);
            let takes = *self.takes.lock().unwrap();
            sleep(takes).await;
            self.open.fetch_sub(1, Ordering::SeqCst);
            match answer {
                CrmAnswer::Created | CrmAnswer::Panic => {
                    reply(200, r#"{"code": "200", "error": null, "msg": "ok", "data": []}"#)
                }
                CrmAnswer::Status(status) => reply(status, "<html>"),
                CrmAnswer::Body(body) => reply(200, body),
                CrmAnswer::NoAnswer => HttpResult::NoAnswer("timed out".to_owned()),
                CrmAnswer::Unreachable => HttpResult::NotSent("connection refused".to_owned()),
            }
        }
        .boxed()
    }

    fn token_information<'a>(&'a self, _: &'a SecretString) -> BoxFuture<'a, HttpResult> {
        self.questions.fetch_add(1, Ordering::SeqCst);
        let answer = match (self.is_down.load(Ordering::SeqCst), *self.token_information.lock().unwrap()) {
            (true, _) => reply(503, "<html>"),
            (false, "") => reply(200, r#"{"code": "200", "error": null, "msg": "", "data": {}}"#),
            (false, body) => reply(200, body),
        };
        ready(answer).boxed()
    }
}

/// A publisher that keeps the copies.
#[derive(Default)]
pub(super) struct FakeBroker {
    pub(super) copies: Mutex<Vec<(String, Properties)>>,
    pub(super) panics: AtomicU32,
    /// Refuses every copy for good.
    pub(super) refuses: AtomicBool,
}

impl Publish for FakeBroker {
    fn publish<'a>(&'a self, queue: &'a str, _: &'a [u8], copy: Properties) -> BoxFuture<'a, Result<(), PublishError>> {
        let panics = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(panics.is_err(), "{PANIC}");
        if self.refuses.load(Ordering::SeqCst) {
            return ready(Err(PublishError::Impossible("too large".to_owned()))).boxed();
        }
        self.copies.lock().unwrap().push((queue.to_owned(), copy));
        ready(Ok(())).boxed()
    }

    fn frame_max(&self) -> usize {
        131_072
    }
}

struct FakeAcker(Arc<Mutex<Vec<&'static str>>>);

impl FakeAcker {
    fn settled(&self, how: &'static str) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.0.lock().unwrap().push(how);
        ready(Ok(())).boxed()
    }
}

impl Acker for FakeAcker {
    fn is_open(&self) -> bool {
        true
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settled("acked")
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settled("requeued")
    }

    fn reject(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settled("rejected")
    }
}

pub(super) fn now() -> Timestamp {
    "2026-03-02T03:00:00Z".parse().unwrap()
}

/// One consumer at a time, and no time for another worker to stop.
pub(super) const CONDITIONS: ProofConditions = ProofConditions {
    single_active_consumer: true,
    stopping: Duration::ZERO,
    hold: Duration::from_secs(600),
    retention: Duration::from_secs(7 * 86_400),
};

/// A worker with fakes.
pub(super) struct TestWorker {
    pub(super) worker: Arc<Worker>,
    pub(super) crm: Arc<FakeCrm>,
    pub(super) ledger: Arc<FakeLedger>,
    pub(super) broker: Arc<FakeBroker>,
    pub(super) settled: Arc<Mutex<Vec<&'static str>>>,
    pub(super) gone: CancellationToken,
    pub(super) stop: CancellationToken,
}

impl TestWorker {
    /// A worker whose ledger proves that messages without an entry were not sent.
    pub(super) async fn new(more: &[(&str, &str)]) -> Self {
        Self::with_clock(more, Clock::new(now)).await
    }

    pub(super) async fn with_clock(more: &[(&str, &str)], clock: Clock) -> Self {
        let ledger = FakeLedger::with_clock(clock.clone());
        let about = LedgerMetadata { proves_unsent: true, ..ledger.about() };
        assert!(ledger.set_about(ledger.about(), about).await.unwrap());
        let test = Self::with(more, ledger, clock);
        test.connects().await;
        test
    }

    /// Connects to the queue, whose last consumer used this ledger.
    pub(super) async fn connects(&self) {
        let owners = Owners::Found(vec![self.worker.ownership.id()]);
        let compared = crate::broker::CompareOwners::compare(&*self.worker.ownership, owners).await;
        assert!(compared.is_ok(), "{compared:?}");
    }

    pub(super) fn with(more: &[(&str, &str)], ledger: Arc<FakeLedger>, clock: Clock) -> Self {
        let given = [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", "demo"), ("WTW_CRM_TOKENS", "a")];
        let given = given.iter().chain(more).map(|(key, value)| ((*key).into(), (*value).into()));
        let environment = given.collect::<std::collections::HashMap<_, _>>().into_iter().collect();
        let config = Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config;
        let telemetry = Arc::new(Telemetry::new("/", "wolkvox.tasks", Timestamp::UNIX_EPOCH));
        let max = config.retry.retry_after_max;
        let gate = Gate::new(&config.gate, &config.crm, max, clock.clone(), Box::new(|_, _| {}));
        let (crm, broker) = (Arc::<FakeCrm>::default(), Arc::<FakeBroker>::default());
        let (stop, mapper) = (CancellationToken::new(), Arc::new(Mapper::new(&config).unwrap()));
        let worker = Worker {
            crm: crm.clone(),
            gate: Arc::clone(&gate),
            schedule: Schedule::from(&config.retry),
            mapper: Arc::clone(&mapper),
            max_age: config.task.max_age,
            on_unknown: config.retry.on_unknown,
            hold: config.gate.hold,
            orphan_after: config.crm.request_timeout + ORPHAN_MARGIN,
            settler: Settler {
                publisher: broker.clone(),
                publish_gate: Arc::default(),
                queue: config.broker.queue.clone(),
                dead_letter_queue: config.broker.dead_letter_queue.clone(),
                hold: config.gate.hold,
                mapper: Arc::clone(&mapper),
                clock: clock.clone(),
                telemetry: Arc::clone(&telemetry),
            },
            recorder: Recorder::new(ledger.clone(), gate, Arc::clone(&telemetry), TaskTracker::new()),
            ownership: Arc::new(Ownership::new(ledger.clone(), String::new(), CONDITIONS, clock.clone())),
            owner: Owner(fastrand::u64(..)),
            operation: "demo".into(),
            ids: InFlightIds::default(),
            telemetry,
            clock,
            stop: stop.clone(),
        };
        let settled = Arc::default();
        Self { worker: Arc::new(worker), crm, ledger, broker, settled, gone: CancellationToken::new(), stop }
    }

    pub(super) fn crm_answers(&self, script: &[CrmAnswer]) {
        self.crm.script.lock().unwrap().extend(script.iter().cloned());
    }

    pub(super) fn ledger_fails(&self, fails: &[Option<LedgerFailure>]) {
        self.ledger.fails.lock().unwrap().extend(fails);
    }

    /// Processes and settles one message.
    pub(super) fn handle(&self, message: Message) -> BoxFuture<'static, ()> {
        let delivery = Delivery {
            message: Box::new(message),
            acker: Box::new(FakeAcker(Arc::clone(&self.settled))),
            gone: self.gone.clone(),
        };
        let unsettled = self.worker.ownership.arrived(delivery.message.was_delivered_before());
        Box::pin(Arc::clone(&self.worker).handle(delivery, unsettled))
    }

    pub(super) fn settled(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.settled.lock().unwrap())
    }

    pub(super) fn requests(&self) -> usize {
        self.crm.requests.lock().unwrap().len()
    }

    /// The only copy, as it arrives on the work queue.
    pub(super) fn take_copy(&self) -> Message {
        let copies = std::mem::take(&mut *self.broker.copies.lock().unwrap());
        let [(_, properties)] = <[_; 1]>::try_from(copies).expect("one copy");
        Message { body: BODY.as_bytes().to_vec(), properties, ..Message::default() }
    }

    /// The published copies: the queue, the kind of a dead letter, attempts, possibly created.
    pub(super) fn copies(&self) -> Vec<(String, Option<String>, i64, bool)> {
        let copies = std::mem::take(&mut *self.broker.copies.lock().unwrap());
        let read = |(queue, properties): (String, Properties)| {
            let message = Message { properties, ..Message::default() };
            let attempts = message.header("x-wtw-attempts").and_then(crate::broker::integer).unwrap();
            let possibly = matches!(message.header("x-wtw-possibly-created"), Some(HeaderValue::Boolean(true)));
            (queue, message.header("x-wtw-error-kind").and_then(string), attempts, possibly)
        };
        copies.into_iter().map(read).collect()
    }
}

pub(super) fn message(id: &str) -> Message {
    let properties = Properties::default();
    let properties = if id.is_empty() { properties } else { properties.with_message_id(id.into()) };
    Message { body: BODY.as_bytes().to_vec(), properties, ..Message::default() }
}

pub(super) fn redelivered(id: &str) -> Message {
    Message { redelivered: true, ..message(id) }
}

pub(super) fn with_headers(message: Message, more: &[(&str, HeaderValue)]) -> Message {
    let mut headers = Headers::default();
    for (name, value) in more {
        headers.insert((*name).into(), value.clone());
    }
    let properties = message.properties.clone().with_headers(headers);
    Message { properties, ..message }
}
