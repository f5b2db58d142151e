//! One way to get a RabbitMQ, for the tests and for the demo: a given address; Docker; a private node of the
//! `rabbitmq-server` on this machine, which is installed where that is possible.
//!
//! `TEST_BROKER=docker` or `TEST_BROKER=node` insists on one of the latter two. Nothing is left running, however the process
//! ends: see [`Reaper`]. Brokers have nothing to do with the runtime that started them.

// The paths are spelt out so that they also hold where this file is included by another target.
#[path = "broker/docker.rs"]
mod docker;
#[path = "broker/node.rs"]
mod node;
#[path = "broker/reaper.rs"]
mod reaper;

use std::net::TcpListener;
use std::ops::Deref;
use std::process::Stdio;
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

pub(crate) use self::reaper::Reaper;

/// How long a broker may take until it answers. Alone on a machine it takes some five seconds.
const START: Duration = Duration::from_secs(90);
/// How long it may take to stop, pause or go on.
const CONTROL: Duration = Duration::from_secs(60);
/// How long images or packages may take that are not there yet.
const INSTALL: Duration = Duration::from_secs(1800);

/// A running RabbitMQ; gone when dropped, unless it was given by address.
pub(crate) struct Broker {
    /// AMQP address with user, password and virtual host.
    pub(crate) url: String,
    /// Address of the management interface, without user and password, which are those of `url`.
    pub(crate) management_url: Option<String>,
    /// Host and port of its metrics for Prometheus.
    pub(crate) metrics: Option<String>,
    owned: Option<Owned>,
}

/// What a broker of our own can be told, each a shell command.
struct Owned {
    control: fn(&str, &str) -> String,
    name: String,
    reaper: Reaper,
}

impl Broker {
    /// The broker whose address the environment variable `var` holds; where it holds none, [`Broker::own`].
    pub(crate) async fn start(var: &str) -> Result<Self, String> {
        let Some(url) = variable(var) else {
            return Self::own().await.map_err(|why| format!("{why}\nOr give the address of one in {var}."));
        };
        // Several nodes may be named; the first is as good as any.
        let url = url.split(',').next().unwrap_or_default().trim().to_owned();
        answers(&url, Duration::from_secs(30))
            .await
            .map_err(|why| format!("the broker named in {var} does not answer: {why}"))?;
        Ok(Self { url, management_url: None, metrics: None, owned: None })
    }

    /// A new broker of the caller's own, which may be stopped, killed and paused.
    pub(crate) async fn own() -> Result<Self, String> {
        match variable("TEST_BROKER").as_deref() {
            Some("docker") => docker::start().await,
            Some("node") => node::start().await,
            Some(other) => Err(format!("TEST_BROKER is {other:?}; allowed are \"docker\" and \"node\"")),
            None => match docker::start().await {
                Ok(broker) => Ok(broker),
                Err(docker) => node::start()
                    .await
                    .map_err(|node| format!("no RabbitMQ to be had.\nDocker: {docker}\nWithout: {node}")),
            },
        }
    }

    /// The one broker of this process, from `TEST_BROKER_URL` or of its own.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<Broker, String>> = OnceCell::const_new();
        match SHARED.get_or_init(|| Self::start("TEST_BROKER_URL")).await {
            Ok(broker) => broker,
            Err(why) => panic!("{why}"),
        }
    }

    /// Stops it in good order; its data stays.
    pub(crate) async fn stop(&self) -> Result<(), String> {
        self.control("stop").await
    }

    /// Ends it at once, as a crash would; its data stays.
    pub(crate) async fn kill(&self) -> Result<(), String> {
        self.control("kill").await
    }

    /// Starts it again with its data and under the same address, and waits until it answers.
    pub(crate) async fn restart(&self) -> Result<(), String> {
        self.control("start").await?;
        answers(&self.url, START).await
    }

    /// Freezes it: connections stay open and nothing answers.
    pub(crate) async fn pause(&self) -> Result<(), String> {
        self.control("pause").await
    }

    /// Lets it go on.
    pub(crate) async fn unpause(&self) -> Result<(), String> {
        self.control("unpause").await
    }

    /// The one broker of this process where that is its own, else a new one: [`Broker::ctl`] works on it. Whoever is given
    /// it may do what touches its own queues, users and virtual hosts only.
    pub(crate) async fn operated() -> Result<Operated, String> {
        let shared = Self::shared().await;
        if shared.owned.is_some() { Ok(Operated::Shared(shared)) } else { Ok(Operated::Own(Self::own().await?)) }
    }

    /// What an operator does with `rabbitmqctl`; `arguments` are a shell's.
    pub(crate) async fn ctl(&self, arguments: &str) -> Result<(), String> {
        let Some(owned) = &self.owned else {
            return Err("cannot operate a broker that was given by its address".to_owned());
        };
        shell(&format!("{} rabbitmqctl --quiet {arguments}", (owned.control)("exec", &owned.name)), CONTROL).await
    }

    /// Leaves it running when this process ends; returns the command that removes it, none where it is not ours.
    pub(crate) fn keep(self) -> Option<String> {
        self.owned.map(|owned| owned.reaper.keep())
    }

    async fn control(&self, action: &str) -> Result<(), String> {
        let Some(owned) = &self.owned else {
            return Err(format!("cannot {action} a broker that was given by its address"));
        };
        shell(&(owned.control)(action, &owned.name), CONTROL).await
    }
}

/// See [`Broker::operated`].
pub(crate) enum Operated {
    Shared(&'static Broker),
    Own(Broker),
}

impl Deref for Operated {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        match self {
            Self::Shared(broker) => broker,
            Self::Own(broker) => broker,
        }
    }
}

/// A queue name that no other test and no other run has.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}.{:x}.{:08x}", std::process::id(), fastrand::u32(..))
}

#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Waits until an AMQP handshake succeeds: the one sign of life that every RabbitMQ gives.
pub(crate) async fn answers(url: &str, limit: Duration) -> Result<(), String> {
    const TRY: Duration = Duration::from_secs(5);
    let mut last = String::from("nothing answers");
    let handshake = async {
        loop {
            match timeout(TRY, Connection::connect(url, ConnectionProperties::default())).await {
                Ok(Ok(connection)) => {
                    let _ = timeout(TRY, connection.close(200, "".into())).await;
                    return;
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => last = format!("no handshake within {TRY:?}"),
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let answered = timeout(limit, handshake).await;
    answered.map_err(|_| format!("no AMQP handshake within {limit:?}: {last}"))
}

/// A shell command, whose errors become ours.
pub(crate) async fn shell(script: &str, limit: Duration) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output()).await;
    let output = output.map_err(|_| format!("`{script}` took longer than {limit:?}"))?;
    let output = output.map_err(|error| format!("`{script}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{script}`: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// A script of this repository that may install things: its progress is shown, what it prints is returned.
pub(crate) async fn install(script: &str) -> Result<String, String> {
    let path = format!("{}/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = timeout(INSTALL, command.output()).await;
    let output = output.map_err(|_| format!("{script} took longer than {INSTALL:?}"))?;
    let output = output.map_err(|error| format!("{path}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{script} failed; what it said is above"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A port on loopback that nothing uses, below those that the system gives to outgoing connections: while its broker is
/// stopped, none of these may take it.
pub(crate) fn free_port() -> Result<u16, String> {
    (0..1000)
        .map(|_| fastrand::u16(20_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| "no free port on 127.0.0.1".to_owned())
}
