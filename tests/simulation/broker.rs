//! RabbitMQ in memory: the work queue with a single active consumer, waiting queues, dead letters, connections that break.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use wolkvox_task_worker::broker::topology::{HOLD, hold_queue, retry_queue};
use wolkvox_task_worker::broker::{
    Acker, Delivery, DeliveryGone, HeaderValue, Headers, Message, Properties, Publish, PublishError,
};

use crate::coverage::{Case, Met};
use crate::invariants::{Life as LifeNumber, Settling};
use crate::schedule::{Confirm, Game, chance, random_confirm};
use crate::world::{Life, World};

/// Carries a letter's number through all its copies.
pub(crate) const NUMBER: &str = "simulated-letter";
/// As long as a publisher waits for a confirm.
const CONFIRM: Duration = Duration::from_secs(10);

/// A message in a queue.
#[derive(Clone)]
pub(crate) struct Stored {
    number: usize,
    message: Message,
    /// Who was given it last.
    holder: Option<LifeNumber>,
}

struct Held {
    stored: Stored,
    delivered: Instant,
}

struct Connection {
    number: u64,
    life: Arc<Life>,
    sender: mpsc::Sender<Delivery>,
    unacked: BTreeMap<u64, Held>,
    /// Nothing arrives any more, in neither direction.
    cut: bool,
    /// Cancelled when the client knows. The broker may know earlier, or later.
    lost: CancellationToken,
    cancelled: bool,
}

/// The broker's state.
#[derive(Default)]
pub(crate) struct Queues {
    work: VecDeque<Stored>,
    waiting: usize,
    dead: Vec<Stored>,
    connections: Vec<Connection>,
    next: u64,
    publishes: BTreeMap<usize, u64>,
    /// How publishes end, until when.
    weather: Option<(Confirm, Instant)>,
    last_failure: Option<Instant>,
}

impl World {
    fn queues(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.queues.lock().expect("no panic inside")
    }

    pub(crate) fn publish_weather(&self, confirm: Confirm, lasts: Duration) {
        self.queues().weather = Some((confirm, Instant::now() + lasts));
    }

    /// A publisher's message arrives.
    pub(crate) fn publish(self: &Arc<Self>, number: usize, message: Message) {
        self.book().published(number);
        self.queues().work.push_back(Stored { number, message, holder: None });
        self.dispatch();
    }

    /// All dead letters go to the work queue again, as the tool sends them.
    pub(crate) fn replay(self: &Arc<Self>) {
        let dead = std::mem::take(&mut self.queues().dead);
        for mut stored in dead {
            self.book().replayed(stored.number);
            stored.message.exchange = String::new();
            stored.message.routing_key.clone_from(&self.config.broker.queue);
            (stored.message.redelivered, stored.holder) = (false, None);
            self.queues().work.push_back(stored);
        }
        self.dispatch();
    }

