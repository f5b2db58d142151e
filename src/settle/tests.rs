//! Tests of settling in simulated time.

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;

use super::*;
use crate::broker::DeliveryGone;
use crate::config::{Config, Sources};
use crate::message::failure::{Failure, Kind, Stage};

/// A delivery whose connection is open for this number of checks.
struct FakeAcker(AtomicU32);

impl Acker for FakeAcker {
    fn is_open(&self) -> bool {
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(ready(Ok(())))
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(ready(Ok(())))
    }

    fn reject(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(ready(Ok(())))
    }
}

/// A broker that refuses the first publishes.
struct FakeBroker {
    refuses: u32,
    error: PublishError,
    asked: AtomicU32,
    failed_at: std::sync::Mutex<Vec<Option<String>>>,
}

impl Publish for FakeBroker {
    fn publish<'a>(&'a self, _: &'a str, _: &'a [u8], copy: Properties) -> BoxFuture<'a, Result<(), PublishError>> {
        let copy = Message { properties: copy, ..Message::default() };
        let failed_at = copy.header(dead_letter::FAILED_AT).and_then(crate::message::retry_state::string);
        self.failed_at.lock().unwrap().push(failed_at);
        let before = self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(ready(if before < self.refuses { Err(self.error.clone()) } else { Ok(()) }))
    }

    fn frame_max(&self) -> usize {
        131_072
    }
}

fn broker(refuses: u32, error: PublishError) -> Arc<FakeBroker> {
    Arc::new(FakeBroker { refuses, error, asked: AtomicU32::new(0), failed_at: std::sync::Mutex::default() })
}

fn config() -> Config {
    let environment = vec![("WTW_CRM_OPERATION".into(), "demo".into())];
    Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config
}

fn settler(publisher: &Arc<FakeBroker>) -> Settler {
    Settler {
        publisher: publisher.clone(),
        publish_gate: Arc::default(),
        queue: "tasks".to_owned(),
        dead_letter_queue: "tasks.dead".to_owned(),
        hold: Duration::from_secs(600),
        mapper: Arc::new(Mapper::new(&config()).unwrap()),
        clock: Clock::new(|| Timestamp::UNIX_EPOCH),
        telemetry: Arc::new(Telemetry::new("/", "tasks", Timestamp::UNIX_EPOCH)),
    }
}

async fn settle(settler: &Settler, asked: u32, disposition: &Disposition) -> (Settlement, RetryState) {
    let message = Message::default();
    let mut state = RetryState::new(&message);
    let acker = FakeAcker(AtomicU32::new(asked));
    let settlement = settler.settle(&mut state, &message, &acker, disposition).await;
    (settlement, state)
}

fn dead_letter() -> Disposition {
    Disposition::DeadLetter(Failure::new(Stage::Send, Kind::Unknown, "why"))
}

#[tokio::test(start_paused = true)]
async fn disposition_without_a_copy_publishes_nothing() {
    let broker = broker(0, PublishError::Refused);
    let settler = settler(&broker);
    for (disposition, settlement) in [
        (Disposition::Ack, Settlement::Ack),
        (Disposition::AlreadyCreated, Settlement::Ack),
        (Disposition::Skip(None), Settlement::Ack),
        (Disposition::Requeue, Settlement::Requeue),
    ] {
        assert_eq!(settle(&settler, 9, &disposition).await.0, settlement);
    }
    assert_eq!(broker.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn ack_follows_a_confirmed_copy_and_the_copy_has_an_id() {
    for disposition in [Disposition::Hold, Disposition::Retry(Duration::from_secs(10)), dead_letter()] {
        let broker = broker(2, PublishError::Refused);
        let (settlement, state) = settle(&settler(&broker), 9, &disposition).await;
        assert_eq!((settlement, broker.asked.load(Ordering::SeqCst)), (Settlement::Ack, 3));
        assert!(state.message_id.is_some());
    }
}

/// The time identifies a replay. If RabbitMQ stores several copies of one dead letter, they are one replay.
#[tokio::test(start_paused = true)]
async fn copies_of_one_dead_letter_have_the_same_time() {
    let broker = broker(3, PublishError::Unconfirmed("timed out".to_owned()));
    let began = Instant::now();
    let clock = Clock::new(move || Timestamp::from_second(began.elapsed().as_secs() as i64).unwrap());
    settle(&Settler { clock, ..settler(&broker) }, 9, &dead_letter()).await;
    let times = broker.failed_at.lock().unwrap().clone();
    assert!(began.elapsed().as_secs() > 0 && times.len() == 4, "{times:?}");
    assert!(times.iter().all(|time| time.is_some() && *time == times[0]), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn copy_waiting_for_a_permit_is_tried_again_and_is_not_a_failure() {
    for (error, failures) in [(PublishError::Busy(16), 0), (PublishError::Refused, 2)] {
        let settler = settler(&broker(2, error));
        assert_eq!(settle(&settler, 9, &Disposition::Hold).await.0, Settlement::Ack);
        assert_eq!(settler.telemetry.counts().publish_failures, failures);
        assert_eq!(settler.telemetry.counts().unconfirmed, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn copy_of_a_delivery_that_is_gone_is_not_published() {
    for (open, settlement) in [(0, Settlement::Requeue), (3, Settlement::Requeue), (4, Settlement::Ack)] {
        let broker = broker(3, PublishError::Refused);
        let settler = settler(&broker);
        assert_eq!(settle(&settler, open, &Disposition::Hold).await.0, settlement);
        assert_eq!(broker.asked.load(Ordering::SeqCst), open);
        assert_eq!(settler.publish_gate.closed(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn copy_that_cannot_be_published_for_gate_hold_requeues_and_stops_consuming() {
    let settler = settler(&broker(u32::MAX, PublishError::Blocked("disk".to_owned())));
    let began = Instant::now();
    assert_eq!(settle(&settler, u32::MAX, &Disposition::Hold).await.0, Settlement::Requeue);
    let waited = began.elapsed();
    assert!(waited >= settler.hold && waited < settler.hold + Duration::from_secs(15), "{waited:?}");
    assert!(settler.publish_gate.closed().is_some_and(|closed| !closed.is_final));
}

#[tokio::test(start_paused = true)]
async fn permanently_refused_copy_is_rejected_only_where_rabbitmq_dead_letters_it() {
    for can_reject in [true, false] {
        let broker = broker(u32::MAX, PublishError::Impossible("too large".to_owned()));
        let settler = settler(&broker);
        settler.publish_gate.set_can_reject(can_reject);
        let (settlement, _) = settle(&settler, 9, &dead_letter()).await;
        let expected = if can_reject { Settlement::Reject("too large".to_owned()) } else { Settlement::Requeue };
        assert_eq!((settlement, broker.asked.load(Ordering::SeqCst)), (expected, 1));
        assert_eq!(settler.publish_gate.closed().map(|closed| closed.is_final), (!can_reject).then_some(true));
    }
}
