//! RabbitMQ in memory: a work queue with a single active consumer, retry queues, a dead-letter queue, and connections that break.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wolkvox_task_worker::broker::{Acker, Delivery, DeliveryGone, HeaderValue, Headers, Message};

use crate::coverage::{Case, Met};
use crate::invariants::settling::Settling;
use crate::script::{Confirm, Draw};
use crate::world::{Life, LifeNumber, World};

/// The header with a message's number. All copies of the message have it.
pub(crate) const NUMBER: &str = "simulated-message";

/// A message in a queue.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) number: usize,
    pub(crate) message: Message,
    /// The broker's count of earlier deliveries.
    count: i64,
}

impl Stored {
    pub(crate) fn new(number: usize, message: Message) -> Self {
        Self { number, message, count: 0 }
    }
}

struct Unacked {
    stored: Stored,
    delivered: Instant,
}

struct Connection {
    number: u64,
    life: Arc<Life>,
    inbox: mpsc::Sender<Delivery>,
    unacked: BTreeMap<u64, Unacked>,
    /// Nothing arrives any more, in both directions.
    is_cut: bool,
    /// Cancelled when the worker notices that the connection is gone. The broker can notice it earlier or later.
    gone: CancellationToken,
    is_cancelled: bool,
}

/// The broker's state.
#[derive(Default)]
pub(crate) struct FakeBroker {
    pub(crate) work: VecDeque<Stored>,
    pub(crate) waiting: usize,
    pub(crate) dead: Vec<Stored>,
    /// The ledger ids on the queue `<queue>.owner`.
    pub(crate) owners: Vec<String>,
    connections: Vec<Connection>,
    next: u64,
    pub(crate) publishes: BTreeMap<usize, u64>,
    /// How every publish ends, and until when.
    pub(crate) publish_outage: Option<(Confirm, Instant)>,
    pub(crate) last_failure: Option<Instant>,
}

