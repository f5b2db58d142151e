//! What every store has to do. It is also part of the integration tests, which run it against Redis; so it names what it
//! needs through the module that it is in.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use proptest::prelude::*;

use super::{Clock, Closing, Digest, Entry, Key, Ledger, Limits, Record, State};

pub(super) const SECOND: i64 = 1000;
const START: i64 = 1_700_000_000_000;
pub(super) const ROOMY: Limits = Limits { retention: Duration::from_secs(7 * 24 * 3600), max_entries: 1_000_000 };

/// A clock that is set by hand.
#[derive(Clone)]
pub(super) struct Hands(Arc<AtomicI64>);

impl Hands {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(START)))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::Relaxed)).unwrap()
    }

    pub(super) fn forward(&self, milliseconds: i64) {
        self.0.fetch_add(milliseconds, Ordering::Relaxed);
    }

    pub(super) fn clock(&self) -> Clock {
        let hands = self.clone();
        Clock::new(move || hands.now())
    }
}

/// A ledger with its clock and short words for what is done to it.
pub(super) struct Desk {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) hands: Hands,
}

pub(super) fn key(id: impl AsRef<[u8]>) -> Key {
    Key::new("wolkvox.tasks", "operation", id)
}

pub(super) fn digest(body: u8) -> Digest {
    Digest::of(&[body])
}

pub(super) const fn intend(attempts: u32) -> Record {
    Record::Intend { attempts }
}

pub(super) const fn begin(attempts: u32) -> Record {
    Record::Begin { attempts }
}

pub(super) const fn created(attempts: u32) -> Record {
    Record::Close { result: Closing::Created, attempts }
}

pub(super) const fn closed(attempts: u32) -> Record {
    Record::Close { result: Closing::NotCreated, attempts }
}

pub(super) const fn unknown(attempts: u32) -> Record {
    Record::Close { result: Closing::Unknown, attempts }
}

impl Desk {
    pub(super) async fn look(&self, id: &str) -> Option<Entry> {
        self.ledger.look(&key(id)).await.unwrap()
    }

    pub(super) async fn state(&self, id: &str) -> Option<(State, u32, u32)> {
        let entry = self.look(id).await?;
        Some((entry.state, entry.attempts, entry.open_intents))
    }

    pub(super) async fn record(&self, id: &str, record: Record) {
        self.record_body(id, digest(0), record).await;
    }

    async fn record_body(&self, id: &str, digest: Digest, record: Record) -> Option<Entry> {
        let key = key(id);
        let recorded = self.ledger.record(&key, digest, record, self.hands.now());
        recorded.await.unwrap()
    }
}

/// Runs everything; `make` gives a new, empty ledger each time.
pub(super) async fn suite(make: impl AsyncFn(Limits, Clock) -> Arc<dyn Ledger>) {
    let desk = async |limits| {
        let hands = Hands::new();
        let ledger = make(limits, hands.clock()).await;
        Desk { ledger, hands }
    };
    a_message_that_is_created_stays_so(&desk(ROOMY).await).await;
    crashes_are_counted(&desk(ROOMY).await).await;
    a_doubt_outlives_what_made_no_task(&desk(ROOMY).await).await;
    a_withdrawal_brings_back_what_was_before(&desk(ROOMY).await).await;
    a_beginning_changes_nothing_that_is_known(&desk(ROOMY).await).await;
    the_latest_body_counts_until_it_is_created(&desk(ROOMY).await).await;
    keys_are_never_confused(&desk(ROOMY).await).await;
    many_records_at_once_are_all_kept(&desk(ROOMY).await).await;
    a_record_tells_what_was_known_before_it(&desk(ROOMY).await).await;
    let short = Limits { retention: Duration::from_secs(60), ..ROOMY };
    outcomes_are_forgotten_in_time(&desk(short).await).await;
    let small = Limits { max_entries: 3, ..ROOMY };
    the_oldest_outcomes_leave_first(&desk(small).await).await;
    open_intents_never_leave(&desk(small).await).await;
    let none = Limits { max_entries: 1, ..short };
    sweeping_is_spread_over_records(&desk(ROOMY).await, &desk(none).await).await;
}

