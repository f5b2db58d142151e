//! The steps of the demo: start, publish, watch, report, stop.

use std::net::TcpListener;

use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};
use wolkvox_task_worker::clock::Clock;

use crate::broker::{Broker, unique};
use crate::dead_letters::{DeadLetter, table};
use crate::events::Events;
use crate::http::Http;
use crate::launcher::{Launcher, Running, Settings};
use crate::messages::{self, Message};
use crate::queues;
use crate::report::{Evidence, checks};
use crate::screen::{Screen, print};
use crate::watch::{Addresses, Watch};

/// The environment variable with the address of a broker to use instead of a new one.
const BROKER_VARIABLE: &str = "WTW_BROKER_URLS";
/// How long RabbitMQ's message counts can be behind.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that the demo started, to stop or to keep at the end.
#[derive(Default)]
pub(crate) struct Demo {
    launcher: Option<Launcher>,
    broker: Option<Broker>,
    /// The demo's queues, the work queue first.
    queues: Vec<String>,
    settings: Settings,
}

/// The worker's process, and the addresses of worker and sandbox.
struct Processes {
    worker: Running,
    at: Addresses,
}

impl Demo {
    /// Runs the demo. True when every check holds. With `keep` the worker is not stopped before the report.
    pub(crate) async fn run(&mut self, keep: bool) -> Result<bool, String> {
        let http = Http::new()?;
        let messages = messages::all(Clock::system().now())?;
        let total = messages.len();
        print(&format!("{total} task messages go from RabbitMQ through the worker to a sandbox CRM\n"));
        self.start_broker().await?;
        let mut processes = self.start_processes(&http, &messages).await?;
        let (mut screen, confirmed) = self.publish(&messages).await?;
        let watch = Watch {
            http: &http,
            at: &processes.at,
            worker: &mut processes.worker,
            faults: messages::faults(&messages),
            total: u64::try_from(total).unwrap_or(u64::MAX),
        };
        let seen = watch.until_settled(&mut screen).await?;
        screen.show(&seen);
        let took = screen.finish();
        let stopped = if keep { None } else { Some(processes.worker.stop().await) };
        let evidence = Evidence {
            confirmed,
            tasks: http.json(&format!("{}/sandbox/tasks", processes.at.sandbox)).await?,
            stats: http.json(&format!("{}/sandbox/stats", processes.at.sandbox)).await?,
            dead_letters: self.dead_letters().await?,
            left: self.left().await?,
            messages,
            seen,
            stopped,
        };
        let mut is_good = report(&evidence, took);
        is_good &= self.play_events(&http).await?;
        if !is_good {
            print(&format!("\n{}", processes.worker.last_lines()));
        }
        if keep {
            let console = self.start_console(&http, &processes.at).await?;
            self.print_addresses(&processes.at, &console);
        }
        Ok(is_good)
    }

    /// A second worker, whose messages are events.
    async fn play_events(&mut self, http: &Http) -> Result<bool, String> {
        let work = self.queues.first().map(|queue| format!("{queue}.events")).unwrap_or_default();
        let events = Events {
            launcher: self.launcher()?,
            settings: &self.settings,
            broker: &self.broker()?.url,
            queue: &work,
            listen: free_address()?,
        };
        let names = queue_names(&events.launcher.run(&events.settings()?, &["topology"]).await?)?;
        let played = events.play(http).await;
        self.queues.extend(names);
        let (text, is_right) = played?;
        let mark = if is_right { "✓" } else { "✗" };
        print(&format!("\nEvents\n  {mark} {text}"));
        Ok(is_right)
    }