impl World {
    pub(crate) fn broker(&self) -> std::sync::MutexGuard<'_, FakeBroker> {
        self.broker.lock().expect("no panic inside")
    }

    /// Puts a publisher's message on the work queue.
    pub(crate) fn publish(self: &Arc<Self>, number: usize, message: Message) {
        self.truth().published(number);
        self.broker().work.push_back(Stored::new(number, message));
        self.dispatch();
    }

    /// Replays all dead letters, as the tools do.
    pub(crate) fn replay(self: &Arc<Self>) {
        let dead = std::mem::take(&mut self.broker().dead);
        for mut stored in dead {
            self.truth().replayed(stored.number);
            stored.message.exchange = String::new();
            stored.message.routing_key.clone_from(&self.config.broker.queue);
            self.broker().work.push_back(stored);
        }
        self.dispatch();
    }

    /// The messages that are not settled yet, as text.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let broker = self.broker();
        let unacked = broker.connections.iter().flat_map(|connection| connection.unacked.values());
        let mut left: Vec<String> = unacked.map(|held| format!("message {}, unacked", held.stored.number)).collect();
        left.extend(broker.work.iter().map(|stored| format!("message {}, in the work queue", stored.number)));
        if broker.waiting > 0 {
            left.push(format!("{} in the retry queues", broker.waiting));
        }
        left
    }

    /// The messages that a worker has, or will receive, as delivered before.
    pub(crate) fn delivered_before(&self, life: LifeNumber) -> Vec<usize> {
        let broker = self.broker();
        let of_others = |connection: &Connection| connection.life.number != life;
        let unacked = broker.connections.iter().flat_map(|connection| {
            let is_other = of_others(connection);
            connection.unacked.values().filter(move |held| is_other || held.stored.message.redelivered)
        });
        let before = broker.work.iter().filter(|stored| stored.message.redelivered);
        unacked.map(|held| held.stored.number).chain(before.map(|stored| stored.number)).collect()
    }

    // Connections.

    /// Connects a worker.
    pub(crate) fn connect(self: &Arc<Self>, life: &Arc<Life>) {
        let (sender, inbox) = mpsc::channel(self.script.setting.prefetch.into());
        let gone = CancellationToken::new();
        let mut broker = self.broker();
        broker.next += 1;
        let number = broker.next;
        broker.connections.push(Connection {
            number,
            life: Arc::clone(life),
            inbox: sender,
            unacked: BTreeMap::new(),
            is_cut: false,
            gone: gone.clone(),
            is_cancelled: false,
        });
        drop(broker);
        self.tasks.spawn(Arc::clone(self).consume(Arc::clone(life), number, inbox, gone));
        self.dispatch();
    }

    pub(crate) fn cancel_consumer(self: &Arc<Self>, life: LifeNumber) {
        for connection in &mut self.broker().connections {
            connection.is_cancelled |= connection.life.number == life;
        }
        self.dispatch();
    }

    /// The broker notices that a worker is gone.
    pub(crate) fn hang_up(self: &Arc<Self>, life: LifeNumber) {
        loop {
            let found = self.broker().connections.iter().find(|c| c.life.number == life).map(|c| c.number);
            match found {
                Some(number) => self.take_back(number),
                None => return,
            }
        }
    }

    /// The worker closes its connection. It connects again later, as soon as it can publish.
    pub(crate) fn close(self: &Arc<Self>, number: u64) {
        let closed = self.broker().connections.iter().find(|c| c.number == number && !c.gone.is_cancelled()).map(|c| {
            c.gone.cancel();
            Arc::clone(&c.life)
        });
        let Some(life) = closed else { return };
        self.truth().knows_gone(number);
        self.take_back(number);
        self.connect_later(life, Duration::from_millis(500));
    }

    fn connect_later(self: &Arc<Self>, life: Arc<Life>, wait: Duration) {
        self.after(wait, move |world| {
            let is_publishing = life.publish_gate.closed().is_none() || !world.is_publishing_blocked();
            if life.is_dead() || life.stop.is_cancelled() {
            } else if is_publishing {
                life.publish_gate.open();
                world.connect(&life);
            } else {
                world.connect_later(life, Duration::from_secs(5));
            }
        });
    }

    /// The current connection of a worker breaks. Worker and broker notice it after these times.
    pub(crate) fn cut(self: &Arc<Self>, worker: usize, client: Duration, broker: Duration) {
        let mut state = self.broker();
        let of_worker = |c: &&mut Connection| {
            c.life.worker == worker && !c.is_cut && !c.is_cancelled && !c.life.is_dead() && !c.gone.is_cancelled()
        };
        let Some(connection) = state.connections.iter_mut().find(of_worker) else { return };
        connection.is_cut = true;
        let (number, life, gone) = (connection.number, Arc::clone(&connection.life), connection.gone.clone());
        drop(state);
        self.after(broker, move |world| world.take_back(number));
        let mut dice = self.script.dice(Draw::Reconnect, worker, number);
        let wait = Duration::from_millis(dice.u64(200..1_000));
        self.after(client, move |world| {
            if gone.is_cancelled() {
                return;
            }
            if world.truth().has_requests_open(life.number) {
                world.truth().met(Met::Case(Case::GoneInFlight));
            }
            world.truth().knows_gone(number);
            gone.cancel();
            world.connect_later(life, wait);
        });
    }

    /// The broker closes a connection and requeues its unacknowledged messages.
    fn take_back(self: &Arc<Self>, number: u64) {
        let mut broker = self.broker();
        let Some(place) = broker.connections.iter().position(|c| c.number == number) else { return };
        let connection = broker.connections.remove(place);
        for held in connection.unacked.into_values().rev() {
            let mut stored = held.stored;
            stored.message.redelivered = true;
            stored.count += i64::from(self.script.setting.counts_deliveries);
            let is_known = connection.gone.is_cancelled();
            self.truth().returned(stored.number, connection.life.number, held.delivered, is_known);
            broker.work.push_front(stored);
        }
        drop(broker);
        self.dispatch();
    }

    // Deliveries.

    /// Delivers messages to the active consumer, as many as its prefetch allows.
    pub(crate) fn dispatch(self: &Arc<Self>) {
        let mut broker = self.broker();
        let broker = &mut *broker;
        let prefetch = usize::from(self.script.setting.prefetch);
        let Some(active) = broker.connections.iter_mut().find(|c| !c.is_cancelled) else { return };
        while active.unacked.len() < prefetch {
            let Some(stored) = broker.work.pop_front() else { return };
            broker.next += 1;
            let (tag, life, number) = (broker.next, Arc::clone(&active.life), stored.number);
            // A delivery on a broken connection or to a dead worker never arrives.
            let arrives = !active.is_cut && !life.is_dead() && !active.gone.is_cancelled();
            let place = if arrives { active.inbox.try_reserve().ok() } else { None };
            let mut message = stored.message.clone();
            if stored.count > 0 {
                message = with_header(message, "x-delivery-count", HeaderValue::LongLongInt(stored.count));
            }
            message.delivery_tag = tag;
            let id = message.id();
            if id.is_some() && active.unacked.values().any(|held| held.stored.message.id() == id) {
                self.truth().met(Met::Case(Case::SameIdTogether));
            }
            self.truth().note(format!("message {number} is delivered to worker {}", life.number));
            if let Some(place) = place {
                let (world, gone) = (Arc::clone(self), active.gone.clone());
                let connection = active.number;
                let acker = FakeAcker { world, life, connection, gone: gone.clone(), tag, number, is_settled: false };
                place.send(Delivery { message: Box::new(message), acker: Box::new(acker), gone });
            }
            active.unacked.insert(tag, Unacked { stored, delivered: Instant::now() });
        }
    }

    /// Settles a delivery. Fails if the worker knows that its connection is gone.
    fn settle(self: &Arc<Self>, acker: &FakeAcker, how: How) -> Result<(), DeliveryGone> {
        let (number, life) = (acker.number, &acker.life);
        let mut broker = self.broker();
        if acker.gone.is_cancelled() {
            // A copy of the message, if there is one, stays on its queue.
            self.truth().met(Met::Case(Case::AckTooLate));
            self.truth().exists_twice(number);
            return Err(DeliveryGone);
        }
        let connection = broker.connections.iter_mut().find(|c| c.number == acker.connection);
        let Some(connection) = connection.filter(|connection| !connection.is_cut) else {
            // The broker never reads the ack: it delivers the message again, or has done so.
            self.truth().met(Met::Case(Case::AckLost));
            self.truth().exists_twice(number);
            return Ok(());
        };
        let Some(held) = connection.unacked.remove(&acker.tag) else { return Err(DeliveryGone) };
        let failed = broker.last_failure.is_some_and(|at| at >= held.delivered);
        let settling = Settling { number, life: life.number, delivered: held.delivered, failed };
        match how {
            How::Ack => {
                let recorded = self.stores.is_created(life, &held.stored.message);
                self.truth().acked(&settling, recorded);
            }
            How::Requeue => {
                let mut stored = held.stored;
                stored.message.redelivered = true;
                broker.work.push_front(stored);
                self.truth().requeued(&settling);
            }
            How::Reject => self.truth().rejected(&settling),
        }
        drop(broker);
        if how == How::Requeue && life.publish_gate.closed().is_some() {
            self.truth().met(Met::Case(Case::StopsConsuming));
            self.close(acker.connection);
        }
        self.dispatch();
        Ok(())
    }
}

