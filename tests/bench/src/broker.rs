//! The broker, a private node of this machine's `rabbitmq-server`, and the messages.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Queue};
use tokio::time::{sleep, timeout};

use crate::clock;
use crate::reaper::Reaper;

/// The queue that all contenders consume.
pub const QUEUE: &str = "bench";
/// The queue with one active consumer, on which a standby waits.
pub const STANDBY_QUEUE: &str = "bench-standby";
/// The longest time for the start of the broker, and for one answer with a million waiting messages.
const BROKER_TIMEOUT: Duration = Duration::from_secs(120);
/// How many publishes wait for their confirms at the same time.
const PIPELINE: usize = 1_000;
const PERSISTENT: u8 = 2;

/// A running broker. Dropping it removes it.
pub struct Broker {
    /// The AMQP address.
    pub url: String,
    /// The folder of its data.
    pub folder: String,
    script: String,
    _reaper: Reaper,
}

impl Broker {
    /// Starts a broker.
    pub async fn start(top: &Path) -> Result<Self, String> {
        let server = output(&mut Command::new(top.join("deploy/rabbitmq-server.sh")))?;
        let script = top.join("tests/integration/support/broker/node.sh").display().to_string();
        // Not in TMPDIR: Erlang refuses some characters that its path can have.
        let folder = format!("/tmp/wolkvox-task-worker-bench.{:x}.{:08x}", std::process::id(), fastrand::u32(..));
        let reaper = Reaper::new(format!("'{script}' remove '{folder}'"))?;
        let ports: Vec<String> = (0..5).map(|_| free_port().map(|port| port.to_string())).collect::<Result<_, _>>()?;
        let mut create = Command::new(&script);
        output(create.args(["create", &folder, &server]).args(&ports))?;
        let [amqp, ..] = ports.as_slice() else { return Err("no port".to_owned()) };
        let url = format!("amqp://guest:guest@127.0.0.1:{amqp}/%2f");
        let broker = Self { url, folder, script, _reaper: reaper };
        broker.up().await?;
        Ok(broker)
    }

    /// Starts the node and waits until it answers.
    pub async fn up(&self) -> Result<(), String> {
        self.control("start")?;
        answers(&self.url).await
    }

    /// Stops the node properly. Its data stays.
    pub fn down(&self) -> Result<(), String> {
        self.control("stop")
    }

    fn control(&self, action: &str) -> Result<(), String> {
        output(Command::new(&self.script).args([action, &self.folder])).map(drop)
    }

    /// Opens a connection for the contenders' queue.
    pub async fn client(&self) -> Result<BrokerClient, String> {
        self.client_of(QUEUE).await
    }

    /// Opens a connection with a channel in confirm mode, for one queue.
    pub async fn client_of(&self, queue: &'static str) -> Result<BrokerClient, String> {
        within(async {
            let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(BrokerClient { connection, channel, queue })
        })
        .await
    }

    /// The version of RabbitMQ.
    pub fn version(&self) -> Result<String, String> {
        let mut ask = Command::new(&self.script);
        output(ask.args(["exec", &self.folder, "rabbitmqctl", "version"]))
    }
}

/// The benchmark's connection to the broker.
pub struct BrokerClient {
    connection: Connection,
    channel: Channel,
    queue: &'static str,
}

impl BrokerClient {
    /// Waits until the queue has no consumer, and empties it.
    pub async fn purge(&self) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < BROKER_TIMEOUT {
            within(self.channel.queue_purge(self.queue.into(), QueuePurgeOptions::default())).await?;
            let queue = self.queue().await?;
            if queue.message_count() == 0 && queue.consumer_count() == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(format!("the queue is not empty or still has consumers after {BROKER_TIMEOUT:?}"))
    }

    /// Waits until the queue has `count` consumers.
    pub async fn consumers(&self, count: usize) -> Result<(), String> {
        let began = Instant::now();
        while (self.queue().await?.consumer_count() as usize) < count {
            if began.elapsed() > BROKER_TIMEOUT {
                return Err(format!(
                    "the queue does not have {count} consumers after {BROKER_TIMEOUT:?}: see target/bench/log"
                ));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn queue(&self) -> Result<Queue, String> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        within(self.channel.queue_declare(self.queue.into(), options, FieldTable::default())).await
    }

    /// Publishes `count` tasks and waits for all confirms.
    pub async fn fill(&self, count: usize) -> Result<(), String> {
        let mut number = 0;
        while number < count {
            let end = count.min(number + PIPELINE);
            let mut confirms = Vec::with_capacity(end - number);
            for number in number..end {
                confirms.push(self.send(&task(number, DESCRIPTION)).await?);
            }
            for confirm in within(try_join_all(confirms)).await? {
                taken(&confirm)?;
            }
            number = end;
        }
        Ok(())
    }

    /// Publishes one task with the current time in its text.
    pub async fn stamped(&self, number: usize) -> Result<(), String> {
        let body = task(number, &clock::stamp());
        taken(&within(self.send(&body).await?).await?)
    }

    async fn send(&self, body: &str) -> Result<lapin::PublisherConfirm, String> {
        // Random, so that the ledger's entries are not written in the order of their keys.
        let id = format!("{:032x}", fastrand::u128(..));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(id.into());
        let options = BasicPublishOptions::default();
        let publish = self.channel.basic_publish("".into(), self.queue.into(), options, body.as_bytes(), properties);
        within(publish).await
    }

    /// Ends the connection.
    pub async fn close(self) {
        let _ = self.connection.close(200, "".into()).await;
    }
}

const DESCRIPTION: &str = "The customer asked on the phone for a call back about the delivery, in the morning if possible; \
                           see the case's notes of last week.";

/// A task message of about 400 bytes.
fn task(number: usize, description: &str) -> String {
    format!(
        r#"{{"name":"Call back about order {number}","name_module":"cases","completion_date":"2030-03-01 10:00:00","#
    ) + &format!(r#""id_record":"{number}","wolkvox_owner":"agent@example.com","description":"{description}","#)
        + r#""status":"created","priority":"high","remember":true,"reminder_date":"2030-03-01 09:00:00"}"#
}

fn taken(confirm: &Confirmation) -> Result<(), String> {
    match confirm {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("the broker did not accept a message: {other:?}")),
    }
}

/// Waits until an AMQP handshake succeeds.
async fn answers(url: &str) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let handshake = Connection::connect(url, ConnectionProperties::default());
        let why = match timeout(Duration::from_secs(5), handshake).await {
            Ok(Ok(connection)) => {
                let _ = connection.close(200, "".into()).await;
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no handshake within 5 s".to_owned(),
        };
        if began.elapsed() > BROKER_TIMEOUT {
            return Err(format!("the broker does not answer within {BROKER_TIMEOUT:?}: {why}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A free port on loopback, below the range that the system uses for outgoing connections.
pub fn free_port() -> Result<u16, String> {
    (0..1_000)
        .map(|_| fastrand::u16(20_000..32_000))
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| "no free port on 127.0.0.1".to_owned())
}

/// Runs a command and returns its output without the last line break.
pub fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let program = command.get_program().display();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits for the broker's answer within [`BROKER_TIMEOUT`]. A broker without space on its disk accepts messages and confirms
/// none.
async fn within<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, String> {
    match timeout(BROKER_TIMEOUT, answer).await {
        Ok(answered) => answered.map_err(|error| format!("the broker: {error}")),
        Err(_) => Err(format!("the broker does not answer within {BROKER_TIMEOUT:?}: is there space on its disk?")),
    }
}
