//! Watches the worker until every message is settled, and lets the CRM fail for a while.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::http::Http;
use crate::launcher::Running;
use crate::screen::Screen;
use crate::seen::Seen;

/// The time between two readings.
const READ_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time until every message is settled.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(150);
/// The shortest outage. It lasts at least until the gate is closed.
const MIN_OUTAGE: Duration = Duration::from_millis(1_500);

/// The state of the outage.
enum Outage {
    Ahead,
    Began { at: Instant, gate_closed: bool },
    Over { gate_opened: bool },
}

/// The addresses of sandbox and worker.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) sandbox: String,
    pub(crate) admin: String,
}

/// Everything that watching needs.
pub(crate) struct Watch<'a> {
    pub(crate) http: &'a Http,
    pub(crate) at: &'a Addresses,
    pub(crate) worker: &'a mut Running,
    /// The sandbox's rules outside the outage.
    pub(crate) faults: Vec<Value>,
    pub(crate) total: u64,
}

impl Watch<'_> {
    /// Watches until every message is settled. Returns the last numbers.
    pub(crate) async fn until_settled(self, screen: &mut Screen) -> Result<Seen, String> {
        let began = Instant::now();
        let mut outage = Outage::Ahead;
        loop {
            let seen = match Seen::look(self.http, &self.at.admin).await {
                Ok(seen) => seen,
                Err(why) => return Err(self.worker.failure(&format!("does not answer: {why}"))),
            };
            screen.show(&seen);
            self.advance(&mut outage, &seen, screen).await?;
            let over = matches!(outage, Outage::Over { gate_opened: true });
            if over && seen.settled() >= self.total && seen.in_flight == 0 {
                return Ok(seen);
            }
            if began.elapsed() > SETTLE_TIMEOUT || self.worker.has_ended() {
                let what = format!("settled only {} of {}", seen.settled(), self.total);
                return Err(self.worker.failure(&what));
            }
            sleep(READ_INTERVAL).await;
        }
    }

    async fn advance(&self, outage: &mut Outage, seen: &Seen, screen: &Screen) -> Result<(), String> {
        match outage {
            // After two fifths of the messages, so that enough are left for the time after the outage.
            Outage::Ahead if seen.settled() * 5 >= self.total * 2 => {
                screen.say("the CRM goes down: every request is answered 503");
                let mut faults = vec![json!({"action": "status:503"})];
                faults.extend_from_slice(&self.faults);
                self.set(&faults).await?;
                *outage = Outage::Began { at: Instant::now(), gate_closed: false };
            }
            Outage::Began { gate_closed, .. } if !*gate_closed && seen.gate.is_some() => {
                screen.say("the worker closes its gate: one probe at a time, and no message is dead-lettered");
                *gate_closed = true;
            }
            Outage::Began { at, gate_closed: true } if at.elapsed() >= MIN_OUTAGE => {
                screen.say("the CRM is back");
                self.set(&self.faults).await?;
                *outage = Outage::Over { gate_opened: false };
            }
            Outage::Over { gate_opened } if !*gate_opened && seen.gate.is_none() => {
                screen.say("a probe succeeds: the gate is open again");
                *gate_opened = true;
            }
            Outage::Ahead | Outage::Began { .. } | Outage::Over { .. } => {}
        }
        Ok(())
    }

    async fn set(&self, faults: &[Value]) -> Result<(), String> {
        let url = format!("{}/sandbox/faults", self.at.sandbox);
        self.http.put(&url, faults).await
    }
}
