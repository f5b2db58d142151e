//! A worker's connection: as in `broker::session`, the owner of the queue is compared before the first delivery is processed.
//! Also the worker's publisher.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use wolkvox_task_worker::broker::topology::{HOLD_QUEUE_DELAY, hold_queue, retry_queue};
use wolkvox_task_worker::broker::{Delivery, HeaderValue, Headers, Message, Owners, Properties, Publish, PublishError};
use wolkvox_task_worker::ledger::Ledger as _;

use crate::broker::{NUMBER, QueuedMessage};
use crate::coverage::{Case, Situation};
use crate::invariants::text;
use crate::schedule::{chance, random_confirm};
use crate::script::{Confirm, Draw};
use crate::world::{WorkerProcess, World};

/// How long a publisher waits for a confirm.
const CONFIRM: Duration = Duration::from_secs(10);
/// The number for random draws about publishes to the owner queue.
const OWNER: usize = usize::MAX;

impl World {
    /// Passes the deliveries of a connection to the worker until it stops.
    pub(crate) async fn consume(
        self: Arc<Self>,
        process: Arc<WorkerProcess>,
        number: u64,
        mut inbox: mpsc::Receiver<Delivery>,
        gone: CancellationToken,
    ) {
        let mut is_first = true;
        loop {
            let next = tokio::select! {
                biased;
                () = process.stop.cancelled() => None,
                () = gone.cancelled() => return,
                next = inbox.recv() => next,
            };
            process.hang_if_dead().await;
            let Some(delivery) = next else { break };
            let is_owner = match std::mem::take(&mut is_first) {
                true => self.take_ownership(&process).await,
                false => !delivery.message.redelivered || self.is_owner(&process),
            };
            if !is_owner {
                self.checker().met(Situation::Case(Case::OwnerUnknown));
                self.close(number, &process, &gone);
                forget(delivery);
                while let Ok(delivery) = inbox.try_recv() {
                    forget(delivery);
                }
                return;
            }
            self.arrived(&process, number, &delivery);
            if let Err(unsent) = process.deliveries.send(delivery).await {
                let _ = unsent.0.acker.nack_requeue().await;
            }
        }
        while let Ok(delivery) = inbox.try_recv() {
            let _ = delivery.acker.nack_requeue().await;
        }
    }

    fn arrived(&self, process: &WorkerProcess, connection: u64, delivery: &Delivery) {
        let message = &delivery.message;
        let Some(HeaderValue::LongLongInt(number)) = message.header(NUMBER) else { return };
        let (number, before) = (*number as usize, message.was_delivered_before());
        let proves = process.ledger().is_some_and(|ledger| ledger.about().proves_unsent);
        if message.header("x-wtw-dead-letter").is_some() {
            let is_created = self.stores.is_created(process, message);
            let replay = if is_created { Case::ReplayOfCreated } else { Case::Replay };
            self.checker().met(Situation::Case(if before { Case::RedeliveredReplay } else { replay }));
        }
        self.checker().received(number, process.number, message.delivery_tag, connection, (before, proves));
    }

    /// Compares the queue's owner with this worker's ledger. True if that succeeded.
    async fn take_ownership(self: &Arc<Self>, process: &Arc<WorkerProcess>) -> bool {
        let Some(ownership) = process.ownership() else { return false };
        sleep(Duration::from_millis(5)).await;
        process.hang_if_dead().await;
        let has_owner_queue = self.script.setting.has_owner_queue;
        let owners = if has_owner_queue {
            Owners::Found(self.broker().owners.clone())
        } else {
            Owners::Unusable("no permission".to_owned())
        };
        let Ok(id) = ownership.compare(owners).await else { return false };
        process.hang_if_dead().await;
        let Some(id) = id else { return true };
        self.checker().note(format!("worker {} takes the queue over", process.number));
        self.checker().met(Situation::Case(Case::OtherOwner));
        let (fault, latency) = self.confirmation(OWNER);
        sleep(latency).await;
        process.hang_if_dead().await;
        match fault {
            None => self.broker().owners = vec![id],
            Some(Confirm::UnconfirmedStored) => self.broker().owners.push(id),
            Some(_) => {}
        }
        let _ = self.crashes_here(process);
        process.hang_if_dead().await;
        fault.is_none()
    }

    /// Whether the queue's owner is still this worker's ledger.
    fn is_owner(&self, process: &WorkerProcess) -> bool {
        let Some(ownership) = process.ownership() else { return false };
        let id = ownership.id();
        !ownership.depends_on_owner() || self.broker().owners == [id]
    }

    // Publishing copies.

    pub(crate) fn start_publish_outage(&self, confirm: Confirm, lasts: Duration) {
        self.broker().publish_outage = Some((confirm, Instant::now() + lasts));
    }

    pub(crate) fn is_publishing_blocked(&self) -> bool {
        self.broker().publish_outage.is_some_and(|(_, until)| until > Instant::now())
    }

