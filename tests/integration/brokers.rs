//! Tests of the brokers that the other tests use.

use std::fmt::Debug;
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::broker::{Broker, unique};

async fn soon<T, E: Debug>(step: impl Future<Output = Result<T, E>>) -> T {
    let done = timeout(Duration::from_secs(20), step).await;
    done.expect("within 20 s").expect("success")
}

async fn connect(url: &str) -> (Connection, Channel) {
    let connection = soon(Connection::connect(url, ConnectionProperties::default())).await;
    let channel = soon(connection.create_channel()).await;
    (connection, channel)
}

async fn refused(url: &str) {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let refused = timeout(Duration::from_secs(20), connecting).await;
    refused.expect("within 20 s").expect_err("nothing listens");
}

async fn put(channel: &Channel, queue: &str, body: &[u8]) {
    let durable = QueueDeclareOptions::durable();
    soon(channel.queue_declare(queue.into(), durable, FieldTable::default())).await;
    soon(channel.confirm_select(ConfirmSelectOptions::default())).await;
    let options = BasicPublishOptions::default();
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let publishing = channel.basic_publish("".into(), queue.into(), options, body, persistent);
    assert!(soon(soon(publishing).await).await.is_ack());
}

async fn get(channel: &Channel, queue: &str) -> Option<Vec<u8>> {
    let message = soon(channel.basic_get(queue.into(), BasicGetOptions::default())).await;
    message.map(|message| message.delivery.data)
}

#[tokio::test]
async fn shared_broker_accepts_connections() {
    let (_connection, channel) = connect(&Broker::shared().await.url).await;
    let queue = unique("brokers");
    put(&channel, &queue, b"kept").await;
    assert_eq!(get(&channel, &queue).await.as_deref(), Some(&b"kept"[..]));
    soon(channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default())).await;
}

#[tokio::test]
async fn own_broker_keeps_its_messages_when_stopped_paused_or_killed() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let queue = unique("brokers");
    let (_connection, channel) = connect(&broker.url).await;
    put(&channel, &queue, b"kept").await;

    broker.stop().await.expect("stopped");
    refused(&broker.url).await;
    broker.restart().await.expect("started again");
    let (_connection, channel) = connect(&broker.url).await;

    broker.pause().await.expect("paused");
    let getting = channel.basic_get(queue.as_str().into(), BasicGetOptions::default());
    let answer = timeout(Duration::from_secs(1), getting).await;
    answer.expect_err("nothing answers");
    broker.unpause().await.expect("continued");
    drop(connect(&broker.url).await);

    broker.kill().await.expect("killed");
    refused(&broker.url).await;
    broker.restart().await.expect("started after a crash");
    let (_connection, channel) = connect(&broker.url).await;
    assert_eq!(get(&channel, &queue).await.as_deref(), Some(&b"kept"[..]));
}

#[tokio::test]
async fn kept_broker_runs_until_its_remove_command() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.expect("a broker");
    let (url, management) = (broker.url.clone(), broker.management_url.clone());
    let remove = broker.keep().expect("a broker that this process started");
    let answered = Connection::connect(&url, ConnectionProperties::default());
    let answered = timeout(Duration::from_secs(20), answered).await;
    let management = management.expect("an address");
    let managed = TcpStream::connect(management.trim_start_matches("http://")).await;

    // Before any assertion, because nothing else removes the broker now.
    let removed = soon(Command::new("sh").args(["-c", &remove]).output()).await;
    assert!(removed.status.success(), "{remove}: {removed:?}");
    answered.expect("within 20 s").expect("a connection");
    managed.expect("a connection to the management interface");
    refused(&url).await;
}
