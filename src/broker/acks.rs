//! The acks of one channel, gathered: while a backlog is worked off, one frame tells the broker of many.
//!
//! An ack of `multiple` settles every delivery up to its own (AMQP 0-9-1, `basic.ack`), so it goes no further than the first
//! delivery of the channel that is not settled yet. What was acked behind that one waits a moment for it, and is told by a
//! frame of its own then. A returned delivery counts as unsettled until the broker was told, so that no ack can overtake it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use lapin::Acker as LapinAcker;
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::DeliveryTag;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::connect::WAIT;
use crate::broker::{Acker, DeliveryGone};

/// How long acks are gathered after some were told: an ack on a worker that has nothing else in hand is told at once.
const LINGER: Duration = Duration::from_millis(1);
/// For how many times that others are told an ack waits for those before it: requests that began together end a few
/// milliseconds apart.
const ROUNDS: u32 = 4;

/// The acks of one channel.
pub(super) struct Acks {
    books: Mutex<Books<Gathered>>,
    /// Some were acked since none was.
    some: Notify,
    /// So many were acked that the rest of the prefetch may not last until the linger is over.
    enough: Notify,
    prefetch: usize,
}

/// An acked delivery that the broker has not been told of.
struct Gathered {
    acker: LapinAcker,
    told: oneshot::Sender<Result<(), DeliveryGone>>,
}

impl Gathered {
    fn answer(self, told: Result<(), DeliveryGone>) {
        // Who no longer waits wants no answer.
        let _ = self.told.send(told);
    }
}

/// Which deliveries of a channel are settled.
struct Books<T> {
    unsettled: BTreeSet<DeliveryTag>,
    acked: BTreeMap<DeliveryTag, Acked<T>>,
    /// How many were acked since some were told.
    fresh: usize,
    /// Nobody tells the broker any more.
    closed: bool,
}

struct Acked<T> {
    ack: T,
    /// How often others were told while it waited.
    rounds: u32,
}

impl<T> Books<T> {
    fn new() -> Self {
        Self { unsettled: BTreeSet::new(), acked: BTreeMap::new(), fresh: 0, closed: false }
    }

    fn acked(&mut self, tag: DeliveryTag, ack: T) {
        self.unsettled.remove(&tag);
        self.acked.insert(tag, Acked { ack, rounds: 0 });
        self.fresh += 1;
    }

    /// What the broker is to be told: all that was acked up to the first unsettled delivery, in order, and what has waited
    /// long enough behind it.
    fn take(&mut self) -> (Vec<T>, Vec<T>) {
        let behind = self.unsettled.first().map(|first| self.acked.split_off(first)).unwrap_or_default();
        let before = std::mem::replace(&mut self.acked, behind);
        self.fresh = 0;
        let waited = self.acked.extract_if(.., |_, acked| {
            acked.rounds += 1;
            acked.rounds > ROUNDS
        });
        let late = waited.map(|(_, acked)| acked.ack).collect();
        (before.into_values().map(|acked| acked.ack).collect(), late)
    }
}

impl Acks {
    /// Tells the broker of what is acked, on a task of `services`, until `lost`.
    pub(super) fn start(prefetch: u16, lost: CancellationToken, services: &TaskTracker) -> Arc<Self> {
        let books = Mutex::new(Books::new());
        let acks = Self { books, some: Notify::new(), enough: Notify::new(), prefetch: prefetch.into() };
        let acks = Arc::new(acks);
        services.spawn(Arc::clone(&acks).run(lost));
        acks
    }

    /// The means to settle a delivery, which the channel's later acks wait for from here on.
    pub(super) fn receipt(self: &Arc<Self>, delivery: &LapinDelivery) -> Box<dyn Acker> {
        self.lock().unsettled.insert(delivery.delivery_tag);
        let acker = delivery.acker.clone();
        Box::new(AckReceipt { acks: Arc::clone(self), tag: delivery.delivery_tag, acker })
    }

    async fn run(self: Arc<Self>, lost: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = lost.cancelled() => break,
                () = self.some.notified() => {}
            }
            while self.tell().await {
                // Fewer frames for the rest of a burst; whichever comes first.
                let _ = timeout(LINGER, self.enough.notified()).await;
            }
        }
        let mut books = self.lock();
        books.closed = true;
        // Their senders' end tells those who wait.
        books.acked.clear();
    }

    /// Tells what was acked; whether there was any, to be told or to wait.
    async fn tell(&self) -> bool {
        let (any, (before, late)) = {
            let mut books = self.lock();
            (!books.acked.is_empty(), books.take())
        };
        if let Some(last) = before.last() {
            let told = ack(&last.acker, before.len() > 1).await;
            before.into_iter().for_each(|gathered| gathered.answer(told));
        }
        let late = late.into_iter().map(async |gathered| {
            let told = ack(&gathered.acker, false).await;
            gathered.answer(told);
        });
        join_all(late).await;
        any
    }

    fn lock(&self) -> MutexGuard<'_, Books<Gathered>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct AckReceipt {
    acks: Arc<Acks>,
    tag: DeliveryTag,
    acker: LapinAcker,
}

