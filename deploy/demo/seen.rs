//! Reads the worker's pages while it runs.

use serde_json::Value;

use crate::http::Http;

/// The numbers of the worker's `/metrics` and `/status`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) created: u64,
    pub(crate) dead_lettered: u64,
    /// How often a message was sent to a retry queue.
    pub(crate) retried: u64,
    /// Attempts by outcome, without those that did not occur.
    pub(crate) attempts: Vec<(String, u64)>,
    /// Messages that the worker has received and not settled.
    pub(crate) in_flight: u64,
    /// Why the gate is closed; `None` while it is open.
    pub(crate) gate: Option<String>,
}

impl Seen {
    pub(crate) fn settled(&self) -> u64 {
        self.created + self.dead_lettered
    }

    /// Reads the worker's pages.
    pub(crate) async fn look(http: &Http, admin: &str) -> Result<Self, String> {
        let metrics = http.text(&format!("{admin}/metrics")).await?;
        let status = http.json(&format!("{admin}/status")).await?;
        let mut seen = Self {
            gate: status.pointer("/gate/reason").and_then(Value::as_str).map(ToOwned::to_owned),
            ..Self::default()
        };
        for line in metrics.lines() {
            seen.read(line);
        }
        Ok(seen)
    }

    /// Reads a line of the metrics, such as `wtw_attempts_total{outcome="created"} 7`.
    fn read(&mut self, line: &str) {
        let Some((name, count)) = line.rsplit_once(' ') else {
            return;
        };
        let Ok(count) = count.parse::<u64>() else {
            return;
        };
        let outcome =
            name.split_once("outcome=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(outcome, _)| outcome);
        if name == "wtw_messages_in_flight" {
            self.in_flight = count;
        } else if name.starts_with("wtw_settled_messages_total") {
            match outcome {
                Some("created") => self.created += count,
                Some("dead_lettered") => self.dead_lettered += count,
                Some("retried") => self.retried += count,
                _ => {}
            }
        } else if let Some(outcome) = outcome.filter(|_| count > 0)
            && name.starts_with("wtw_attempts_total")
        {
            self.attempts.push((outcome.to_owned(), count));
        }
    }
}
