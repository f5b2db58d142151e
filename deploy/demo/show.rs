//! The demo from its first line to its last.

use std::net::TcpListener;

use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};
use wolkvox_task_worker::clock::Clock;

use crate::books::{Evidence, audit};
use crate::broker::{Broker, unique};
use crate::events::Events;
use crate::http::Http;
use crate::letters::{Letter, table};
use crate::messages::{self, Message};
use crate::queues;
use crate::screen::{Screen, print};
use crate::stage::{Running, Settings, Stage};
use crate::watch::{Addresses, Watch};

/// Variable with the address of a broker to use.
const GIVEN: &str = "WTW_BROKER_URLS";
/// How long the queues may take to show what was settled.
const SHOWS: Duration = Duration::from_secs(10);

/// What there is to clean up, or to keep.
#[derive(Default)]
pub(crate) struct Show {
    stage: Option<Stage>,
    broker: Option<Broker>,
    /// On the broker, the work queue first.
    queues: Vec<String>,
    settings: Settings,
}

/// The processes, and where they are.
struct Cast {
    worker: Running,
    at: Addresses,
}

impl Show {
    /// Plays it all; true when the books balance. With `keep` the worker is not asked to end before they are drawn up.
    pub(crate) async fn play(&mut self, keep: bool) -> Result<bool, String> {
        let http = Http::new()?;
        let messages = messages::all(Clock::system().now())?;
        let total = messages.len();
        print(&format!("{total} task messages on their way from RabbitMQ through the worker into a sandbox CRM\n"));
        self.start_broker().await?;
        let mut cast = self.start_processes(&http, &messages).await?;
        let (mut screen, confirmed) = self.publish(&messages).await?;
        let watch = Watch {
            http: &http,
            at: &cast.at,
            worker: &mut cast.worker,
            faults: messages::faults(&messages),
            total: u64::try_from(total).unwrap_or(u64::MAX),
        };
        let seen = watch.until_settled(&mut screen).await?;
        screen.show(&seen);
        let took = screen.finish();
        let stopped = if keep { None } else { Some(cast.worker.stop().await) };
        let evidence = Evidence {
            confirmed,
            tasks: http.json(&format!("{}/sandbox/tasks", cast.at.sandbox)).await?,
            stats: http.json(&format!("{}/sandbox/stats", cast.at.sandbox)).await?,
            letters: self.letters().await?,
            left: self.left().await?,
            messages,
            seen,
            stopped,
        };
        let mut balanced = report(&evidence, took);
        balanced &= self.play_events(&http).await?;
        if !balanced {
            print(&format!("\n{}", cast.worker.last_lines()));
        }
        if keep {
            self.tell_addresses(&cast.at);
        }
        Ok(balanced)
    }

    /// A second worker, whose messages are events.
    async fn play_events(&mut self, http: &Http) -> Result<bool, String> {
        let work = self.queues.first().map(|queue| format!("{queue}.events")).unwrap_or_default();
        let events = Events {
            stage: self.stage()?,
            settings: &self.settings,
            broker: &self.broker()?.url,
            queue: &work,
            listen: free_address()?,
        };
        let names = queue_names(&events.stage.run(&events.settings()?, &["topology"]).await?)?;
        let played = events.play(http).await;
        self.queues.extend(names);
        let (text, is_right) = played?;
        let mark = if is_right { "✓" } else { "✗" };
        print(&format!("\nEvents\n  {mark} {text}"));
        Ok(is_right)
    }

