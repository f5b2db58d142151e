//! Everything that a run needs apart from the contender: broker, Redis, stand-in CRM, programs, a folder.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::broker::{Broker, QUEUE, STANDBY_QUEUE, free_port, output};
use crate::contender::Running;
use crate::crm::RequestStats;

/// The longest wait for a measured event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How often a wait checks that the contender is still running.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The parts of a run. Dropping it removes all of them.
pub struct Site {
    /// The repository.
    pub top: PathBuf,
    /// The folder of logs and ledgers.
    pub folder: PathBuf,
    /// The broker.
    pub broker: Broker,
    /// Redis' address.
    pub redis: String,
    /// Address of the stand-in CRM, `http://host:port`.
    pub crm: String,
    client: reqwest::Client,
    _servers: Vec<Server>,
}

/// A process that ends when it is dropped, and at the latest with the benchmark.
pub struct Server(pub Child);

impl Server {
    /// Starts a command without reading its output. Its log is the file `log` in its folder, if it has one.
    pub fn start(command: &Command) -> Result<Self, String> {
        Self::spawn(command, Stdio::null())
    }

    /// Starts a command and also returns the first line of its output.
    pub fn start_talking(command: &Command) -> Result<(Self, String), String> {
        let mut server = Self::spawn(command, Stdio::piped())?;
        let stdout = server.0.stdout.as_mut().ok_or("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        Ok((server, line.trim().to_owned()))
    }

    fn spawn(command: &Command, stdout: Stdio) -> Result<Self, String> {
        let mut leashed = Command::new("setpriv");
        leashed.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leashed.env(name, value),
                None => leashed.env_remove(name),
            };
        }
        leashed.stdin(Stdio::null()).stdout(stdout);
        let log = command.get_current_dir().map(|folder| folder.join("log")).unwrap_or_else(|| "/dev/null".into());
        let log = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let child = leashed.stderr(log).spawn();
        child.map(Self).map_err(|error| format!("{:?}: {error}", command.get_program()))
    }

    /// Stops the process with SIGTERM, and kills it after ten seconds.
    pub async fn stop(mut self) -> Result<(), String> {
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).stderr(Stdio::null()).status();
        let ended = timeout(Duration::from_secs(10), async {
            while matches!(self.0.try_wait(), Ok(None)) {
                sleep(Duration::from_millis(5)).await;
            }
        });
        ended.await.map_err(|_| "a process did not end on SIGTERM within 10 s and was killed".to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Site {
    /// Starts all parts.
    pub async fn open(top: &Path) -> Result<Self, String> {
        let folder = top.join("target/bench");
        fs::create_dir_all(folder.join("redis")).map_err(|error| error.to_string())?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?;
        let (crm, address) = Server::start_talking(Command::new(own_program()?).arg("crm"))?;
        let broker = Broker::start(top).await?;
        let (redis_server, redis) = start_redis(top, &folder)?;
        let servers = vec![crm, redis_server];
        let site = Self {
            top: top.to_owned(),
            folder,
            broker,
            redis,
            crm: format!("http://{address}"),
            client,
            _servers: servers,
        };
        site.declare()?;
        Ok(site)
    }

    /// The worker's release build, without the caller's WTW_ variables.
    pub fn worker(&self) -> Command {
        let mut worker = Command::new(self.top.join("target/release/wolkvox-task-worker"));
        let is_setting = |name: &[u8]| name.starts_with(b"WTW_") || name.starts_with(b"OTEL_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name.as_encoded_bytes())) {
            worker.env_remove(name);
        }
        worker
    }

    /// The bare loop.
    pub fn bare_loop(&self) -> Result<PathBuf, String> {
        Ok(own_program()?.with_file_name("bare-loop"))
    }

    /// The address to which tasks are sent.
    pub fn post_url(&self) -> String {
        format!("{}{}", self.crm, wolkvox_task_worker::crm::INSERT_PATH)
    }

    /// Declares the worker's queues as in production. All contenders use the first.
    fn declare(&self) -> Result<(), String> {
        for settings in [self.broker_settings(QUEUE, false), self.broker_settings(STANDBY_QUEUE, true)] {
            let mut topology = self.worker();
            output(topology.args(["topology", "--apply"]).envs(settings))?;
        }
        Ok(())
    }

    /// The worker's settings for broker and queue. Some contenders need several active consumers.
    pub fn broker_settings(&self, queue: &str, single_active_consumer: bool) -> [(&'static str, String); 3] {
        [
            ("WTW_BROKER_URLS", self.broker.url.clone()),
            ("WTW_BROKER_QUEUE", queue.to_owned()),
            ("WTW_BROKER_SINGLE_ACTIVE_CONSUMER", single_active_consumer.to_string()),
        ]
    }

    /// Starts a new count in the stand-in CRM.
    pub async fn reset(&self, stamps: bool) -> Result<(), String> {
        let path = if stamps { "/reset/stamps" } else { "/reset" };
        self.ask::<RequestStats>(path).await.map(drop)
    }

    /// Waits until `count` requests have come. Returns the time of the last one.
    pub async fn reached(&self, running: &mut Running, count: usize) -> Result<u64, String> {
        let path = format!("/wait/{count}");
        let mut asked = pin!(timeout(EVENT_TIMEOUT, self.ask(&path)));
        loop {
            match timeout(CHECK_INTERVAL, &mut asked).await {
                Ok(asked) => {
                    return asked.map_err(|_| {
                        format!(
                            "the stand-in CRM did not get {count} requests within {EVENT_TIMEOUT:?}; see target/bench/log"
                        )
                    })?;
                }
                Err(_) => running.is_alive()?,
            }
        }
    }

    /// The report of the stand-in CRM.
    pub async fn report(&self) -> Result<RequestStats, String> {
        self.ask("/report").await
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let failed = |error: reqwest::Error| format!("the stand-in CRM: {error}");
        let answer = self.client.get(format!("{}{path}", self.crm)).send().await.map_err(failed)?;
        let text = answer.text().await.map_err(failed)?;
        serde_json::from_str(&text).map_err(|error| format!("the stand-in CRM: {error}: {text}"))
    }

    /// An HTTP client for pages.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }
}

fn own_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| error.to_string())
}

/// Starts a Redis that is as durable as the ledger's file: it writes to the disk before it answers.
fn start_redis(top: &Path, folder: &Path) -> Result<(Server, String), String> {
    let program = output(&mut Command::new(top.join("deploy/redis-server.sh")))?;
    let port = free_port()?.to_string();
    let data = folder.join("redis");
    let _ = fs::remove_dir_all(data.join("appendonlydir"));
    let mut redis = Command::new(program);
    redis.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "yes"]);
    // A rewrite of the append-only file would disturb the run of another contender.
    redis.args(["--appendfsync", "always", "--auto-aof-rewrite-percentage", "0", "--dir"]).arg(&data);
    redis.current_dir(&data);
    Ok((Server::start(&redis)?, format!("redis://127.0.0.1:{port}/0")))
}
