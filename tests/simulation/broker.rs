//! A fake RabbitMQ in memory: a work queue with a single active consumer, retry queues, a dead-letter queue, and connections
//! that break.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wolkvox_task_worker::broker::{Acker, Delivery, DeliveryGone, HeaderValue, Headers, Message};

use crate::coverage::{Case, Situation};
use crate::invariants::settling::Settling;
use crate::script::{Confirm, Draw};
use crate::world::{ProcessNumber, WorkerProcess, World};

/// The header with a message's number. All copies of the message have it.
pub(crate) const NUMBER: &str = "simulated-message";

/// A message in a queue.
#[derive(Clone)]
pub(crate) struct QueuedMessage {
    pub(crate) number: usize,
    pub(crate) message: Message,
    /// The broker's count of earlier deliveries.
    count: i64,
}

impl QueuedMessage {
    pub(crate) fn new(number: usize, message: Message) -> Self {
        Self { number, message, count: 0 }
    }
}

struct Unacked {
    stored: QueuedMessage,
    delivered: Instant,
}

struct Connection {
    number: u64,
    process: Arc<WorkerProcess>,
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
    pub(crate) work: VecDeque<QueuedMessage>,
    pub(crate) waiting: usize,
    pub(crate) dead: Vec<QueuedMessage>,
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
        self.checker().published(number);
        self.broker().work.push_back(QueuedMessage::new(number, message));
        self.dispatch();
    }

    /// Replays all dead letters, as the tools do.
    pub(crate) fn replay(self: &Arc<Self>) {
        let dead = std::mem::take(&mut self.broker().dead);
        for mut stored in dead {
            self.checker().replayed(stored.number);
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

    /// The messages that a worker has, or will receive on its connection, as delivered before.
    pub(crate) fn delivered_before(&self, process: ProcessNumber) -> Vec<usize> {
        let broker = self.broker();
        // A worker that stops, or whose connection is broken, receives nothing before it has compared the owner again.
        let receives = |c: &Connection| c.process.number == process && !c.is_cut && !c.is_cancelled;
        let receives = broker.connections.iter().any(receives);
        let of_others = |connection: &Connection| connection.process.number != process;
        let unacked = broker.connections.iter().flat_map(|connection| {
            let is_other = of_others(connection);
            connection
                .unacked
                .values()
                .filter(move |held| if is_other { receives } else { held.stored.message.redelivered })
        });
        let before = broker.work.iter().filter(|stored| receives && stored.message.redelivered);
        unacked.map(|held| held.stored.number).chain(before.map(|stored| stored.number)).collect()
    }

    // Connections.

    /// Connects a worker.
    pub(crate) fn connect(self: &Arc<Self>, process: &Arc<WorkerProcess>) {
        let (sender, inbox) = mpsc::channel(self.script.setting.prefetch.into());
        let gone = CancellationToken::new();
        let mut broker = self.broker();
        broker.next += 1;
        let number = broker.next;
        broker.connections.push(Connection {
            number,
            process: Arc::clone(process),
            inbox: sender,
            unacked: BTreeMap::new(),
            is_cut: false,
            gone: gone.clone(),
            is_cancelled: false,
        });
        drop(broker);
        self.tasks.spawn(Arc::clone(self).consume(Arc::clone(process), number, inbox, gone));
        self.dispatch();
    }

    pub(crate) fn cancel_consumer(self: &Arc<Self>, process: ProcessNumber) {
        for connection in &mut self.broker().connections {
            connection.is_cancelled |= connection.process.number == process;
        }
        self.dispatch();
    }

    /// The broker notices that a worker is gone.
    pub(crate) fn close_connections(self: &Arc<Self>, process: ProcessNumber) {
        loop {
            let found = self.broker().connections.iter().find(|c| c.process.number == process).map(|c| c.number);
            match found {
                Some(number) => self.requeue_and_close(number),
                None => return,
            }
        }
    }

    /// The worker closes its connection. It connects again later, as soon as it can publish.
    /// The broker may have closed the connection before, without the worker's knowledge.
    pub(crate) fn close(self: &Arc<Self>, number: u64, process: &Arc<WorkerProcess>, gone: &CancellationToken) {
        if gone.is_cancelled() {
            return;
        }
        gone.cancel();
        self.checker().knows_gone(number);
        self.requeue_and_close(number);
        self.connect_later(Arc::clone(process), Duration::from_millis(500));
    }

    fn connect_later(self: &Arc<Self>, process: Arc<WorkerProcess>, wait: Duration) {
        self.after(wait, move |world| {
            let is_publishing = process.publish_gate.closed().is_none() || !world.is_publishing_blocked();
            if process.is_dead() || process.stop.is_cancelled() {
            } else if is_publishing {
                process.publish_gate.open();
                world.connect(&process);
            } else {
                world.connect_later(process, Duration::from_secs(5));
            }
        });
    }

    /// The current connection of a worker breaks. Worker and broker notice it after these times.
    pub(crate) fn cut(self: &Arc<Self>, worker: usize, client: Duration, broker: Duration) {
        let mut state = self.broker();
        let of_worker = |c: &&mut Connection| {
            c.process.worker == worker && !c.is_cut && !c.is_cancelled && !c.process.is_dead() && !c.gone.is_cancelled()
        };
        let Some(connection) = state.connections.iter_mut().find(of_worker) else { return };
        connection.is_cut = true;
        let (number, process, gone) = (connection.number, Arc::clone(&connection.process), connection.gone.clone());
        drop(state);
        self.after(broker, move |world| world.requeue_and_close(number));
        let mut rng = self.script.rng(Draw::Reconnect, worker, number);
        let wait = Duration::from_millis(rng.u64(200..1_000));
        self.after(client, move |world| {
            if gone.is_cancelled() {
                return;
            }
            if world.checker().has_requests_open(process.number) {
                world.checker().met(Situation::Case(Case::GoneInFlight));
            }
            world.checker().knows_gone(number);
            gone.cancel();
            world.connect_later(process, wait);
        });
    }

    /// The broker closes a connection and requeues its unacknowledged messages.
    fn requeue_and_close(self: &Arc<Self>, number: u64) {
        let mut broker = self.broker();
        let Some(index) = broker.connections.iter().position(|c| c.number == number) else { return };
        let connection = broker.connections.remove(index);
        for held in connection.unacked.into_values().rev() {
            let mut stored = held.stored;
            stored.message.redelivered = true;
            stored.count += i64::from(self.script.setting.counts_deliveries);
            let is_known = connection.gone.is_cancelled();
            self.checker().returned(stored.number, connection.process.number, held.delivered, is_known);
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
            let (tag, process, number) = (broker.next, Arc::clone(&active.process), stored.number);
            // A delivery on a broken connection or to a dead worker never arrives.
            let arrives = !active.is_cut && !process.is_dead() && !active.gone.is_cancelled();
            let permit = if arrives { active.inbox.try_reserve().ok() } else { None };
            let mut message = stored.message.clone();
            if stored.count > 0 {
                message = with_header(message, "x-delivery-count", HeaderValue::LongLongInt(stored.count));
            }
            message.delivery_tag = tag;
            let id = message.id();
            if id.is_some() && active.unacked.values().any(|held| held.stored.message.id() == id) {
                self.checker().met(Situation::Case(Case::SameIdTogether));
            }
            self.checker().note(format!("message {number} is delivered to worker {}", process.number));
            if let Some(permit) = permit {
                let (world, gone) = (Arc::clone(self), active.gone.clone());
                let connection = active.number;
                let acker =
                    FakeAcker { world, process, connection, gone: gone.clone(), tag, number, is_settled: false };
                permit.send(Delivery { message: Box::new(message), acker: Box::new(acker), gone });
            }
            active.unacked.insert(tag, Unacked { stored, delivered: Instant::now() });
        }
    }

    /// Settles a delivery. Fails if the worker knows that its connection is gone.
    fn settle(self: &Arc<Self>, acker: &FakeAcker, how: SettleMethod) -> Result<(), DeliveryGone> {
        let (number, process) = (acker.number, &acker.process);
        let mut broker = self.broker();
        if acker.gone.is_cancelled() {
            // A copy of the message, if there is one, stays on its queue.
            self.checker().met(Situation::Case(Case::AckTooLate));
            self.checker().exists_twice(number);
            return Err(DeliveryGone);
        }
        let connection = broker.connections.iter_mut().find(|c| c.number == acker.connection);
        let Some(connection) = connection.filter(|connection| !connection.is_cut) else {
            // The broker never reads the ack: it delivers the message again, or has done so.
            self.checker().met(Situation::Case(Case::AckLost));
            self.checker().exists_twice(number);
            return Ok(());
        };
        let Some(held) = connection.unacked.remove(&acker.tag) else { return Err(DeliveryGone) };
        let failed = broker.last_failure.is_some_and(|at| at >= held.delivered);
        let settling = Settling { number, process: process.number, delivered: held.delivered, failed };
        match how {
            SettleMethod::Ack => {
                let recorded = self.stores.is_created(process, &held.stored.message);
                self.checker().acked(&settling, recorded);
            }
            SettleMethod::Requeue => {
                let mut stored = held.stored;
                stored.message.redelivered = true;
                broker.work.push_front(stored);
                self.checker().requeued(&settling);
            }
            SettleMethod::Reject => {
                let possibly_created = held.stored.message.header("x-wtw-possibly-created");
                self.checker().rejected(&settling, possibly_created == Some(&HeaderValue::Boolean(true)));
            }
        }
        drop(broker);
        if how == SettleMethod::Requeue && process.publish_gate.closed().is_some() {
            self.checker().met(Situation::Case(Case::StopsConsuming));
            self.close(acker.connection, process, &acker.gone);
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
enum SettleMethod {
    Ack,
    Requeue,
    Reject,
}

/// Settles one delivery.
struct FakeAcker {
    world: Arc<World>,
    process: Arc<WorkerProcess>,
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
        self.settle(SettleMethod::Ack)
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(SettleMethod::Requeue)
    }

    fn reject(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(SettleMethod::Reject)
    }
}

impl FakeAcker {
    fn settle(mut self: Box<Self>, how: SettleMethod) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        async move {
            self.is_settled = true;
            crate::reports::settles(self.number);
            self.process.hang_if_dead().await;
            if self.world.crashes_here(&self.process) {
                self.process.hang_if_dead().await;
            }
            let world = Arc::clone(&self.world);
            world.checker().settled(self.number, self.process.number, self.tag);
            let settled = world.settle(&self, how);
            // What the worker does after that can be lost.
            if world.crashes_here(&self.process) {
                self.process.hang_if_dead().await;
            }
            settled
        }
        .boxed()
    }
}

impl Drop for FakeAcker {
    fn drop(&mut self) {
        if !self.is_settled && !self.process.is_dead() && !std::thread::panicking() && self.is_open() {
            self.world.checker().dropped(self.number);
        }
    }
}
