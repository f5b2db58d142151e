//! A message that the worker's AMQP client cannot read: a short string of its properties is not UTF-8.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;
use wolkvox_task_worker::sandbox::Options;

use crate::support::WAIT_TIMEOUT;
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::process::run;
use crate::support::rig::{Crm, LedgerFile, Rig, task};

/// The delivery limit of the work queue. Small, so that other messages would reach it too if they were delivered as often.
const DELIVERY_LIMIT: i64 = 4;
const NOT_UTF8: &[u8] = b"caf\xe9";

const CONNECTION: u16 = 10;
const CHANNEL: u16 = 20;
const BASIC: u16 = 60;
const CONFIRM: u16 = 85;

/// A minimal AMQP 0-9-1 client that can write and read any bytes.
struct Raw(TcpStream);

/// Arguments of a method.
#[derive(Default)]
struct Arguments(Vec<u8>);

impl Arguments {
    fn new() -> Self {
        Self::default()
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn short(self, text: &[u8]) -> Self {
        self.bytes(&[u8::try_from(text.len()).expect("short")]).bytes(text)
    }

    fn long(self, text: &[u8]) -> Self {
        self.bytes(&u32::try_from(text.len()).expect("a length").to_be_bytes()).bytes(text)
    }
}

impl Raw {
    async fn connect(url: &str) -> Self {
        let url = Url::parse(url).expect("an address");
        let host = url.host_str().expect("a host");
        let mut raw = Self(TcpStream::connect((host, url.port().unwrap_or(5672))).await.expect("a connection"));
        raw.0.write_all(b"AMQP\x00\x00\x09\x01").await.expect("written");
        raw.expect(CONNECTION, 10).await;
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap_or_default());
        let start = Arguments::new().long(b"").short(b"PLAIN").long(login.as_bytes()).short(b"en_US");
        raw.call(0, CONNECTION, 11, start).await;
        raw.expect(CONNECTION, 30).await;
        let tuned = Arguments::new().bytes(&2_047_u16.to_be_bytes()).bytes(&131_072_u32.to_be_bytes()).bytes(&[0, 0]);
        raw.call(0, CONNECTION, 31, tuned).await;
        let vhost = url.path().trim_start_matches('/').replace("%2f", "/");
        let vhost = if vhost.is_empty() { "/" } else { &vhost };
        raw.call(0, CONNECTION, 40, Arguments::new().short(vhost.as_bytes()).short(b"").bytes(&[0])).await;
        raw.expect(CONNECTION, 41).await;
        raw.call(1, CHANNEL, 10, Arguments::new().short(b"")).await;
        raw.expect(CHANNEL, 11).await;
        raw
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let size = u32::try_from(payload.len()).expect("a size").to_be_bytes();
        let frame = [&[kind], &channel.to_be_bytes()[..], &size, payload, &[0xce]].concat();
        self.0.write_all(&frame).await.expect("written");
    }

