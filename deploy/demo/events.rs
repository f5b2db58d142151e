//! Publishes events of another system to an exchange. A rule turns them into tasks. Each event is published twice and creates
//! one task.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::http::Http;
use crate::launcher::{Launcher, Settings};
use crate::queues::on_a_channel;

/// How many events there are.
const COUNT: u64 = 20;
/// How long they may take.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(60);
const ROUTING_KEY: &str = "ticket.closed.web";
const RULES: &str = r#"
[[broker.bindings]]
exchange = "EXCHANGE"
type = "topic"
routing_key = "ticket.closed.#"

[[rules]]
name = "ticket-closed"
routing_key = "ticket.closed.#"
when = "body.rating < 3"
message_id = "ticket-{{ body.number }}"

[rules.task]
name = "Call {{ body.customer.name }} about ticket {{ body.number }}"
name_module = "cases"
id_record = "{{ body.customer.crm_id }}"
completion_date = "{{ now | add_business_days(1) | at('09:00') }}"
wolkvox_owner = "ADMIN_@demo"
"#;

/// What the events need.
pub(crate) struct Events<'a> {
    pub(crate) launcher: &'a Launcher,
    /// The settings of the demo's first worker. The events have their own worker and queue.
    pub(crate) settings: &'a Settings,
    pub(crate) broker: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) listen: String,
}

impl Events<'_> {
    /// The settings of the events' worker: another queue, another address, and rules.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let file = self.launcher.write("events.toml", &RULES.replace("EXCHANGE", &self.exchange()))?;
        let own = [
            ("WTW_CONFIG", file.display().to_string()),
            ("WTW_BROKER_QUEUE", self.queue.to_owned()),
            ("WTW_ADMIN_LISTEN", self.listen.clone()),
            ("WTW_LEDGER_URL", "memory:".to_owned()),
        ];
        let rest = self.settings.iter().filter(|(name, _)| own.iter().all(|(other, _)| other != name));
        Ok(rest.cloned().chain(own.clone()).collect())
    }

    fn exchange(&self) -> String {
        format!("{}.helpdesk", self.queue)
    }

    /// Publishes the events and waits for their tasks. Returns a line for the report, and whether the counts are right.
    pub(crate) async fn play(&self, http: &Http) -> Result<(String, bool), String> {
        let mut worker = self.launcher.start("worker-of-events", &self.settings()?, &["run"])?;
        let admin = format!("http://{}", self.listen);
        worker.answers(http, &format!("{admin}/readyz")).await?;
        let exchange = self.exchange();
        on_a_channel(self.broker, async move |channel| publish(&channel, &exchange).await).await?;
        let began = Instant::now();
        let settled = loop {
            let page = http.json(&format!("{admin}/status")).await?;
            let count = |outcome: &str| {
                page.pointer(&format!("/messages/settled/{outcome}")).and_then(Value::as_u64).unwrap_or(0)
            };
            let (created, already) = (count("created"), count("already_created"));
            if created + already >= 2 * COUNT || began.elapsed() > EVENTS_TIMEOUT {
                break (created, already);
            }
            sleep(Duration::from_millis(100)).await;
        };
        worker.stop().await?;
        let exchange = self.exchange();
        on_a_channel(self.broker, async move |channel| {
            let deleted = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
            deleted.map_err(|error| format!("the broker: {error}"))
        })
        .await?;
        let (created, already) = settled;
        let text = format!(
            "{COUNT} events, each published twice to a topic exchange: a rule created {created} tasks, and {already} second copies were recognised by their ids"
        );
        Ok((text, settled == (COUNT, COUNT)))
    }
}

/// Publishes each event twice, as a publisher does when a confirm is lost.
async fn publish(channel: &Channel, exchange: &str) -> Result<(), String> {
    let broker = |error: lapin::Error| format!("the broker: {error}");
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(broker)?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    for number in (1..=COUNT).chain(1..=COUNT) {
        let event =
            json!({ "number": number, "rating": 1, "customer": { "name": "Ana Gómez", "crm_id": 70_000 + number } });
        let properties = BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
        let body = event.to_string();
        let published =
            channel.basic_publish(exchange.into(), ROUTING_KEY.into(), options, body.as_bytes(), properties).await;
        match published.map_err(broker)?.await.map_err(broker)? {
            Confirmation::Ack(None) => {}
            refused @ (Confirmation::Ack(_) | Confirmation::Nack(_) | Confirmation::NotRequested) => {
                return Err(format!("RabbitMQ refused an event: {refused:?}"));
            }
        }
    }
    Ok(())
}