    async fn start_broker(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let broker = Broker::start(BROKER_VARIABLE).await?;
        let own = is_own(&broker);
        // A broker that was given can have the usual queue already: the demo must not touch it.
        let queue = if own { "wolkvox.tasks".to_owned() } else { unique("wolkvox.demo") };
        let how = if own {
            format!("started in {:.1} s", began.elapsed().as_secs_f64())
        } else {
            format!("named by {BROKER_VARIABLE}")
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
            // One message is never accepted. Its failures must stay below gate.failures: as the last message it would close
            // the gate, and a closed gate keeps it instead of dead-lettering it.
            ("WTW_RETRY_IMMEDIATE_ATTEMPTS", "2".to_owned()),
            ("WTW_RETRY_IMMEDIATE_INITIAL", "100ms".to_owned()),
            ("WTW_RETRY_DELAYS", "1s,2s".to_owned()),
            // In strict mode a lost answer does not lead to a second task.
            ("WTW_RETRY_ON_UNKNOWN", "dead-letter".to_owned()),
        ];
        self.broker = Some(broker);
        Ok(())
    }

    async fn start_processes(&mut self, http: &Http, messages: &[Message]) -> Result<Processes, String> {
        let launcher = self.launcher.insert(Launcher::new()?);
        let faults = messages::faults(messages);
        let file = launcher.write("faults.json", &Value::from(faults.as_slice()).to_string())?;
        let (latency, file) = ("40ms", file.display().to_string());
        let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--latency", latency, "--faults", &file];
        let mut sandbox = launcher.start("sandbox", &Settings::new(), &arguments)?;
        let line = sandbox.first_line().await?;
        let line: Value = serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        let sandbox = line.get("listening").and_then(Value::as_str).unwrap_or_default().to_owned();
        print(&format!(
            "  sandbox    {sandbox}   {latency} a task, two at a time, faults for {} of the tasks",
            faults.len()
        ));
        let listen = free_address()?;
        self.settings.push(("WTW_CRM_SERVER", sandbox.clone()));
        self.settings.push(("WTW_ADMIN_LISTEN", listen.clone()));
        self.queues = queue_names(&launcher.run(&self.settings, &["topology"]).await?)?;
        let admin = format!("http://{listen}");
        let mut worker = launcher.start("worker", &self.settings, &["run"])?;
        worker.answers(http, &format!("{admin}/readyz")).await?;
        print(&format!("  worker     {admin}/status   log: {}", worker.log().display()));
        let at = Addresses { sandbox, admin };
        Ok(Processes { worker, at })
    }

    /// Starts the console and returns its address.
    async fn start_console(&mut self, http: &Http, at: &Addresses) -> Result<String, String> {
        let listen = free_address()?;
        let console = format!("http://{listen}");
        self.settings.push(("WTW_CONSOLE_LISTEN", listen));
        self.settings.push(("WTW_CONSOLE_WORKERS", at.admin.clone()));
        let launcher = self.launcher()?;
        let mut running = launcher.start("console", &self.settings, &["console"])?;
        running.answers(http, &format!("{console}/healthz")).await?;
        Ok(console)
    }

    /// Publishes all messages. The time of the report starts here.
    async fn publish(&self, messages: &[Message]) -> Result<(Screen, usize), String> {
        let launcher = self.launcher()?;
        let file = launcher.write("tasks.jsonl", &messages::export(messages))?;
        let screen = Screen::new(messages.len());
        let said = launcher.run(&self.settings, &["publish", "--no-validate", &file.display().to_string()]).await?;
        let count = said.trim().rsplit(' ').next().and_then(|count| count.parse().ok());
        let confirmed =
            count.ok_or_else(|| format!("publish printed {said:?}; expected a line that ends with a number"))?;
        screen.say(said.trim());
        Ok((screen, confirmed))
    }

    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, String> {
        let launcher = self.launcher()?;
        let listed = launcher.run(&self.settings, &["dead-letters", "list", "--each", "--json"]).await?;
        serde_json::from_str(&listed).map_err(|error| format!("dead-letters list --each --json: {error}"))
    }

