//! The bare loop of `make bench`: lapin and reqwest only. It has no validation, ledger, metrics or retries; a failed message stays
//! unacknowledged.
//!
//! `bare-loop AMQP_URL QUEUE POST_URL IN_FLIGHT PREFETCH`

use std::error::Error;
use std::sync::Arc;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, Consumer};
use reqwest::Client;
use tokio::sync::Semaphore;

type Failed = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [amqp, queue, post, in_flight, prefetch] = arguments.as_slice() else {
        return Err("usage: bare-loop AMQP_URL QUEUE POST_URL IN_FLIGHT PREFETCH".into());
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().build()?;
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch.parse()?, BasicQosOptions::default()).await?;
    let consume =
        channel.basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    // On a thread of the runtime, because waking tasks from the main thread costs more.
    tokio::spawn(work(consume.await?, client, post.clone(), in_flight.parse()?)).await?
}

async fn work(mut deliveries: Consumer, client: Client, post: String, in_flight: usize) -> Result<(), Failed> {
    let places = Arc::new(Semaphore::new(in_flight));
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        let place = Arc::clone(&places).acquire_owned().await?;
        let request = client.post(post.as_str());
        tokio::spawn(async move {
            let body = [PREFIX, &delivery.data, b"}"].concat();
            let request = request.header("wolkvox-token", "bench").header("content-type", "application/json");
            let answer = request.body(body).send().await?.error_for_status()?.bytes().await?;
            drop(place);
            if answer.starts_with(br#"{"code":"200""#) {
                delivery.acker.ack(BasicAckOptions::default()).await?;
            }
            Ok::<_, Failed>(())
        });
    }
    Ok(())
}

/// The JSON that insert.php expects around a task's fields.
const PREFIX: &[u8] = br#"{"operation":"bench","module":"wolkvox_activities","type":"task","fields":"#;