    async fn call(&mut self, channel: u16, class: u16, method: u16, arguments: Arguments) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &arguments.0].concat();
        self.frame(1, channel, &payload).await;
    }

    /// The next frame that is not a heartbeat.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut head = [0; 7];
            timeout(WAIT_TIMEOUT, self.0.read_exact(&mut head)).await.expect("in time").expect("a frame");
            let [kind, _, _, size @ ..] = head;
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes(size)).expect("a size") + 1];
            self.0.read_exact(&mut payload).await.expect("a payload");
            payload.pop();
            if kind != 8 {
                return (kind, payload);
            }
        }
    }

    async fn expect(&mut self, class: u16, method: u16) {
        let (kind, payload) = self.next().await;
        let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(kind == 1 && payload.starts_with(&expected), "{}", String::from_utf8_lossy(&payload));
    }

    /// Publishes a persistent message with a message id and a correlation id, and waits for its confirm.
    async fn publish(&mut self, queue: &str, body: &[u8], message_id: &[u8], correlation_id: &[u8]) {
        const DELIVERY_MODE: u16 = 1 << 12;
        const CORRELATION_ID: u16 = 1 << 10;
        const MESSAGE_ID: u16 = 1 << 7;
        self.call(1, CONFIRM, 10, Arguments::new().bytes(&[0])).await;
        self.expect(CONFIRM, 11).await;
        let publish = Arguments::new().bytes(&[0, 0]).short(b"").short(queue.as_bytes()).bytes(&[0]);
        self.call(1, BASIC, 40, publish).await;
        let header = Arguments::new()
            .bytes(&BASIC.to_be_bytes())
            .bytes(&[0, 0])
            .bytes(&(body.len() as u64).to_be_bytes())
            .bytes(&(DELIVERY_MODE | CORRELATION_ID | MESSAGE_ID).to_be_bytes())
            .bytes(&[2])
            .short(correlation_id)
            .short(message_id);
        self.frame(2, 1, &header.0).await;
        self.frame(3, 1, body).await;
        self.expect(BASIC, 80).await;
    }

    /// Takes the next message of a queue. Returns its encoded properties and its body.
    async fn take(&mut self, queue: &str) -> (Vec<u8>, Vec<u8>) {
        let get = Arguments::new().bytes(&[0, 0]).short(queue.as_bytes()).bytes(&[1]);
        self.call(1, BASIC, 70, get).await;
        self.expect(BASIC, 71).await;
        let (_, properties) = self.next().await;
        let (_, body) = self.next().await;
        (properties, body)
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Declares the work queue as the worker does, with a small delivery limit.
async fn declare_with_small_limit(rig: &Rig) {
    rig.declare_topology().await;
    rig.amqp.delete(&rig.queue).await;
    let [dead_lettered, ..] = rig.tool_queues();
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    for (name, value) in [
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT)),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&dead_lettered)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ] {
        arguments.insert(name.into(), value);
    }
    rig.amqp.declare(&rig.queue, arguments).await;
}

#[tokio::test]
async fn unreadable_message_is_dead_lettered_by_rabbitmq_and_others_are_created_once() {
    let broker = Broker::shared().await;
    let options = Options { latency: Duration::from_millis(20), ..Crm::options() };
    let rig = Rig::with("unreadable", &broker.url, options).await;
    declare_with_small_limit(&rig).await;
    let mut raw = Raw::connect(&broker.url).await;
    let mut published = Vec::new();
    for round in 0..3 {
        published.extend(rig.publish_many(&format!("good-{round}"), 15).await);
        let body = task(&format!("unreadable-{round}"));
        raw.publish(&rig.queue, &body, b"unreadable", NOT_UTF8).await;
    }
    // As many as serial mode lasts: the prefetch for two slots.
    published.extend(rig.publish_many("good-last", 48).await);
    let file = LedgerFile::new();
    let worker = rig.unready_worker(&[("WTW_LEDGER_URL", &file.url()), ("WTW_BROKER_TOPOLOGY", "verify")]);
    rig.crm.created(93).await;
    let [dead, ..] = rig.tool_queues();
    let dead_lettered = || async { (rig.amqp.count(&dead).await? == 3).then_some(()) };
    eventually("the unreadable messages are dead-lettered by the broker", dead_lettered).await;
    worker.says("a property that is not UTF-8").await;
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let (properties, body) = raw.take(&dead).await;
        assert!(contains(&properties, b"delivery_limit") && contains(&properties, NOT_UTF8));
        bodies.push(body);
    }
    bodies.sort();
    assert_eq!(bodies, [0, 1, 2].map(|round| task(&format!("unreadable-{round}"))));
    published.sort();
    assert_eq!(rig.crm.names().await, published, "one task each");
    // Serial mode is over.
    rig.crm.faults(json!([{ "action": "delay:2s" }])).await;
    rig.publish_many("later", 8).await;
    worker.reaches("wtw_messages_in_flight", 4.0).await;
    worker.process.stop().await;
}