    async fn start_broker(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let broker = Broker::start(GIVEN).await?;
        let own = is_own(&broker);
        // On a broker with other things on it, these must not be met.
        let queue = if own { "wolkvox.tasks".to_owned() } else { unique("wolkvox.demo") };
        let how = if own {
            format!("started in {:.1} s", began.elapsed().as_secs_f64())
        } else {
            format!("named by {GIVEN}")
        };
        print(&format!("  RabbitMQ   {}   {how}", without_password(&broker)));
        self.settings = vec![
            ("WTW_BROKER_URLS", broker.url.clone()),
            ("WTW_BROKER_QUEUE", queue),
            ("WTW_CRM_OPERATION", "demo".to_owned()),
            ("WTW_CRM_TOKENS", "demo-token".to_owned()),
            ("WTW_GATE_PROBE_INITIAL", "200ms".to_owned()),
            ("WTW_GATE_PROBE_MAX", "1s".to_owned()),
            ("WTW_LOG_FORMAT", "text".to_owned()),
            // With one message that never gets through, two rounds must stay below the failures that close the gate: were it
            // the last one left, it would look like an outage, and would be kept until the CRM takes something.
            ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "2".to_owned()),
            ("WTW_RETRY_IMMEDIATE_INITIAL", "100ms".to_owned()),
            ("WTW_RETRY_DELAYS", "1s,2s".to_owned()),
            // Otherwise a lost answer would lead to a second task.
            ("WTW_RETRY_ON_UNKNOWN", "dead-letter".to_owned()),
        ];
        self.broker = Some(broker);
        Ok(())
    }

    async fn start_processes(&mut self, http: &Http, messages: &[Message]) -> Result<Cast, String> {
        let stage = self.stage.insert(Stage::new()?);
        let faults = messages::faults(messages);
        let file = stage.write("faults.json", &Value::from(faults.as_slice()).to_string())?;
        let (latency, file) = ("40ms", file.display().to_string());
        let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--latency", latency, "--faults", &file];
        let mut sandbox = stage.start("sandbox", &Settings::new(), &arguments)?;
        let line = sandbox.first_line().await?;
        let line: Value = serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        let sandbox = line.get("listening").and_then(Value::as_str).unwrap_or_default().to_owned();
        print(&format!(
            "  sandbox    {sandbox}   {latency} a task, two at a time, faults in store for {} of the tasks",
            faults.len()
        ));
        let listen = free_address()?;
        self.settings.push(("WTW_CRM_SERVER", sandbox.clone()));
        self.settings.push(("WTW_ADMIN_LISTEN", listen.clone()));
        self.queues = queue_names(&stage.run(&self.settings, &["topology"]).await?)?;
        let admin = format!("http://{listen}");
        let mut worker = stage.start("worker", &self.settings, &["run"])?;
        worker.answers(http, &format!("{admin}/readyz")).await?;
        print(&format!("  worker     {admin}/status   log: {}", worker.log().display()));
        let at = Addresses { sandbox, admin };
        Ok(Cast { worker, at })
    }

    /// Publishes everything; the clock starts here.
    async fn publish(&self, messages: &[Message]) -> Result<(Screen, usize), String> {
        let stage = self.stage()?;
        let file = stage.write("tasks.jsonl", &messages::export(messages))?;
        let screen = Screen::new(messages.len());
        let said = stage.run(&self.settings, &["publish", "--no-validate", &file.display().to_string()]).await?;
        let count = said.trim().rsplit(' ').next().and_then(|count| count.parse().ok());
        let confirmed = count.ok_or_else(|| format!("publish said {said:?}, which names no number"))?;
        screen.say(said.trim());
        Ok((screen, confirmed))
    }

    async fn letters(&self) -> Result<Vec<Letter>, String> {
        let stage = self.stage()?;
        let listed = stage.run(&self.settings, &["dead-letters", "list", "--each", "--json"]).await?;
        serde_json::from_str(&listed).map_err(|error| format!("dead-letters list --each --json: {error}"))
    }

    /// What waits in every queue but the dead letters', once that does not change for the better any more.
    async fn left(&self) -> Result<Vec<(String, u32)>, String> {
        let began = Instant::now();
        let work = self.queues.first().cloned().unwrap_or_default();
        let waits = |name: &str| name == work || name.starts_with(&format!("{work}.retry."));
        let names: Vec<String> = self.queues.iter().filter(|name| waits(name)).cloned().collect();
        let url = &self.broker()?.url;
        loop {
            let left = queues::waiting(url, &names).await?;
            if left.iter().all(|(_, count)| *count == 0) || began.elapsed() > SHOWS {
                return Ok(left);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn stage(&self) -> Result<&Stage, String> {
        self.stage.as_ref().ok_or_else(|| "there is no stage yet".to_owned())
    }

    fn broker(&self) -> Result<&Broker, String> {
        self.broker.as_ref().ok_or_else(|| "there is no broker yet".to_owned())
    }

    fn tell_addresses(&self, at: &Addresses) {
        let Addresses { sandbox, admin } = at;
        print("\nStill running:");
        print(&format!("  sandbox     {sandbox}/sandbox/stats, {sandbox}/sandbox/tasks"));
        print(&format!("  worker      {admin}/status, {admin}/readyz, {admin}/metrics"));
        let (Some(stage), Some(broker)) = (&self.stage, &self.broker) else {
            return;
        };
        let amqp = without_password(broker);
        print(&format!("  AMQP        {amqp}"));
        let Some(management) = &broker.management_url else {
            let queues = self.queues.join(", ");
            return print(&format!("  its queues  {queues}, which stay until you delete them"));
        };
        print(&format!("  management  {management}   user guest, password guest"));
        let program = stage.program.display();
        print(&format!("More to do for it:\n  WTW_BROKER_URLS='{amqp}' '{program}' publish FILE"));
    }

    /// Leaves the logs of a failure to be read.
    pub(crate) fn failed(&self) {
        if let Some(stage) = &self.stage {
            stage.leave_logs();
        }
    }

    /// Leaves everything running and tells how to end it.
    pub(crate) fn keep(mut self) {
        if let (Some(stage), Some(broker)) = (self.stage.take(), self.broker.take()) {
            match stage.keep(broker) {
                Ok(command) => print(&format!("Stop it all with:\n  {command}")),
                Err(why) => eprintln!("error: {why}"),
            }
        }
    }

    /// Ends the processes, then takes their queues from a broker that stays, or ends the broker.
    pub(crate) async fn close(mut self) {
        drop(self.stage.take());
        if let Some(broker) = self.broker.take()
            && !is_own(&broker)
            && let Err(why) = queues::delete(&broker.url, &self.queues).await
        {
            eprintln!("the demo's queues are left on the broker: {why}");
        }
    }
}

/// Prints dead letters, books and time; true when the books balance.
fn report(evidence: &Evidence, took: Duration) -> bool {
    print("\nDead letters");
    for line in table(&evidence.letters) {
        print(&line);
    }
    print("\nBooks");
    let entries = audit(evidence);
    for line in entries.iter().flat_map(|entry| entry.lines()) {
        print(&line);
    }
    let retried = evidence.seen.retried;
    let mut attempts = evidence.seen.attempts.clone();
    attempts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let requests: u64 = attempts.iter().map(|(_, count)| count).sum();
    let outcomes: Vec<String> = attempts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    print(&format!(
        "\n  {requests} requests: {}; {retried} times a message waited in a retry queue",
        outcomes.join(", ")
    ));
    let balanced = entries.iter().all(|entry| entry.holds());
    let verdict = if balanced { "The books balance" } else { "The books do NOT balance" };
    print(&format!("  {verdict}. From the first message to the last: {:.1} s", took.as_secs_f64()));
    balanced
}

/// Only a broker that was not named has a management interface that we know of.
fn is_own(broker: &Broker) -> bool {
    broker.management_url.is_some()
}

/// The broker's address as it may be shown: a password stays in it only where it is everybody's.
fn without_password(broker: &Broker) -> String {
    let Ok(mut url) = url::Url::parse(&broker.url) else {
        return "an address that cannot be read".to_owned();
    };
    if !is_own(broker) && url.password().is_some() {
        let _ = url.set_password(Some("***"));
    }
    url.to_string()
}

fn queue_names(definitions: &str) -> Result<Vec<String>, String> {
    let definitions: Value = serde_json::from_str(definitions).map_err(|error| format!("topology: {error}"))?;
    let queues = definitions.get("queues").and_then(Value::as_array).into_iter().flatten();
    let names = queues.filter_map(|queue| queue.get("name").and_then(Value::as_str));
    Ok(names.map(ToOwned::to_owned).collect())
}

fn free_address() -> Result<String, String> {
    let failed = |error: std::io::Error| format!("no free port on 127.0.0.1: {error}");
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
    Ok(listener.local_addr().map_err(failed)?.to_string())
}
