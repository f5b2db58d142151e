//! Counts and deletes the demo's queues.

use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How many messages are ready in each queue; unacknowledged ones are not counted.
pub(crate) async fn waiting(url: &str, names: &[String]) -> Result<Vec<(String, u32)>, String> {
    on_a_channel(url, async |channel| {
        let mut counts = Vec::new();
        for name in names {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
            let queue = declared.await.map_err(|error| format!("cannot read or delete the queue {name}: {error}"))?;
            counts.push((name.clone(), queue.message_count()));
        }
        Ok(counts)
    })
    .await
}

/// Deletes the queues with their messages.
pub(crate) async fn delete(url: &str, names: &[String]) -> Result<(), String> {
    on_a_channel(url, async |channel| {
        for name in names {
            let deleted = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
            deleted.await.map_err(|error| format!("cannot read or delete the queue {name}: {error}"))?;
        }
        Ok(())
    })
    .await
}

pub(crate) async fn on_a_channel<T>(
    url: &str,
    work: impl AsyncFnOnce(Channel) -> Result<T, String>,
) -> Result<T, String> {
    let working = async {
        let broker = |error: lapin::Error| format!("cannot work on the demo's queues: RabbitMQ: {error}");
        let connection = Connection::connect(url, ConnectionProperties::default()).await.map_err(broker)?;
        let channel = connection.create_channel().await.map_err(broker)?;
        let done = work(channel).await;
        let _ = connection.close(200, "".into()).await;
        done
    };
    let done = timeout(ANSWER_TIMEOUT, working).await;
    done.unwrap_or_else(|_| {
        Err(format!("RabbitMQ did not answer within {ANSWER_TIMEOUT:?}; is it overloaded or out of memory or disk?"))
    })
}
