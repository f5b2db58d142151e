//! A ledger that fails while a message is sent, and what another worker records meanwhile.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use futures_util::FutureExt as _;

use super::*;
use crate::config;
use crate::crm::classify::Reply;
use crate::gate::{Access, Closed, Slot};
use crate::ledger::{Digest, Entry, Key, LedgerError, Record, State, open};
use crate::message::retry_state::SCHEMA;

/// A CRM that gives these answers, and then makes every task.
#[derive(Default)]
struct Desk {
    posts: AtomicUsize,
    answers: Mutex<VecDeque<Answer>>,
}

impl Desk {
    fn posts(&self) -> usize {
        self.posts.load(Ordering::SeqCst)
    }
}

impl Crm for Desk {
    fn insert<'a>(&'a self, _: &'a SecretString, _: Bytes) -> BoxFuture<'a, Answer> {
        self.posts.fetch_add(1, Ordering::SeqCst);
        let next = self.answers.lock().unwrap().pop_front();
        Box::pin(ready(next.unwrap_or_else(|| said(200, "SUCCESS"))))
    }

    fn token_information<'a>(&'a self, _: &'a SecretString) -> BoxFuture<'a, Answer> {
        Box::pin(ready(Answer::NoAnswer("no one there".to_owned())))
    }
}

fn said(code: u16, message: &str) -> Answer {
    let body = format!(r#"{{"code":"{code}","error":"null","msg":"{message}"}}"#);
    Answer::Reply(Reply { status: code, retry_after: None, body: body.into_bytes() })
}

/// What happens as a record is made.
#[derive(Clone, Copy, Default)]
struct Turn {
    /// What another worker records before it,
    before: &'static [Record],
    /// whether it is taken then,
    lost: bool,
    /// whether it fails,
    fails: bool,
    /// and what another worker records before the worker hears of that.
    after: &'static [Record],
}

/// Of the one message that these tests are about.
fn key() -> Key {
    Key::new("wolkvox.tasks", "demo", "m-1")
}

/// A ledger shared with another worker, as this one reaches it.
#[derive(Clone)]
struct Line {
    shared: Arc<MemoryLedger>,
    turns: Arc<Mutex<VecDeque<Turn>>>,
    down: Arc<AtomicBool>,
    /// How often it was looked into,
    looks: Arc<AtomicU32>,
    /// and told something.
    records: Arc<AtomicU32>,
    /// Cancelled when it is looked into.
    at_look: CancellationToken,
}

impl Line {
    fn new(turns: impl IntoIterator<Item = Turn>) -> Self {
        let limits = Limits { retention: Duration::from_secs(86_400), max_entries: 1_000 };
        Self {
            shared: Arc::new(MemoryLedger::new(limits, clock(0))),
            turns: Arc::new(Mutex::new(turns.into_iter().collect())),
            down: Arc::default(),
            looks: Arc::default(),
            records: Arc::default(),
            at_look: CancellationToken::new(),
        }
    }

    fn is_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    async fn entry(&self) -> Option<Entry> {
        self.shared.look(&key()).await.unwrap()
    }

    /// Another worker records something.
    async fn learns(&self, record: Record) {
        self.shared.record(&key(), Digest::of(TASK), record, clock(0).now()).await.unwrap();
    }
}

impl Ledger for Line {
    fn look<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.at_look.cancel();
        if self.down.load(Ordering::SeqCst) { Box::pin(ready(Err(failure()))) } else { self.shared.look(key) }
    }

    fn record<'a>(
        &'a self,
        key: &'a Key,
        digest: Digest,
        record: Record,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Option<Entry>, LedgerError>> {
        self.records.fetch_add(1, Ordering::SeqCst);
        async move {
            if self.down.load(Ordering::SeqCst) {
                return Err(failure());
            }
            let turn = self.turns.lock().unwrap().pop_front().unwrap_or_default();
            for other in turn.before {
                self.shared.record(key, digest, *other, now).await?;
            }
            let mut answer = Err(failure());
            if !turn.fails || turn.lost {
                answer = self.shared.record(key, digest, record, now).await;
            }
            for other in turn.after {
                self.shared.record(key, digest, *other, now).await?;
            }
            if turn.fails { Err(failure()) } else { answer }
        }
        .boxed()
    }

    fn len(&self) -> u64 {
        self.shared.len()
    }
}