/// Adds a header to a message.
pub(crate) fn with_header(mut message: Message, name: &str, value: HeaderValue) -> Message {
    let mut headers: Headers = message.properties.headers().clone().unwrap_or_default();
    headers.insert(name.into(), value);
    message.properties = message.properties.with_headers(headers);
    message
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Ack,
    Requeue,
    Reject,
}

/// Settles one delivery.
struct FakeAcker {
    world: Arc<World>,
    life: Arc<Life>,
    connection: u64,
    gone: CancellationToken,
    tag: u64,
    number: usize,
    is_settled: bool,
}

impl Acker for FakeAcker {
    fn is_open(&self) -> bool {
        !self.gone.is_cancelled()
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(How::Ack)
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(How::Requeue)
    }

    fn reject(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(How::Reject)
    }
}

impl FakeAcker {
    fn settle(mut self: Box<Self>, how: How) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        async move {
            self.is_settled = true;
            crate::reports::settles(self.number);
            self.life.alive().await;
            if self.world.dies(&self.life) {
                self.life.alive().await;
            }
            let world = Arc::clone(&self.world);
            world.truth().settled(self.number, self.life.number, self.tag);
            world.settle(&self, how)
        }
        .boxed()
    }
}

impl Drop for FakeAcker {
    fn drop(&mut self) {
        if !self.is_settled && !self.life.is_dead() && !std::thread::panicking() && self.is_open() {
            self.world.truth().dropped(self.number);
        }
    }
}
