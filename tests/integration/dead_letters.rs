//! Tests of the `dead-letters` command with a real RabbitMQ: reading changes nothing, and a replay loses and duplicates
//! nothing.

mod interrupted;
mod looking;
mod many;
mod replaying;
mod unusual;

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::support::process::{Env, Finished, run};
use crate::support::rig::{Rig, properties};

/// Runs the command, which must succeed. Returns its standard output.
async fn succeeds(env: &Env, args: &[&str]) -> String {
    let finished = tool(env, args).await;
    assert_eq!(finished.code, Some(0), "{args:?}: {}", finished.stderr);
    finished.stdout
}

async fn tool(env: &Env, args: &[&str]) -> Finished {
    run(&[&["dead-letters"], args].concat(), env, b"").await
}

/// Properties of a dead letter as the worker writes them.
pub(crate) fn dead_properties(
    id: Option<&str>,
    kind: &str,
    reason: &str,
    more: &[(&str, AMQPValue)],
) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let ours = [
        ("x-wtw-dead-letter", AMQPValue::LongLongInt(1)),
        ("x-wtw-error-stage", text("send")),
        ("x-wtw-error-kind", text(kind)),
        ("x-wtw-error-message", text(reason)),
        ("x-wtw-failed-at", text("2026-01-01T00:00:00.000Z")),
    ];
    let headers = ours.iter().chain(more).map(|(name, value)| (ShortString::from(*name), value.clone()));
    let properties = id.map_or_else(|| BasicProperties::default().with_delivery_mode(2), properties);
    properties.with_headers(FieldTable::from(headers.collect::<BTreeMap<_, _>>()))
}

impl Rig {
    /// Puts a dead letter into the dead-letter queue.
    pub(crate) async fn put_dead_letter(&self, body: &[u8], properties: BasicProperties) {
        self.amqp.publish(&self.dead_letter_queue(), body, properties).await;
    }

    /// Waits until this many dead letters are ready on the two dead-letter queues.
    pub(crate) async fn wait_for_dead_letters(&self, count: u32) {
        let [broker, ..] = self.tool_queues();
        let (dead, count_of) =
            (self.dead_letter_queue(), async |queue: &str| self.amqp.count(queue).await.unwrap_or(0));
        let ready = async || (count_of(&dead).await + count_of(&broker).await == count).then_some(());
        crate::support::eventually(&format!("{count} dead letters"), ready).await;
    }
}