fn failure() -> LedgerError {
    static FAILURE: LazyLock<LedgerError> = LazyLock::new(|| {
        let store = config::LedgerStore::File("/nonexistent/ledger.redb".into());
        let config = config::Ledger { store, url_file: None, retention: Duration::from_secs(1), max_entries: 1 };
        let opening = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(open(&config, Clock::system())).err()
        });
        opening.join().unwrap().unwrap()
    });
    FAILURE.clone()
}

const INTEND: Record = Record::Intend { attempts: 1 };
const UNKNOWN: Record = Record::Close { result: Closing::Unknown, attempts: 1 };
const FAILED: Record = Record::Close { result: Closing::NotCreated, attempts: 1 };
const CREATED: Record = Record::Close { result: Closing::Created, attempts: 1 };
const FAILS: Turn = Turn { before: &[], lost: false, fails: true, after: &[] };

/// A worker at that ledger, which allows one attempt.
struct Post {
    worker: Arc<Worker>,
    crm: Arc<Desk>,
    outcome: Arc<Outcome>,
}

impl Post {
    fn new(ledger: &Line, change: impl FnOnce(&mut Worker)) -> Self {
        let (outcome, crm) = (Arc::new(Outcome::default()), Arc::new(Desk::default()));
        let mut made = Arc::into_inner(worker(Crashes::default(), &outcome)).unwrap();
        made.crm = Arc::clone(&crm) as _;
        made.ledger = Arc::new(ledger.clone());
        let mut retry = Config::load(&sources(), &[]).unwrap().config.retry;
        (retry.immediate_attempts, retry.delays) = (1, Vec::new());
        made.schedule = Schedule::from(&retry);
        change(&mut made);
        Self { worker: Arc::new(made), crm, outcome }
    }

    fn strict(ledger: &Line) -> Self {
        Self::new(ledger, |worker| worker.rules.on_unknown = OnUnknown::DeadLetter)
    }

    fn answering(self, answer: Answer) -> Self {
        self.crm.answers.lock().unwrap().push_back(answer);
        self
    }

    async fn takes(&self, id: Option<&str>, redelivered: bool) {
        let mut properties = Properties::default().with_timestamp(0);
        if let Some(id) = id {
            properties = properties.with_message_id(id.into());
        }
        self.takes_with(properties, redelivered).await;
    }

    async fn takes_with(&self, properties: Properties, redelivered: bool) {
        self.takes_message(Message { body: TASK.to_vec(), properties, redelivered, ..Message::default() }).await;
    }

    async fn takes_message(&self, message: Message) {
        let message = Message { routing_key: "wolkvox.tasks".to_owned(), ..message };
        let receipt = Box::new(Ticket(Arc::clone(&self.outcome)));
        let delivery = Delivery { message: Box::new(message), receipt, lost: CancellationToken::new() };
        Arc::clone(&self.worker).handle(delivery).await;
    }

    /// Both slots of its token, taken.
    async fn slots(&self) -> Vec<Slot> {
        let (gate, much_later) = (&self.worker.gate, Instant::now() + Duration::from_secs(3_600));
        let mut taken = Vec::new();
        for _ in 0..2 {
            let mut pass = gate.pass(much_later).await.ok().unwrap();
            taken.push(gate.slot(&mut pass, much_later).await.ok().unwrap());
        }
        taken
    }

    /// How the deliveries were settled, and where the copies went, with the kind and the sentence of dead letters.
    fn came_to(&self) -> (Vec<&'static str>, Vec<[String; 3]>) {
        let copies = self.outcome.copies.lock().unwrap();
        let told = copies.iter().map(|(queue, _, properties)| {
            let message = Message { properties: properties.clone(), ..Message::default() };
            let said = |name| message.header(name).and_then(string).unwrap_or_default();
            [queue.clone(), said("x-wtw-error-kind"), said(ERROR_MESSAGE)]
        });
        (self.outcome.settled.lock().unwrap().clone(), told.collect())
    }

    #[track_caller]
    fn died_of(&self, kind: &str) -> String {
        let (settled, mut copies) = self.came_to();
        assert_eq!((settled.as_slice(), copies.len()), (&["acked"][..], 1), "{copies:?}");
        let [queue, found, sentence] = copies.remove(0);
        assert_eq!((queue.as_str(), found.as_str()), ("wolkvox.tasks.dead", kind));
        sentence
    }