async fn a_message_that_is_created_stays_so(desk: &Desk) {
    assert_eq!(desk.look("a").await, None);
    desk.record("a", intend(1)).await;
    assert_eq!(desk.state("a").await, Some((State::Open, 1, 1)));
    desk.hands.forward(SECOND);
    desk.record("a", created(1)).await;
    let was = Entry {
        digest: digest(0),
        state: State::Created,
        attempts: 1,
        possibly_created: false,
        open_intents: 0,
        at: desk.hands.now(),
    };
    assert_eq!(desk.look("a").await, Some(was));
    for record in [intend(2), Record::Withdraw, closed(2), Record::Forget, created(3)] {
        desk.hands.forward(SECOND);
        desk.record_body("a", digest(1), record).await;
        assert_eq!(desk.look("a").await, Some(was), "after {record:?}");
    }
    assert_eq!(desk.ledger.len(), 1);
}

async fn crashes_are_counted(desk: &Desk) {
    for crash in 1..=5 {
        desk.record("a", intend(crash)).await;
        assert_eq!(desk.state("a").await, Some((State::Open, crash, crash)));
    }
    desk.record("a", Record::Withdraw).await;
    assert_eq!(desk.state("a").await, Some((State::Open, 4, 4)));
    desk.record("a", intend(5)).await;
    desk.record("a", closed(5)).await;
    // Of the requests whose workers died nobody knows what they came to.
    assert_eq!(desk.state("a").await, Some((State::Unknown, 5, 0)));
    assert!(desk.look("a").await.is_some_and(|entry| entry.possibly_created));
    desk.record("a", intend(6)).await;
    assert_eq!(desk.state("a").await, Some((State::Open, 6, 1)));
    desk.record("a", Record::Forget).await;
    assert_eq!(desk.look("a").await, None);
    for _ in 0..100 {
        desk.record("b", intend(1)).await;
    }
    assert_eq!(desk.state("b").await, Some((State::Open, 1, 64)));
}

async fn a_doubt_outlives_what_made_no_task(desk: &Desk) {
    desk.record("a", intend(1)).await;
    desk.record("a", unknown(1)).await;
    assert_eq!(desk.state("a").await, Some((State::Unknown, 1, 0)));
    desk.record("a", intend(2)).await;
    assert!(desk.look("a").await.is_some_and(|entry| entry.possibly_created));
    desk.record("a", closed(2)).await;
    assert_eq!(desk.state("a").await, Some((State::Unknown, 2, 0)));
    desk.record("a", intend(3)).await;
    desk.record("a", created(3)).await;
    assert_eq!(desk.state("a").await, Some((State::Created, 3, 0)));
    assert!(desk.look("a").await.is_some_and(|entry| entry.possibly_created), "there may be two");
    desk.record("b", intend(1)).await;
    desk.record("b", intend(2)).await;
    desk.record("b", created(2)).await;
    assert!(desk.look("b").await.is_some_and(|entry| entry.possibly_created), "a worker died with the first");
}

async fn a_withdrawal_brings_back_what_was_before(desk: &Desk) {
    desk.record("a", intend(1)).await;
    desk.record("a", Record::Withdraw).await;
    assert_eq!(desk.look("a").await, None);
    assert!(desk.ledger.is_empty());

    desk.record("a", closed(2)).await;
    let before = desk.look("a").await;
    desk.hands.forward(SECOND);
    desk.record_body("a", digest(1), intend(3)).await;
    assert_eq!(desk.state("a").await, Some((State::Open, 3, 1)));
    desk.record("a", Record::Withdraw).await;
    assert_eq!(desk.look("a").await, before);
    desk.record("a", Record::Withdraw).await;
    assert_eq!(desk.look("a").await, before);
}

async fn the_latest_body_counts_until_it_is_created(desk: &Desk) {
    for (body, record) in [(1, intend(1)), (2, intend(2)), (3, closed(2)), (4, created(3))] {
        desk.record_body("a", digest(body), record).await;
        assert_eq!(desk.look("a").await.unwrap().digest, digest(body));
    }
    desk.record_body("a", digest(5), created(4)).await;
    assert_eq!(desk.look("a").await.unwrap().digest, digest(4));
}

