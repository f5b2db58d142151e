//! The contenders, and how each is started. Each has a prefetch of eight messages for each request in flight; the worker chooses
//! its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::broker::{QUEUE, output};
use crate::process;
use crate::site::{Server, Site};

/// The file ledger, in the benchmark's folder.
const LEDGER: &str = "ledger.db";

/// The kind of the worker's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ledger {
    /// A file, the default.
    File,
    /// In memory.
    Memory,
    /// Redis, which syncs every write to the disk.
    Redis,
}

/// A program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contender {
    /// This worker with all features.
    Worker(Ledger),
    /// lapin and reqwest, nothing else.
    BareLoop,
    /// aio-pika and aiohttp on uvloop.
    Python,
    /// `amqp-consume` with curl: one process for each message in flight.
    AmqpConsume,
}

impl Contender {
    /// All contenders, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Worker(Ledger::File),
        Self::Worker(Ledger::Redis),
        Self::Worker(Ledger::Memory),
        Self::BareLoop,
        Self::Python,
        Self::AmqpConsume,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker(Ledger::File) => "worker, file ledger",
            Self::Worker(Ledger::Redis) => "worker, Redis ledger",
            Self::Worker(Ledger::Memory) => "worker, memory ledger",
            Self::BareLoop => "bare loop (lapin, reqwest)",
            Self::Python => "aio-pika, aiohttp, uvloop",
            Self::AmqpConsume => "amqp-consume, curl",
        }
    }

    /// Starts the contender with `in_flight` simultaneous requests and an empty ledger.
    pub fn start(self, site: &Site, in_flight: usize) -> Result<Running, String> {
        self.start_with(site, in_flight, &[])
    }

    /// As [`Self::start`], with further settings, which only the worker reads.
    pub fn start_with(self, site: &Site, in_flight: usize, settings: &[(&str, String)]) -> Result<Running, String> {
        empty_ledgers(site)?;
        self.join(site, in_flight, settings)
    }

    /// As [`Self::start`], with a copy of a ledger's file.
    pub fn start_on(self, site: &Site, in_flight: usize, ledger: Option<&Path>) -> Result<Running, String> {
        empty_ledgers(site)?;
        if let Some(ledger) = ledger {
            fs::copy(ledger, site.folder.join(LEDGER)).map_err(|error| error.to_string())?;
        }
        self.join(site, in_flight, &[])
    }

    /// As [`Self::start_with`]; the ledger stays as it is.
    pub fn join(self, site: &Site, in_flight: usize, settings: &[(&str, String)]) -> Result<Running, String> {
        let prefetch = (in_flight * 8).min(2_000).to_string();
        let mut command = match self {
            Self::Worker(ledger) => worker(site, ledger, in_flight),
            Self::BareLoop => loop_of(Command::new(site.bare_loop()?), site, in_flight, &prefetch),
            Self::Python => {
                let mut python = Command::new(site.folder.join("venv/bin/python"));
                python.arg(site.top.join("tests/bench/worker.py"));
                loop_of(python, site, in_flight, &prefetch)
            }
            Self::AmqpConsume => amqp_consume(site),
        };
        command.current_dir(&site.folder).envs(settings.iter().map(|(name, value)| (name, value)));
        let processes = if self == Self::AmqpConsume { in_flight } else { 1 };
        let servers = (0..processes).map(|_| Server::start(&command)).collect::<Result<_, _>>()?;
        Ok(Running { servers })
    }
}

/// Keeps the file of the last worker, which has stopped, as a ledger to start with.
pub fn keep_ledger(site: &Site) -> Result<PathBuf, String> {
    let kept = site.folder.join("full.db");
    fs::rename(site.folder.join(LEDGER), &kept).map_err(|error| error.to_string())?;
    Ok(kept)
}

fn empty_ledgers(site: &Site) -> Result<(), String> {
    for part in ["", "-wal", "-shm", ".lock"] {
        let _ = fs::remove_file(site.folder.join(format!("{LEDGER}{part}")));
    }
    flush(&site.redis)
}

fn worker(site: &Site, ledger: Ledger, in_flight: usize) -> Command {
    let mut worker = site.worker();
    worker.arg("run").envs(site.broker_settings(QUEUE, false)).envs([
        ("WTW_CRM_SERVER", site.crm.clone()),
        ("WTW_CRM_OPERATION", "bench".to_owned()),
        ("WTW_CRM_TOKENS", "bench".to_owned()),
        ("WTW_CRM_MAX_IN_FLIGHT_PER_TOKEN", in_flight.to_string()),
        ("WTW_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        (
            "WTW_LEDGER_URL",
            match ledger {
                Ledger::File => format!("file:{}", site.folder.join(LEDGER).display()),
                Ledger::Memory => "memory:".to_owned(),
                Ledger::Redis => site.redis.clone(),
            },
        ),
    ]);
    worker
}