/// An unreadable dead letter ends the connection, so the tools cannot pass it. They name it and say what to do.
#[tokio::test]
async fn unreadable_dead_letter_is_named_and_the_rest_can_be_read_without_it() {
    let rig = Rig::new("unreadable.dead-letter").await;
    rig.declare_topology().await;
    let (env, dead) = (rig.env(&[]), rig.dead_letter_queue());
    let mut raw = Raw::connect(rig.amqp.url()).await;
    let ready = async |count: u32| {
        let ready = || async { (rig.amqp.count(&dead).await == Some(count)).then_some(()) };
        eventually(&format!("{count} dead letters"), ready).await;
    };
    for before in 0..3 {
        for _ in 0..before {
            raw.publish(&dead, &task("good"), b"good", b"correlated").await;
        }
        raw.publish(&dead, &task("unreadable"), b"unreadable", NOT_UTF8).await;
        raw.publish(&dead, &task("good"), b"good", b"correlated").await;
        ready(before + 2).await;
        for args in [&["list"][..], &["replay", "--all", "--yes"], &["discard", "--all", "--yes", "--reason", "test"]] {
            let failed = run(&[&["dead-letters"], args].concat(), &env, b"").await;
            assert_eq!(failed.code, Some(1), "{}", failed.stderr);
            // Requeued messages come back in another order; only a message that was the first stays the first.
            let place =
                if args == ["list"] || before == 0 { format!("read before it: {before}\n") } else { String::new() };
            for part in ["a property that is not UTF-8", &place, "Remove it in RabbitMQ's management interface"] {
                assert!(failed.stderr.contains(part), "{args:?}: {part} is not in {}", failed.stderr);
            }
            // Nothing is settled, and nothing stays unacknowledged.
            ready(before + 2).await;
        }
        let mut left = before + 1;
        while raw.take(&dead).await.1 != task("unreadable") {
            left -= 1;
        }
        let discarded = run(&["dead-letters", "discard", "--all", "--yes", "--reason", "test"], &env, b"").await;
        // The good messages can have come back before it, so that the loop above took all of them.
        let expected = if left == 0 { (Some(1), String::new()) } else { (Some(0), format!("discarded: {left}\n")) };
        assert_eq!((discarded.code, discarded.stdout), expected, "{}", discarded.stderr);
    }
}

#[tokio::test]
async fn unreadable_message_of_one_dead_letter_queue_does_not_hide_the_other_one() {
    let rig = Rig::new("unreadable.other-queue").await;
    rig.declare_topology().await;
    let (env, dead, [broker, ..]) = (rig.env(&[]), rig.dead_letter_queue(), rig.tool_queues());
    let mut raw = Raw::connect(rig.amqp.url()).await;
    for (unreadable, readable) in [(&broker, &dead), (&dead, &broker)] {
        raw.publish(unreadable, &task("unreadable"), b"unreadable", NOT_UTF8).await;
        raw.publish(readable, &task("good"), b"good-1", b"correlated").await;
        for args in [&["list"][..], &["list", "--each"], &["list", "--each", "--json"]] {
            for queue in [unreadable, readable] {
                let is_back = || async { (rig.amqp.count(queue).await == Some(1)).then_some(()) };
                eventually("the message is ready", is_back).await;
            }
            let listed = run(&[&["dead-letters"], args].concat(), &env, b"").await;
            assert_eq!(listed.code, Some(1), "{args:?}: {}", listed.stderr);
            assert!(listed.stdout.contains("good-1"), "{args:?}: {}", listed.stdout);
            let why = format!("No command gets past that message of {unreadable}");
            assert!(listed.stderr.contains(&why), "{args:?}: {}", listed.stderr);
        }
        raw.take(unreadable).await;
        raw.take(readable).await;
    }
}