    /// What is not settled yet.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let queues = self.queues();
        let unacked = queues.connections.iter().flat_map(|connection| connection.unacked.values());
        let mut left: Vec<String> = unacked.map(|held| format!("letter {}, unacked", held.stored.number)).collect();
        left.extend(queues.work.iter().map(|stored| format!("letter {}, in the work queue", stored.number)));
        if queues.waiting > 0 {
            left.push(format!("{} in the retry queues", queues.waiting));
        }
        left
    }

    // Consuming.

    /// Connects a new worker.
    pub(crate) fn connect_life(self: &Arc<Self>, life: &Arc<Life>) -> mpsc::Receiver<Delivery> {
        let (sender, receiver) = mpsc::channel(self.script.setting.prefetch.into());
        self.connect(Arc::clone(life), sender);
        receiver
    }

    fn connect(self: &Arc<Self>, life: Arc<Life>, sender: mpsc::Sender<Delivery>) {
        let mut queues = self.queues();
        queues.next += 1;
        let number = queues.next;
        queues.connections.push(Connection {
            number,
            life,
            sender,
            unacked: BTreeMap::new(),
            cut: false,
            lost: CancellationToken::new(),
            cancelled: false,
        });
        drop(queues);
        self.dispatch();
    }

    pub(crate) fn cancel_consumer(self: &Arc<Self>, life: LifeNumber) {
        for connection in &mut self.queues().connections {
            connection.cancelled |= connection.life.number == life;
        }
        self.dispatch();
    }

    /// The broker learns that a worker is gone.
    pub(crate) fn hang_up(self: &Arc<Self>, life: LifeNumber) {
        loop {
            let found = self.queues().connections.iter().find(|c| c.life.number == life).map(|c| c.number);
            match found {
                Some(number) => self.requeue(number),
                None => return,
            }
        }
    }

    /// The present connection of a worker breaks; both sides notice at their own time.
    pub(crate) fn cut(self: &Arc<Self>, worker: usize, client: Duration, broker: Duration) {
        let mut queues = self.queues();
        let of_worker = |c: &&mut Connection| c.life.worker == worker && !c.cut && !c.cancelled && !c.life.is_dead();
        let Some(connection) = queues.connections.iter_mut().find(of_worker) else { return };
        connection.cut = true;
        let (number, life, sender) = (connection.number, Arc::clone(&connection.life), connection.sender.clone());
        let lost = connection.lost.clone();
        drop(queues);
        self.after(broker, move |world| world.requeue(number));
        let mut dice = self.script.dice(Game::Reconnect, worker, number);
        let again = client + Duration::from_millis(dice.u64(200..1_000));
        let of_life = life.number;
        self.after(client, move |world| {
            if world.book().has_requests_out(of_life) {
                world.book().met(Met::Case(Case::LostInFlight));
            }
            world.book().knows_lost(number);
            lost.cancel();
        });
        self.after(again, move |world| {
            if !life.is_dead() && !sender.is_closed() {
                world.connect(life, sender);
            }
        });
    }

    /// The broker gives a connection up and its deliveries to others.
    fn requeue(self: &Arc<Self>, number: u64) {
        let mut queues = self.queues();
        let Some(place) = queues.connections.iter().position(|c| c.number == number) else { return };
        let connection = queues.connections.remove(place);
        for held in connection.unacked.into_values().rev() {
            let mut stored = held.stored;
            stored.message.redelivered = true;
            self.book().requeued(&Settling {
                number: stored.number,
                life: connection.life.number,
                delivered: held.delivered,
                unpublishable: true,
            });
            queues.work.push_front(stored);
        }
        drop(queues);
        self.dispatch();
    }

    /// Hands messages to the active consumer, as many as its prefetch allows.
    fn dispatch(self: &Arc<Self>) {
        let mut queues = self.queues();
        let queues = &mut *queues;
        let prefetch = usize::from(self.script.setting.prefetch);
        let Some(active) = queues.connections.iter_mut().find(|c| !c.cancelled) else { return };
        while active.unacked.len() < prefetch {
            let Some(mut stored) = queues.work.pop_front() else { return };
            queues.next += 1;
            let (tag, life) = (queues.next, Arc::clone(&active.life));
            // A cut or dead one's delivery never arrives; a full or closed channel takes it later, or never.
            let lost = active.cut || life.is_dead();
            let place = if lost { None } else { active.sender.try_reserve().ok() };
            if place.is_none() && !lost {
                queues.work.push_front(stored);
                self.after(Duration::from_millis(1), |world| world.dispatch());
                return;
            }
            self.book().delivered(stored.number, life.number, stored.holder);
            let id = stored.message.id();
            if id.is_some() && active.unacked.values().any(|held| held.stored.message.id() == id) {
                self.book().met(Met::Case(Case::Twins));
            }
            if stored.message.header("x-wtw-dead-letter").is_some() {
                let created = self.vault.is_created(&stored.message);
                self.book().met(Met::Case(if created { Case::ReplayOfCreated } else { Case::Replay }));
            }
            stored.holder = Some(life.number);
            if let Some(place) = place {
                let (world, connection, number) = (Arc::clone(self), active.number, stored.number);
                let lost = active.lost.clone();
                self.book().taken(number, life.number, tag, connection);
                let receipt = Ticket { world, life, connection, lost: lost.clone(), tag, number, settled: false };
                place.send(Delivery { message: Box::new(stored.message.clone()), receipt: Box::new(receipt), lost });
            }
            active.unacked.insert(tag, Held { stored, delivered: Instant::now() });
        }
    }

    /// Ends a delivery; none when nobody waits for it.
    fn settle(self: &Arc<Self>, ticket: &Ticket, nack_requeue: bool) -> Result<(), DeliveryGone> {
        let mut queues = self.queues();
        if ticket.lost.is_cancelled() {
            self.book().met(Met::Case(Case::AckStale));
            // Its copy, if there is one, is there all the same.
            self.book().forked(ticket.number);
            return Err(DeliveryGone);
        }
        let connection = queues.connections.iter_mut().find(|c| c.number == ticket.connection);
        let Some(connection) = connection.filter(|connection| !connection.cut) else {
            // Written, and never read: the broker delivers it anew, or has done so.
            self.book().met(Met::Case(Case::AckLost));
            self.book().forked(ticket.number);
            return Ok(());
        };
        let Some(held) = connection.unacked.remove(&ticket.tag) else { return Err(DeliveryGone) };
        let last_failure = queues.last_failure;
        let settling = Settling {
            number: ticket.number,
            life: ticket.life.number,
            delivered: held.delivered,
            unpublishable: last_failure.is_some_and(|at| at >= held.delivered),
        };
        if nack_requeue {
            let mut stored = held.stored;
            let open = self.vault.is_open(&stored.message);
            stored.message.redelivered = true;
            queues.work.push_front(stored);
            drop(queues);
            self.book().given_back(&settling, open);
        } else {
            drop(queues);
            let recorded = self.vault.is_created(&held.stored.message);
            self.book().acked(&settling, recorded);
        }
        self.dispatch();
        Ok(())
    }

    // Publishing copies.

    fn confirmation(&self, number: usize) -> (Option<Confirm>, Duration) {
        let mut queues = self.queues();
        let turn = queues.publishes.entry(number).or_default();
        *turn += 1;
        let mut dice = self.script.dice(Game::Publish, number, *turn);
        let latency = Duration::from_millis(dice.u64(0..20));
        let unlucky = !self.is_calm() && chance(&mut dice, self.script.setting.publish_faults);
        let weather = queues.weather.filter(|(_, until)| *until > Instant::now()).map(|(confirm, _)| confirm);
        let fault = weather.or_else(|| unlucky.then(|| random_confirm(&mut dice)));
        if let Some(fault) = fault {
            self.book().met(Met::Publish(fault));
            queues.last_failure = Some(Instant::now());
        }
        (fault, latency)
    }

    /// A copy reaches its queue.
    fn store(self: &Arc<Self>, number: usize, queue: &str, message: Message) -> bool {
        let config = &self.config;
        let work = &config.broker.queue;
        if *queue == config.broker.dead_letter_queue {
            self.book().died(number, &message);
            self.queues().dead.push(Stored { number, message, holder: None });
            return true;
        }
        let delays = config.retry.delays.iter().map(|delay| (retry_queue(work, *delay), *delay));
        let ttl = delays.chain([(hold_queue(work), HOLD)]).find(|(name, _)| name == queue).map(|(_, ttl)| ttl);
        let Some(ttl) = ttl else { return false };
        self.book().copied(number, queue, &message);
        self.queues().waiting += 1;
        self.after(ttl, move |world| {
            let message = expired(message, world.config.broker.queue.clone());
            let mut queues = world.queues();
            queues.waiting -= 1;
            queues.work.push_back(Stored { number, message, holder: None });
            drop(queues);
            world.dispatch();
        });
        true
    }
}