/// The arguments of the bare loop and of the Python worker.
fn loop_of(mut command: Command, site: &Site, in_flight: usize, prefetch: &str) -> Command {
    command.args([&site.broker.url, QUEUE, &site.post_url(), &in_flight.to_string(), prefetch]);
    command
}

fn amqp_consume(site: &Site) -> Command {
    let mut command = Command::new("amqp-consume");
    command.args([&format!("--url={}", site.broker.url), "--queue", QUEUE, "--prefetch-count", "8", "--", "curl"]);
    command.args(["--silent", "--fail", "--max-time", "20", "--output", "/dev/null", "--noproxy", "*"]);
    command.args(["--header", "wolkvox-token: bench", "--header", "content-type: application/json"]);
    command.args(["--data-binary", "@-", &site.post_url()]);
    command
}

/// Empties Redis with a raw command.
fn flush(url: &str) -> Result<(), String> {
    use std::io::{Read as _, Write as _};
    let address = url.trim_start_matches("redis://").trim_end_matches("/0");
    let flushed = std::net::TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(b"FLUSHALL\r\n")?;
        stream.read_exact(&mut [0; 5])
    });
    flushed.map_err(|error| format!("Redis: {error}"))
}

/// Processor time of a contender.
pub struct Spent {
    done: usize,
    cpu_us: u64,
    threads_ns: BTreeMap<String, u64>,
}

impl Spent {
    fn messages_until(&self, after: &Self) -> f64 {
        after.done.saturating_sub(self.done).max(1) as f64
    }

    /// The processor time from here to `after`, in microseconds per message.
    pub fn a_message_until(&self, after: &Self) -> f64 {
        after.cpu_us.saturating_sub(self.cpu_us) as f64 / self.messages_until(after)
    }

    /// The same for each thread name.
    pub fn threads_a_message_until(&self, after: &Self) -> BTreeMap<String, f64> {
        let a_message = |(name, ran): (&String, &u64)| {
            let before = self.threads_ns.get(name).copied().unwrap_or_default();
            (name.clone(), ran.saturating_sub(before) as f64 / 1e3 / self.messages_until(after))
        };
        after.threads_ns.iter().map(a_message).collect()
    }
}

/// A running contender.
pub struct Running {
    servers: Vec<Server>,
}

impl Running {
    fn sum(&self, of: impl Fn(u32) -> Result<u64, String>) -> Result<u64, String> {
        self.servers.iter().map(|server| of(server.0.id())).sum()
    }

    /// # Errors
    /// When one of its processes has ended.
    pub fn is_alive(&mut self) -> Result<(), String> {
        let ended = self.servers.iter_mut().find_map(|server| server.0.try_wait().ok().flatten());
        ended.map_or(Ok(()), |status| {
            Err(format!("a contender has ended with {status}; see target/bench/log for the reason"))
        })
    }

    /// The processor time so far, after `done` messages.
    pub fn spent(&self, done: usize) -> Result<Spent, String> {
        Ok(Spent { done, cpu_us: self.cpu_us()?, threads_ns: self.threads() })
    }

    fn cpu_us(&self) -> Result<u64, String> {
        self.sum(|pid| Ok(u64::try_from(process::cpu(pid)?.as_micros()).unwrap_or(u64::MAX)))
    }

    fn threads(&self) -> BTreeMap<String, u64> {
        let mut threads = BTreeMap::new();
        for (name, ran) in self.servers.iter().flat_map(|server| process::threads(server.0.id())) {
            *threads.entry(name).or_default() += ran;
        }
        threads
    }

    /// The current resident memory in bytes.
    pub fn resident(&self) -> Result<u64, String> {
        self.sum(|pid| process::memory(pid, "VmRSS"))
    }

    /// The peak of the resident memory in bytes.
    pub fn peak(&self) -> Result<u64, String> {
        self.sum(|pid| process::memory(pid, "VmHWM"))
    }

    /// Sends a signal, such as `KILL`.
    pub fn signal(&self, name: &str) -> Result<(), String> {
        let pids = self.servers.iter().map(|server| server.0.id().to_string());
        let mut kill = Command::new("kill");
        output(kill.arg(format!("-{name}")).args(pids)).map(drop)
    }

    /// Stops the contender.
    pub async fn stop(self) -> Result<(), String> {
        // Contenders without a graceful shutdown are killed.
        join_all(self.servers.into_iter().map(Server::stop)).await;
        Ok(())
    }
}