    /// The message counts of the work queue and the retry queues: as soon as all are 0, otherwise after [`COUNTS_TIMEOUT`].
    async fn left(&self) -> Result<Vec<(String, u32)>, String> {
        let began = Instant::now();
        let work = self.queues.first().cloned().unwrap_or_default();
        let waits = |name: &str| name == work || name.starts_with(&format!("{work}.retry."));
        let names: Vec<String> = self.queues.iter().filter(|name| waits(name)).cloned().collect();
        let url = &self.broker()?.url;
        loop {
            let left = queues::waiting(url, &names).await?;
            if left.iter().all(|(_, count)| *count == 0) || began.elapsed() > COUNTS_TIMEOUT {
                return Ok(left);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn launcher(&self) -> Result<&Launcher, String> {
        self.launcher.as_ref().ok_or_else(|| "the demo has no folder yet: report this bug".to_owned())
    }

    fn broker(&self) -> Result<&Broker, String> {
        self.broker.as_ref().ok_or_else(|| "the demo has no broker yet: report this bug".to_owned())
    }

    fn print_addresses(&self, at: &Addresses, console: &str) {
        let Addresses { sandbox, admin } = at;
        print("\nStill running:");
        print(&format!("  console     {console}/   what works, what failed and why, in a browser"));
        print(&format!("  sandbox     {sandbox}/sandbox/stats, {sandbox}/sandbox/tasks"));
        print(&format!("  worker      {admin}/status, {admin}/readyz, {admin}/metrics"));
        let (Some(launcher), Some(broker)) = (&self.launcher, &self.broker) else {
            return;
        };
        let amqp = without_password(broker);
        print(&format!("  AMQP        {amqp}"));
        let Some(management) = &broker.management_url else {
            let queues = self.queues.join(", ");
            return print(&format!("  its queues  {queues}, which stay until you delete them"));
        };
        print(&format!("  management  {management}   user guest, password guest"));
        let program = launcher.program.display();
        print(&format!("Publish more tasks with:\n  WTW_BROKER_URLS='{amqp}' '{program}' publish FILE"));
    }

    /// Keeps the logs of a failed demo.
    pub(crate) fn failed(&self) {
        if let Some(launcher) = &self.launcher {
            launcher.leave_logs();
        }
    }

    /// Leaves everything running and prints the command that stops it.
    pub(crate) fn keep(mut self) {
        if let (Some(launcher), Some(broker)) = (self.launcher.take(), self.broker.take()) {
            match launcher.keep(broker) {
                Ok(command) => print(&format!("Stop everything with:\n  {command}")),
                Err(why) => eprintln!("error: {why}"),
            }
        }
    }

    /// Stops the processes. Then removes the demo's queues from a broker that was given, or removes the demo's broker.
    pub(crate) async fn close(mut self) {
        drop(self.launcher.take());
        if let Some(broker) = self.broker.take()
            && !is_own(&broker)
            && let Err(why) = queues::delete(&broker.url, &self.queues).await
        {
            eprintln!("cannot delete the demo's queues {}: {why}. Delete them yourself.", self.queues.join(", "));
        }
    }
}

/// Prints dead letters, checks and time. True when every check holds.
fn report(evidence: &Evidence, took: Duration) -> bool {
    print("\nDead letters");
    for line in table(&evidence.dead_letters) {
        print(&line);
    }
    print("\nResult");
    let checks = checks(evidence);
    for line in checks.iter().flat_map(|check| check.lines()) {
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
    let is_good = checks.iter().all(|check| check.holds());
    let verdict = if is_good { "Every message is accounted for" } else { "A check FAILED, see ✗ above" };
    print(&format!("  {verdict}. From the first message to the last: {:.1} s", took.as_secs_f64()));
    is_good
}

/// Whether the demo started this broker. Of one that was given it knows no management interface.
fn is_own(broker: &Broker) -> bool {
    broker.management_url.is_some()
}

/// The broker's address. It contains the password only where that is the public default of the demo's own broker.
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