async fn keys_are_never_confused(desk: &Desk) {
    let keys = [
        Key::new("ab", "c", "d"),
        Key::new("a", "bc", "d"),
        Key::new("a", "b", "cd"),
        Key::new("", "abc", "d"),
        Key::new("abc", "d", ""),
        Key::new("q", "o", [0, 255, b'\r', b'\n', b' ', 0x80]),
        Key::new("q", "o", [0, 255, b'\r', b'\n', b' ']),
        Key::new("q", "o", []),
    ];
    for (attempts, key) in (1..).zip(&keys) {
        let recorded = desk.ledger.record(key, digest(0), intend(attempts), desk.hands.now());
        recorded.await.unwrap();
    }
    for (attempts, key) in (1..).zip(&keys) {
        let entry = desk.ledger.look(key).await.unwrap().unwrap();
        assert_eq!((entry.attempts, entry.open_intents), (attempts, 1), "{key:?}");
    }
}

async fn a_beginning_changes_nothing_that_is_known(desk: &Desk) {
    assert_eq!(desk.record_body("a", digest(0), begin(1)).await, None);
    assert_eq!(desk.state("a").await, Some((State::Open, 1, 1)));
    for record in [intend(2), closed(2), unknown(2), created(2)] {
        desk.hands.forward(SECOND);
        desk.record("a", record).await;
        let known = desk.look("a").await;
        desk.hands.forward(SECOND);
        assert_eq!(desk.record_body("a", digest(1), begin(1)).await, known, "after {record:?}");
        assert_eq!(desk.look("a").await, known, "after {record:?}");
    }
    // Of two that come at a time, one begins.
    let told = join_all((0..40).map(|_| desk.record_body("b", digest(0), begin(1)))).await;
    assert_eq!(told.iter().filter(|entry| entry.is_none()).count(), 1);
    assert_eq!(desk.state("b").await, Some((State::Open, 1, 1)));
}

async fn many_records_at_once_are_all_kept(desk: &Desk) {
    let ids: Vec<String> = (0..200).map(|id| id.to_string()).collect();
    let lives = ids.iter().map(async |id| {
        desk.record(id, intend(1)).await;
        assert_eq!(desk.state(id).await, Some((State::Open, 1, 1)));
        desk.record(id, created(1)).await;
        assert_eq!(desk.state(id).await, Some((State::Created, 1, 0)));
    });
    join_all(lives).await;
    assert_eq!(desk.ledger.len(), 200);
    join_all((0..40).map(|_| desk.record("one", intend(1)))).await;
    assert_eq!(desk.state("one").await, Some((State::Open, 1, 40)));
}

async fn a_record_tells_what_was_known_before_it(desk: &Desk) {
    let mut known = None;
    let records =
        [intend(1), intend(2), Record::Withdraw, closed(1), intend(2), created(2), intend(3), Record::Withdraw];
    for record in records {
        desk.hands.forward(SECOND);
        assert_eq!(desk.record_body("a", digest(0), record).await, known, "{record:?}");
        known = desk.look("a").await;
    }
    assert_eq!(known.map(|entry| (entry.state, entry.attempts)), Some((State::Created, 2)));
    // None of two that come at a time is told that it was the first.
    let told = join_all((0..40).map(|_| desk.record_body("b", digest(0), intend(1)))).await;
    let mut open: Vec<u32> = told.iter().map(|entry| entry.map_or(0, |entry| entry.open_intents)).collect();
    open.sort_unstable();
    assert_eq!(open, Vec::from_iter(0..40));
}