    #[track_caller]
    fn was_held(&self) {
        let (settled, copies) = self.came_to();
        assert_eq!((settled.as_slice(), copies.len()), (&["acked"][..], 1), "{copies:?}");
        assert_eq!(copies[0][0], "wolkvox.tasks.retry.hold");
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_made_while_the_intent_was_recorded_is_not_sent() {
    let made = &[INTEND, CREATED];
    for turns in [
        // It stood still between its last look and its intent,
        vec![Turn { before: made, ..Turn::default() }],
        // or was cut off from the ledger, which took its first intent or not.
        vec![Turn { after: made, ..FAILS }],
        vec![FAILS, FAILS, Turn { before: made, ..Turn::default() }],
        vec![Turn { lost: true, after: made, ..FAILS }],
    ] {
        let ledger = Line::new(turns);
        let post = Post::strict(&ledger);
        post.takes(Some("m-1"), false).await;
        assert_eq!((post.crm.posts(), post.came_to()), (0, (vec!["acked"], vec![])));
        assert_eq!(ledger.entry().await.map(|entry| entry.state), Some(State::Created));
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_delivery_is_asked_about_with_its_intent_and_another_before_it() {
    for (redelivered, looks) in [(false, 0), (true, 1)] {
        let ledger = Line::new([]);
        let post = Post::strict(&ledger);
        post.takes(Some("m-1"), redelivered).await;
        assert_eq!((post.crm.posts(), post.came_to()), (1, (vec!["acked"], vec![])));
        assert_eq!(ledger.looks.load(Ordering::SeqCst), looks);
        assert_eq!(ledger.entry().await.map(|entry| entry.state), Some(State::Created));
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_delivery_leaves_what_is_known_as_it_is() {
    for (known, kind) in [(INTEND, Some("unknown")), (UNKNOWN, Some("unknown")), (CREATED, None)] {
        let ledger = Line::new([]);
        ledger.learns(known).await;
        let before = ledger.entry().await;
        let post = Post::strict(&ledger);
        post.takes(Some("m-1"), false).await;
        assert_eq!((post.crm.posts(), ledger.entry().await), (0, before));
        match kind {
            Some(kind) => drop(post.died_of(kind)),
            None => assert_eq!(post.came_to(), (vec!["acked"], vec![])),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_up_before_the_ledger_was_asked() {
    let expires = |worker: &mut Worker| worker.rules.max_age = Some(Duration::from_secs(1));
    let ledger = Line::new([]);
    ledger.learns(CREATED).await;
    let post = Post::new(&ledger, expires);
    post.takes(Some("m-1"), false).await;
    assert_eq!((post.crm.posts(), post.came_to()), (0, (vec!["acked"], vec![])));
    let post = Post::new(&ledger, |_| {});
    let properties = Properties::default().with_message_id("m-1".into());
    post.takes_message(Message { body: b"no task".to_vec(), properties, ..Message::default() }).await;
    post.died_of("id_conflict");
}

#[tokio::test(start_paused = true)]
async fn what_is_created_is_acked_while_the_gate_is_closed() {
    let ledger = Line::new([]);
    ledger.learns(CREATED).await;
    let post = Post::strict(&ledger);
    post.worker.gate.ledger_failed(Access::Write);
    post.takes(Some("m-1"), false).await;
    assert_eq!((post.crm.posts(), post.came_to()), (0, (vec!["acked"], vec![])));
}

#[tokio::test(start_paused = true)]
async fn what_a_first_delivery_says_of_itself_hides_nothing_that_is_known() {
    let ledger = Line::new([]);
    let post = Post::strict(&ledger);
    let place = post.worker.running.enter(&key()).await;
    let other = async {
        // Longer than what the broker says counts as new.
        sleep(Duration::from_secs(1)).await;
        ledger.learns(UNKNOWN).await;
        drop(place);
    };
    let mut headers = Headers::default();
    headers.insert(POSSIBLY_CREATED.into(), HeaderValue::Boolean(true));
    let properties = Properties::default().with_message_id("m-1".into()).with_headers(headers);
    tokio::join!(post.takes_with(properties, false), other);
    assert_eq!(post.crm.posts(), 0);
    post.died_of("unknown");
}

#[tokio::test(start_paused = true)]
async fn what_is_created_is_acked_though_processing_it_crashes() {
    let ledger = Line::new([]);
    ledger.learns(CREATED).await;
    let post = Post::new(&ledger, |worker| worker.clock = clock(1));
    post.takes(Some("m-1"), false).await;
    assert_eq!((post.crm.posts(), post.came_to()), (0, (vec!["acked"], vec![])));
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_does_not_tell_when_it_failed_is_not_sent_beside_another_worker_either() {
    let ledger = Line::new([Turn { before: &[INTEND, UNKNOWN], ..Turn::default() }]);
    let post = Post::strict(&ledger);
    let mut headers = Headers::default();
    headers.insert(SCHEMA.into(), HeaderValue::LongLongInt(1));
    post.takes_with(Properties::default().with_message_id("m-1".into()).with_headers(headers), false).await;
    assert_eq!(post.crm.posts(), 0);
    post.died_of("unknown");
}

/// Of a delivery that the broker no longer waits for.
struct Gone;

impl Acker for Gone {
    fn usable(&self) -> bool {
        false
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(ready(Err(DeliveryGone)))
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(ready(Err(DeliveryGone)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_stopped_lost_or_stale_before_it_begins_has_nothing_forgotten() {
    for which in ["stopped", "lost", "stale"] {
        let ledger = Line::new([]);
        ledger.learns(UNKNOWN).await;
        let post = Post::strict(&ledger);
        let mut headers = Headers::default();
        headers.insert(SCHEMA.into(), HeaderValue::LongLongInt(1));
        let properties = Properties::default().with_message_id("m-1".into()).with_headers(headers);
        let message = Message { body: TASK.to_vec(), properties, ..Message::default() };
        let receipt: Box<dyn Acker> =
            if which == "stale" { Box::new(Gone) } else { Box::new(Ticket(Arc::clone(&post.outcome))) };
        let lost = CancellationToken::new();
        match which {
            "stopped" => post.worker.stop.cancel(),
            "lost" => lost.cancel(),
            _ => {}
        }
        Arc::clone(&post.worker).handle(Delivery { message: Box::new(message), receipt, lost }).await;
        let returned = if which == "stale" { vec![] } else { vec!["returned"] };
        assert_eq!((post.crm.posts(), post.came_to()), (0, (returned, vec![])), "{which}");
        assert_eq!(ledger.entry().await.map(|entry| entry.state), Some(State::Unknown), "{which}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_or_lost_while_the_ledger_is_asked_leaves_no_trace_in_it() {
    for which in ["stopped", "lost"] {
        let ledger = Line::new([]);
        let mut lost = CancellationToken::new();
        let post = Post::new(&ledger, |worker| match which {
            "stopped" => worker.stop = ledger.at_look.clone(),
            _ => lost = ledger.at_look.clone(),
        });
        let properties = Properties::default().with_message_id("m-1".into());
        let message = Message { body: TASK.to_vec(), properties, redelivered: true, ..Message::default() };
        let receipt = Box::new(Ticket(Arc::clone(&post.outcome)));
        Arc::clone(&post.worker).handle(Delivery { message: Box::new(message), receipt, lost }).await;
        assert_eq!((post.crm.posts(), post.came_to()), (0, (vec!["returned"], vec![])), "{which}");
        let (looks, records) = (ledger.looks.load(Ordering::SeqCst), ledger.records.load(Ordering::SeqCst));
        assert_eq!((looks, records), (1, 0), "{which}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_is_sending_when_the_intent_is_recorded_is_not_sent() {
    for turn in [Turn { before: &[INTEND], ..Turn::default() }, Turn { after: &[INTEND], ..FAILS }] {
        let ledger = Line::new([turn]);
        let post = Post::strict(&ledger);
        post.takes(Some("m-1"), false).await;
        assert_eq!(post.crm.posts(), 0);
        // The other one was heard of no more.
        post.died_of("unknown");
        assert_eq!(ledger.entry().await.map(|entry| entry.open_intents), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_began_while_a_message_waited_is_not_disturbed_by_an_intent() {
    // An intent on the other's would leave a doubt when that one ends.
    let ledger = Line::new([Turn { after: &[FAILED], ..Turn::default() }]);
    let post = Post::strict(&ledger);
    post.worker.gate.ledger_failed(Access::Write);
    let other = async {
        let record = async |record| {
            sleep(Duration::from_secs(1)).await;
            ledger.learns(record).await;
        };
        record(INTEND).await;
        post.worker.gate.ledger_worked(Access::Write);
        sleep(Duration::from_secs(15)).await;
        record(FAILED).await;
    };
    tokio::join!(post.takes(Some("m-1"), false), other);
    // The other's was the one attempt, it made no task, and nobody doubts it.
    assert_eq!(post.crm.posts(), 0);
    post.died_of("unavailable");
}

#[tokio::test(start_paused = true)]
async fn what_was_held_long_enough_before_its_turn_came_records_no_intent() {
    let ledger = Line::new([]);
    ledger.learns(INTEND).await;
    let post = Post::new(&ledger, |worker| {
        let mut retry = Config::load(&sources(), &[]).unwrap().config.retry;
        retry.immediate_attempts = 2;
        worker.schedule = Schedule::from(&retry);
        worker.rules.hold = Duration::from_secs(10);
    });
    let other = async {
        sleep(Duration::from_secs(15)).await;
        ledger.learns(FAILED).await;
    };
    tokio::join!(post.takes(Some("m-1"), true), other);
    post.was_held();
    assert_eq!((post.crm.posts(), ledger.records.load(Ordering::SeqCst)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_intent_that_may_have_been_recorded_is_withdrawn_when_its_message_is_returned() {
    let ledger = Line::new([Turn { lost: true, ..FAILS }]);
    let post = Post::strict(&ledger);
    let stopping = async {
        while post.worker.gate.closed().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        post.worker.stop.cancel();
    };
    tokio::join!(post.takes(Some("m-1"), false), stopping);
    assert_eq!((post.crm.posts(), post.came_to()), (0, (vec!["returned"], vec![])));
    assert_eq!(ledger.entry().await, None);
    let next = Post::strict(&ledger);
    next.takes(Some("m-1"), true).await;
    assert_eq!((next.crm.posts(), next.came_to()), (1, (vec!["acked"], vec![])));
}

#[tokio::test(start_paused = true)]
async fn an_intent_that_waits_for_a_slot_stays_younger_than_another_worker_waits_for_it() {
    let ledger = Line::new([]);
    let began = Instant::now();
    let now = move || Timestamp::UNIX_EPOCH + began.elapsed();
    let post = Post::new(&ledger, |worker| worker.clock = Clock::new(now));
    let mut taken = post.slots().await;
    let watching = async {
        for _ in 0..200 {
            sleep(Duration::from_millis(100)).await;
            let intent = ledger.entry().await.unwrap();
            let age = now().duration_since(intent.at).as_millis();
            assert!(intent.state == State::Open && age < 5_000, "{age} ms old");
        }
        taken.clear();
    };
    tokio::join!(post.takes(Some("m-1"), false), watching);
    assert_eq!((post.crm.posts(), post.came_to()), (1, (vec!["acked"], vec![])));
}

#[tokio::test(start_paused = true)]
async fn what_another_worker_begins_again_and_again_is_held_for_one_more_intent_at_most() {
    let ledger = Line::new([]);
    ledger.learns(INTEND).await;
    let began = Instant::now();
    let now = move || Timestamp::UNIX_EPOCH + began.elapsed();
    let post = Post::new(&ledger, |worker| {
        worker.clock = Clock::new(now);
        worker.rules.hold = Duration::from_secs(60);
    });
    let other = async {
        for _ in 0..30 {
            ledger.shared.record(&key(), Digest::of(TASK), INTEND, now()).await.unwrap();
            sleep(Duration::from_secs(20)).await;
        }
    };
    tokio::select! {
        () = post.takes(Some("m-1"), true) => {}
        () = other => panic!("it still waits"),
    }
    post.was_held();
    assert!(began.elapsed() <= Duration::from_secs(60 + 25), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_crm_asks_for_is_spent_on_a_queue_where_it_is_longer_than_a_message_may_be_held() {
    let reply = |seconds: u32| Reply {
        status: 503,
        retry_after: Some(seconds.to_string()),
        body: br#"{"code":"503","error":"maintenance","msg":""}"#.to_vec(),
    };
    // Where none is long enough it is waited for here, and its round goes on.
    for (delays, seconds, waited, queue) in [
        (&[10, 60, 300][..], 50, true, None),
        (&[10, 60, 300], 120, false, Some("wolkvox.tasks.retry.5m")),
        (&[10, 60], 120, true, Some("wolkvox.tasks.retry.hold")),
        (&[], 120, true, Some("wolkvox.tasks.retry.hold")),
    ] {
        let post = Post::new(&Line::new([]), |worker| {
            let mut retry = Config::load(&sources(), &[]).unwrap().config.retry;
            retry.delays = delays.iter().copied().map(Duration::from_secs).collect();
            worker.schedule = Schedule::from(&retry);
            worker.rules.hold = Duration::from_secs(60);
        });
        let (post, began) = (post.answering(Answer::Reply(reply(seconds))), Instant::now());
        post.takes(Some("m-1"), false).await;
        let (_, copies) = post.came_to();
        assert_eq!(copies.first().map(|[queue, ..]| queue.as_str()), queue, "{delays:?} {seconds}");
        assert_eq!(began.elapsed().as_secs() >= u64::from(seconds), waited, "{delays:?} {seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_id_a_task_of_a_redelivered_message_may_be_its_second() {
    for (id, redelivered, told) in [(None, true, "1"), (None, false, "0"), (Some("m-1"), true, "0")] {
        let post = Post::new(&Line::new([]), |_| {});
        post.takes(id, redelivered).await;
        let metrics = post.worker.events.encode(&[]);
        let doubled = metrics.lines().find_map(|line| line.strip_prefix("wtw_possible_duplicates_total ")).unwrap();
        assert_eq!((post.crm.posts(), doubled), (1, told), "{id:?} {redelivered}");
    }
}

/// A CRM that takes as long as it may for a strange refusal, and does not tell of its tokens.
struct Sluggard;

impl Crm for Sluggard {
    fn insert<'a>(&'a self, _: &'a SecretString, _: Bytes) -> BoxFuture<'a, Answer> {
        sleep(Duration::from_secs(20)).map(|()| said(403, "COME BACK LATER")).boxed()
    }

    fn token_information<'a>(&'a self, _: &'a SecretString) -> BoxFuture<'a, Answer> {
        std::future::pending().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn an_intent_of_a_late_slot_a_slow_request_and_a_question_stays_younger_than_another_worker_waits_for_it() {
    let ledger = Line::new([]);
    let began = Instant::now();
    let now = move || Timestamp::UNIX_EPOCH + began.elapsed();
    let post = Post::new(&ledger, |worker| {
        worker.clock = Clock::new(now);
        worker.crm = Arc::new(Sluggard);
    });
    let mut taken = post.slots().await;
    let watching = async {
        let mut intended = None;
        loop {
            sleep(Duration::from_millis(100)).await;
            if began.elapsed() > Duration::from_millis(3_900) {
                taken.clear();
            }
            match ledger.entry().await.filter(|entry| entry.state == State::Open) {
                Some(intent) => intended = Some(intent.at),
                None => break,
            }
        }
        let age = now().duration_since(intended.unwrap()).as_millis();
        assert!((23_900..25_000).contains(&age), "{age} ms old");
    };
    tokio::select! {
        () = post.takes(Some("m-1"), false) => panic!("it waits for another token"),
        () = watching => {}
    }
}

/// A CRM that takes a second, and sees how many records there are at each request.
struct Witness {
    ledger: Line,
    seen: Mutex<Vec<u32>>,
}

impl Crm for Witness {
    fn insert<'a>(&'a self, _: &'a SecretString, _: Bytes) -> BoxFuture<'a, Answer> {
        self.seen.lock().unwrap().push(self.ledger.records.load(Ordering::SeqCst));
        sleep(Duration::from_secs(1)).map(|()| said(200, "SUCCESS")).boxed()
    }

    fn token_information<'a>(&'a self, _: &'a SecretString) -> BoxFuture<'a, Answer> {
        panic!("nobody asks")
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_slot_goes_before_the_end_of_the_message_that_had_it() {
    let ledger = Line::new([]);
    let witness = Arc::new(Witness { ledger: ledger.clone(), seen: Mutex::default() });
    let post = Post::new(&ledger, |worker| {
        let mut config = Config::load(&sources(), &[]).unwrap().config;
        config.crm.max_in_flight_per_token = 1;
        worker.gate = Gate::new(&config.gate, &config.crm, config.retry.retry_after_max, clock(0), Box::new(|_, _| {}));
        worker.crm = Arc::clone(&witness) as _;
    });
    let (post, tasks) = (Arc::new(post), TaskTracker::new());
    for id in ["m-1", "m-2"] {
        let post = Arc::clone(&post);
        tasks.spawn(async move { post.takes(Some(id), false).await });
    }
    tasks.close();
    tasks.wait().await;
    // Their two intents: the result of the first is not told yet when the second is sent.
    assert_eq!((&*witness.seen.lock().unwrap(), ledger.records.load(Ordering::SeqCst)), (&vec![1, 2], 4));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_ledger_did_not_take_is_told_again() {
    let ledger = Line::new([Turn::default(), FAILS]);
    let post = Post::strict(&ledger).answering(said(503, "LATER"));
    post.takes(Some("m-1"), false).await;
    post.died_of("unavailable");
    assert_eq!(ledger.entry().await.map(|entry| entry.state), Some(State::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_redelivery_after_the_last_attempt_dies_of_what_is_known_of_it() {
    let unknown = || Answer::NoAnswer("reset".to_owned());
    let refused = || said(412, "NOT THIS ONE");
    for (answer, first, second, sentence) in [
        (unknown(), "unknown", "unknown", "one of them may have made its task"),
        (refused(), "rejected", "unavailable", "none of them made its task"),
    ] {
        let ledger = Line::new([]);
        let post = Post::new(&ledger, |_| {}).answering(answer);
        post.takes(Some("m-1"), false).await;
        post.died_of(first);
        // Nobody heard of its dead letter.
        let post = Post::new(&ledger, |_| {});
        post.takes(Some("m-1"), true).await;
        assert_eq!(post.crm.posts(), 0);
        let said = post.died_of(second);
        assert_eq!(said, format!("its attempts are spent (1, and the configuration allows 1); {sentence}"));
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_id_nothing_leaves_while_the_ledger_is_out_of_order() {
    let post = Post::strict(&Line::new([]));
    post.worker.gate.ledger_failed(Access::Write);
    post.takes(None, false).await;
    post.was_held();
    assert_eq!(post.crm.posts(), 0);
    post.worker.gate.ledger_worked(Access::Write);
    post.takes(None, false).await;
    assert_eq!(post.crm.posts(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_up_while_the_gate_is_closed() {
    let expires = |worker: &mut Worker| worker.rules.max_age = Some(Duration::from_secs(1));
    let strict = |worker: &mut Worker| worker.rules.on_unknown = OnUnknown::DeadLetter;
    let known = |records: &'static [Record]| async move {
        let ledger = Line::new([Turn { before: records, ..Turn::default() }]);
        ledger.record(&key(), Digest::of(TASK), Record::Withdraw, clock(0).now()).await.unwrap();
        ledger
    };
    for (ledger, change, kind) in [
        (known(&[]).await, &expires as &dyn Fn(&mut Worker), "expired"),
        (known(&[FAILED]).await, &|_: &mut Worker| {}, "unavailable"),
        (known(&[UNKNOWN]).await, &strict, "unknown"),
        // The first of them is withdrawn.
        (known(&[INTEND, INTEND]).await, &strict, "unknown"),
    ] {
        let post = Post::new(&ledger, change);
        post.worker.gate.ledger_failed(Access::Write);
        post.takes(Some("m-1"), true).await;
        post.was_held();
        let post = Post::new(&ledger, change);
        post.takes(Some("m-1"), true).await;
        post.died_of(kind);
        assert_eq!(post.crm.posts(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_works_again_is_noticed_without_a_message() {
    let ledger = Line::new([]);
    let worker = Post::strict(&ledger).worker;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    tasks.spawn(Arc::clone(&worker).watch_ledger(stop.clone()));
    ledger.is_down(true);
    worker.gate.ledger_failed(Access::Read);
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(worker.gate.closed(), Some(Closed::Ledger));
    ledger.is_down(false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((worker.gate.closed(), ledger.len()), (None, 0));
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}