/// As the broker delivers what a queue's TTL brought back.
fn expired(mut message: Message, queue: String) -> Message {
    let mut headers = message.properties.headers().clone().unwrap_or_default();
    let mut death = Headers::default();
    death.insert("reason".into(), HeaderValue::LongString("expired".into()));
    headers.insert("x-death".into(), HeaderValue::FieldArray(vec![HeaderValue::FieldTable(death)].into()));
    message.properties = message.properties.with_headers(headers);
    (message.exchange, message.routing_key, message.redelivered) = (String::new(), queue, false);
    message
}

/// A receipt.
struct Ticket {
    world: Arc<World>,
    life: Arc<Life>,
    connection: u64,
    lost: CancellationToken,
    tag: u64,
    number: usize,
    settled: bool,
}

impl Acker for Ticket {
    fn usable(&self) -> bool {
        !self.lost.is_cancelled()
    }

    fn ack(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(false)
    }

    fn nack_requeue(self: Box<Self>) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        self.settle(true)
    }
}

impl Ticket {
    fn settle(mut self: Box<Self>, nack_requeue: bool) -> BoxFuture<'static, Result<(), DeliveryGone>> {
        async move {
            self.settled = true;
            self.life.still().await;
            if self.world.dies(&self.life) {
                self.life.still().await;
            }
            let world = Arc::clone(&self.world);
            world.book().let_go(self.number, self.life.number, self.tag);
            world.settle(&self, nack_requeue)
        }
        .boxed()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.settled && !self.life.is_dead() && !std::thread::panicking() && self.usable() {
            self.world.book().dropped(self.number);
        }
    }
}

/// The publishing side of a worker.
pub(crate) struct Edge {
    pub(crate) world: Arc<World>,
    pub(crate) life: Arc<Life>,
}

impl Edge {
    async fn send(&self, queue: &str, message: Message) -> Result<(), PublishError> {
        let (world, life) = (&self.world, &self.life);
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
        life.still().await;
        match fault {
            Some(Confirm::Refused) => return Err(PublishError::Refused),
            Some(Confirm::Returned) => return Err(PublishError::Returned(why())),
            Some(Confirm::UnconfirmedLost) => {
                sleep(CONFIRM).await;
                life.still().await;
                return Err(PublishError::Unconfirmed(why()));
            }
            Some(Confirm::UnconfirmedStored | Confirm::Unconnected | Confirm::Blocked) | None => {}
        }
        if !world.store(number, queue, message) {
            return Err(PublishError::Returned(format!("no queue {queue}")));
        }
        let confirmed = fault.is_none() && !world.dies(life);
        sleep(if confirmed { latency } else { CONFIRM }).await;
        if life.is_dead() || !confirmed {
            world.book().forked(number);
            life.still().await;
            return Err(PublishError::Unconfirmed(why()));
        }
        world.book().confirmed(number, life.number);
        Ok(())
    }
}

impl Publish for Edge {
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
        properties: Properties,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        let message = Message { body: body.to_vec(), properties, ..Message::default() };
        async move {
            self.life.still().await;
            self.send(queue, message).await
        }
        .boxed()
    }

    fn frame_max(&self) -> usize {
        131_072
    }
}