impl Acker for AckReceipt {
    fn usable(&self) -> bool {
        self.acker.usable()
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(async move {
            let Self { acks, tag, acker } = *self;
            let (told, answer) = oneshot::channel();
            let (gathered, fresh) = {
                let mut books = acks.lock();
                if books.closed {
                    return Err(DeliveryGone);
                }
                books.acked(tag, Gathered { acker, told });
                (books.acked.len(), books.fresh)
            };
            if gathered == 1 {
                acks.some.notify_one();
            }
            if fresh * 4 >= acks.prefetch {
                acks.enough.notify_one();
            }
            answer.await.unwrap_or(Err(DeliveryGone))
        })
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(async move {
            let returned = nack_requeue(&self.acker).await;
            if returned.is_ok() {
                self.acks.lock().unsettled.remove(&self.tag);
            }
            returned
        })
    }
}

/// Settles a delivery by a frame of its own.
pub(super) struct AtOnce(pub(super) LapinAcker);

impl Acker for AtOnce {
    fn usable(&self) -> bool {
        self.0.usable()
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(async move { ack(&self.0, false).await })
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        Box::pin(async move { nack_requeue(&self.0).await })
    }
}

/// Tells the broker that a delivery is done, and with `multiple` all before it.
async fn ack(acker: &LapinAcker, multiple: bool) -> Result<(), DeliveryGone> {
    settled(timeout(WAIT, acker.ack(BasicAckOptions { multiple })).await)
}

/// Returns a delivery to its queue.
pub(super) async fn nack_requeue(acker: &LapinAcker) -> Result<(), DeliveryGone> {
    settled(timeout(WAIT, acker.nack(BasicNackOptions { requeue: true, multiple: false })).await)
}

/// `Ok(true)` alone means that the broker was told.
fn settled(result: Result<lapin::Result<bool>, tokio::time::error::Elapsed>) -> Result<(), DeliveryGone> {
    match result {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false) | Err(_)) | Err(_) => Err(DeliveryGone),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Deliver,
        Ack(usize),
        Return(usize),
        Tell,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Deliver),
            3 => any::<usize>().prop_map(Step::Ack),
            1 => any::<usize>().prop_map(Step::Return),
            2 => Just(Step::Tell),
        ];
        proptest::collection::vec(step, 0..200)
    }

    fn pick(from: &mut Vec<DeliveryTag>, which: usize) -> Option<DeliveryTag> {
        (!from.is_empty()).then(|| from.remove(which % from.len()))
    }

    proptest! {
        /// The broker takes an ack of `multiple` for all that it has not heard of: nothing else may be among them.
        #[test]
        fn an_ack_of_many_settles_what_was_acked_and_nothing_else(steps in steps()) {
            let mut books = Books::new();
            let (mut last, mut in_hand) = (0, Vec::new());
            // What the broker waits to hear about, and whether it was acked.
            let mut outstanding = BTreeMap::new();
            for step in steps.into_iter().chain([Step::Tell; 1 + ROUNDS as usize]) {
                match step {
                    Step::Deliver => {
                        last += 1;
                        books.unsettled.insert(last);
                        in_hand.push(last);
                        outstanding.insert(last, false);
                    }
                    Step::Ack(which) => {
                        if let Some(tag) = pick(&mut in_hand, which) {
                            books.acked(tag, tag);
                            outstanding.insert(tag, true);
                        }
                    }
                    Step::Return(which) => {
                        if let Some(tag) = pick(&mut in_hand, which) {
                            outstanding.remove(&tag);
                            books.unsettled.remove(&tag);
                        }
                    }
                    Step::Tell => {
                        let (before, late) = books.take();
                        if let Some(last) = before.last() {
                            prop_assert!(outstanding.contains_key(last), "{last} was told before");
                            let rest = outstanding.split_off(&(last + 1));
                            let told: Vec<_> = std::mem::replace(&mut outstanding, rest).into_iter().collect();
                            prop_assert_eq!(told, before.iter().map(|tag| (*tag, true)).collect::<Vec<_>>());
                        }
                        for tag in late {
                            prop_assert_eq!(outstanding.remove(&tag), Some(true));
                        }
                    }
                }
            }
            prop_assert!(outstanding.values().all(|acked| !acked), "everything that was acked is told");
        }
    }
}