    /// Whether nothing could be published a short time ago. The worker tries again after at most this time.
    pub(crate) fn was_publishing_blocked(&self) -> bool {
        let tried_again = Duration::from_secs(15);
        self.broker().publish_outage.is_some_and(|(_, until)| until + tried_again > Instant::now())
    }

    fn confirmation(&self, number: usize) -> (Option<Confirm>, Duration) {
        let mut broker = self.broker();
        let turn = broker.publishes.entry(number).or_default();
        *turn += 1;
        let mut rng = self.script.rng(Draw::Publish, number, *turn);
        let latency = Duration::from_millis(rng.u64(0..20));
        let unlucky = !self.is_fault_free() && chance(&mut rng, self.script.setting.publish_faults);
        let publish_outage =
            broker.publish_outage.filter(|(_, until)| *until > Instant::now()).map(|(confirm, _)| confirm);
        let fault = publish_outage.or_else(|| unlucky.then(|| random_confirm(&mut rng)));
        if let Some(fault) = fault {
            self.checker().met(Situation::Publish(fault));
            broker.last_failure = Some(Instant::now());
        }
        (fault, latency)
    }

    /// Stores a copy on its queue. False if there is no such queue.
    fn store(self: &Arc<Self>, number: usize, queue: &str, message: Message) -> bool {
        let config = &self.config;
        let work = &config.broker.queue;
        if let Some(id) = text(&message, "x-wtw-message-id") {
            self.stores.register_id(&id, self.checker().account_of(number));
        }
        if *queue == config.broker.dead_letter_queue {
            self.checker().dead_lettered(number, &message);
            self.broker().dead.push(QueuedMessage::new(number, message));
            return true;
        }
        let delays = config.retry.delays.iter().map(|delay| (retry_queue(work, *delay), *delay));
        let ttl =
            delays.chain([(hold_queue(work), HOLD_QUEUE_DELAY)]).find(|(name, _)| name == queue).map(|(_, ttl)| ttl);
        let Some(ttl) = ttl else { return false };
        self.checker().copied(number, queue, &message);
        self.broker().waiting += 1;
        self.after(ttl, move |world| {
            let message = expired(message, world.config.broker.queue.clone());
            let mut broker = world.broker();
            broker.waiting -= 1;
            broker.work.push_back(QueuedMessage::new(number, message));
            drop(broker);
            world.dispatch();
        });
        true
    }
}

/// Drops a delivery of a connection that is gone, without settling it.
fn forget(delivery: Delivery) {
    debug_assert!(!delivery.acker.is_open());
}

/// The message as the broker delivers it after its time on a retry queue.
fn expired(mut message: Message, queue: String) -> Message {
    let mut death = Headers::default();
    death.insert("reason".into(), HeaderValue::LongString("expired".into()));
    let deaths = HeaderValue::FieldArray(vec![HeaderValue::FieldTable(death)].into());
    message = crate::broker::with_header(message, "x-death", deaths);
    (message.exchange, message.routing_key, message.redelivered) = (String::new(), queue, false);
    message
}

/// The publishing side of a worker.
pub(crate) struct FakePublisher {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<WorkerProcess>,
}

impl FakePublisher {
    async fn send(&self, queue: &str, message: Message) -> Result<(), PublishError> {
        let (world, process) = (&self.world, &self.process);
        let Some(HeaderValue::LongLongInt(number)) = message.header(NUMBER) else {
            return Err(PublishError::Refused);
        };
        let number = *number as usize;
        let (fault, latency) = world.confirmation(number);
        let why = || "simulated".to_owned();
        match fault {
            Some(Confirm::Unconnected) => return Err(PublishError::Unconnected(why())),
            Some(Confirm::Blocked) => return Err(PublishError::Blocked(why())),
            Some(_) | None => sleep(latency).await,
        }
        process.hang_if_dead().await;
        match fault {
            Some(Confirm::Refused) => return Err(PublishError::Refused),
            Some(Confirm::Returned) => return Err(PublishError::Returned(why())),
            Some(Confirm::Impossible) => return Err(PublishError::Impossible(why())),
            Some(Confirm::UnconfirmedLost) => {
                sleep(CONFIRM).await;
                process.hang_if_dead().await;
                return Err(PublishError::Unconfirmed(why()));
            }
            Some(Confirm::UnconfirmedStored | Confirm::Unconnected | Confirm::Blocked) | None => {}
        }
        if !world.store(number, queue, message) {
            return Err(PublishError::Returned(format!("no queue {queue}")));
        }
        let is_confirmed = fault.is_none() && !world.crashes_here(process);
        sleep(if is_confirmed { latency } else { CONFIRM }).await;
        if process.is_dead() || !is_confirmed {
            world.checker().exists_twice(number);
            process.hang_if_dead().await;
            return Err(PublishError::Unconfirmed(why()));
        }
        world.checker().confirmed(number, process.number);
        Ok(())
    }
}

impl Publish for FakePublisher {
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        let message = Message { body: body.to_vec(), properties, ..Message::default() };
        async move {
            self.process.hang_if_dead().await;
            self.send(queue, message).await
        }
        .boxed()
    }

    fn frame_max(&self) -> usize {
        131_072
    }
}