async fn outcomes_are_forgotten_in_time(desk: &Desk) {
    desk.record("created", created(1)).await;
    desk.record("closed", closed(1)).await;
    desk.record("withdrawn", closed(1)).await;
    desk.record("withdrawn", intend(2)).await;
    desk.record("open", intend(1)).await;
    desk.hands.forward(60 * SECOND - 1);
    assert!(desk.look("created").await.is_some());
    assert!(desk.look("closed").await.is_some());
    desk.hands.forward(1);
    assert_eq!(desk.look("created").await, None);
    assert_eq!(desk.look("closed").await, None);
    assert_eq!(desk.record_body("closed", digest(0), intend(1)).await, None);
    desk.record("closed", Record::Withdraw).await;
    desk.record("withdrawn", Record::Withdraw).await;
    assert_eq!(desk.look("withdrawn").await, None);
    desk.hands.forward(1_000_000 * SECOND);
    assert_eq!(desk.state("open").await, Some((State::Open, 1, 1)));
    desk.record("created", intend(1)).await;
    assert_eq!(desk.state("created").await, Some((State::Open, 1, 1)));
    assert_eq!(desk.ledger.len(), 2);
}

async fn the_oldest_outcomes_leave_first(desk: &Desk) {
    // Old by its outcome, not by its first record.
    desk.record("a", intend(1)).await;
    for id in ["b", "c"] {
        desk.hands.forward(SECOND);
        desk.record(id, created(1)).await;
    }
    desk.hands.forward(SECOND);
    desk.record("a", created(1)).await;
    desk.record("d", closed(1)).await;
    assert_eq!(desk.look("b").await, None);
    desk.record("e", intend(1)).await;
    assert_eq!(desk.look("c").await, None);
    assert_eq!(desk.ledger.len(), 3);
    for id in ["a", "d", "e"] {
        assert!(desk.look(id).await.is_some(), "{id}");
    }
}

async fn open_intents_never_leave(desk: &Desk) {
    let ids = ["a", "b", "c", "d", "e"];
    for id in ids {
        desk.record(id, intend(1)).await;
    }
    for id in ids {
        assert!(desk.look(id).await.is_some(), "{id}");
    }
    // What was just recorded stays too, until the next record.
    desk.record("a", created(1)).await;
    assert_eq!(desk.state("a").await, Some((State::Created, 1, 0)));
    desk.record("b", closed(1)).await;
    assert_eq!(desk.look("a").await, None);
    assert_eq!(desk.ledger.len(), 4);
}

async fn sweeping_is_spread_over_records(roomy: &Desk, small: &Desk) {
    join_all((0..100).map(async |id| roomy.record(&id.to_string(), created(1)).await)).await;
    assert_eq!(roomy.ledger.len(), 100);
    for id in 0..100 {
        small.record(&id.to_string(), intend(1)).await;
    }
    for id in 0..100 {
        small.record(&id.to_string(), closed(1)).await;
    }
    assert_eq!(small.ledger.len(), 1);
}

/// One step of a generated life.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) id: u8,
    pub(super) body: u8,
    pub(super) record: Record,
    pub(super) milliseconds: i64,
    pub(super) reopen: bool,
}

/// Limits at which [`steps`] meet both of them.
pub(super) const TIGHT: Limits = Limits { retention: Duration::from_millis(1000), max_entries: 4 };

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = prop_oneof![
        4 => (1..9_u32).prop_map(intend),
        2 => (1..9_u32).prop_map(begin),
        2 => Just(Record::Withdraw),
        1 => (1..9_u32).prop_map(unknown),
        2 => (1..9_u32).prop_map(created),
        2 => (1..9_u32).prop_map(closed),
        1 => Just(Record::Forget),
    ];
    let step = (0..7_u8, 0..2_u8, record, -50..300_i64, 0..20_u8);
    let step = step.prop_map(|(id, body, record, milliseconds, reopen)| Step {
        id,
        body,
        record,
        milliseconds,
        reopen: reopen == 0,
    });
    prop::collection::vec(step, 1..80)
}

/// What a ledger says of everything that [`steps`] may speak of.
pub(super) async fn all(ledger: &dyn Ledger) -> (Vec<Option<Entry>>, u64) {
    let mut entries = Vec::new();
    for id in 0..7 {
        entries.push(ledger.look(&key([id])).await.unwrap());
    }
    (entries, ledger.len())
}

pub(super) async fn take(ledger: &dyn Ledger, step: &Step, now: Timestamp) {
    let key = key([step.id]);
    let recorded = ledger.record(&key, digest(step.body), step.record, now);
    recorded.await.unwrap();
}
