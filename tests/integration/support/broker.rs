//! Gets a RabbitMQ for the tests and for the demo: from a given address, in Docker, or as a private node of this machine's
//! `rabbitmq-server`, which is installed if possible.
//!
//! `TEST_BROKER=docker` or `TEST_BROKER=node` chooses one of the last two. Nothing is left running, however the process ends:
//! see [`Reaper`]. A broker does not depend on the async runtime that started it.

// Explicit paths, because other targets include this file too.
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

/// The longest time until a broker answers. On an idle machine it takes about five seconds.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest time to stop, pause or continue it.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time to download missing images or packages.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(1800);

/// A running RabbitMQ. Dropping it removes it, unless it was given by address.
pub(crate) struct Broker {
    /// AMQP address with user, password and virtual host.
    pub(crate) url: String,
    /// Address of the management interface, without user and password, which are those of `url`.
    pub(crate) management_url: Option<String>,
    /// Host and port of its metrics for Prometheus.
    pub(crate) metrics: Option<String>,
    owned: Option<Owned>,
}

/// How a broker that we started is controlled.
struct Owned {
    control: fn(&str, &str) -> String,
    name: String,
    reaper: Reaper,
}

impl Broker {
    /// The broker whose address is in the environment variable `var`; without one, [`Broker::own`].
    pub(crate) async fn start(var: &str) -> Result<Self, String> {
        let Some(url) = variable(var) else {
            return Self::own().await.map_err(|why| format!("{why}\nOr give the address of one in {var}."));
        };
        // The variable can name several nodes; the first one is used.
        let url = url.split(',').next().unwrap_or_default().trim().to_owned();
        answers(&url, Duration::from_secs(30)).await.map_err(|why| {
            format!("the broker in {var} does not answer: {why}. Start it, correct {var}, or unset it.")
        })?;
        Ok(Self { url, management_url: None, metrics: None, owned: None })
    }

    /// Starts a new broker that the caller can stop, kill and pause.
    pub(crate) async fn own() -> Result<Self, String> {
        match variable("TEST_BROKER").as_deref() {
            Some("docker") => docker::start().await,
            Some("node") => node::start().await,
            Some(other) => Err(format!("TEST_BROKER is {other:?}; set it to \"docker\" or \"node\", or unset it")),
            None => match docker::start().await {
                Ok(broker) => Ok(broker),
                Err(docker) => node::start()
                    .await
                    .map_err(|node| format!("no RabbitMQ to be had.\nDocker: {docker}\nWithout: {node}")),
            },
        }
    }

    /// The broker that all tests of this process share: the one in `TEST_BROKER_URL`, otherwise a new one.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<Broker, String>> = OnceCell::const_new();
        match SHARED.get_or_init(|| Self::start("TEST_BROKER_URL")).await {
            Ok(broker) => broker,
            Err(why) => panic!("{why}"),
        }
    }

    /// Stops the broker properly. Its data stays.
    pub(crate) async fn stop(&self) -> Result<(), String> {
        self.control("stop").await
    }

    /// Kills the broker, as a crash does. Its data stays.
    pub(crate) async fn kill(&self) -> Result<(), String> {
        self.control("kill").await
    }

    /// Starts the broker again with its data and its address, and waits until it answers.
    pub(crate) async fn restart(&self) -> Result<(), String> {
        self.control("start").await?;
        answers(&self.url, START_TIMEOUT).await
    }

    /// Freezes the broker: connections stay open and nothing answers.
    pub(crate) async fn pause(&self) -> Result<(), String> {
        self.control("pause").await
    }

    /// Ends the pause.
    pub(crate) async fn unpause(&self) -> Result<(), String> {
        self.control("unpause").await
    }

    /// A broker on which [`Broker::ctl`] works: the shared one if this process started it, otherwise a new one. A test must
    /// change only its own queues, users and virtual hosts.
    pub(crate) async fn operated() -> Result<Operated, String> {
        let shared = Self::shared().await;
        if shared.owned.is_some() { Ok(Operated::Shared(shared)) } else { Ok(Operated::Own(Self::own().await?)) }
    }

    /// Runs `rabbitmqctl` with these arguments of a shell.
    pub(crate) async fn ctl(&self, arguments: &str) -> Result<(), String> {
        let Some(owned) = &self.owned else {
            return Err(
                "cannot run rabbitmqctl on a broker that was given by its address; unset TEST_BROKER_URL".to_owned()
            );
        };
        shell(&format!("{} rabbitmqctl --quiet {arguments}", (owned.control)("exec", &owned.name)), CONTROL_TIMEOUT)
            .await
    }

    /// Leaves the broker running when this process ends. Returns the command that removes it; none if it was given by address.
    pub(crate) fn keep(self) -> Option<String> {
        self.owned.map(|owned| owned.reaper.keep())
    }

    async fn control(&self, action: &str) -> Result<(), String> {
        let Some(owned) = &self.owned else {
            return Err(format!("cannot {action} a broker that was given by its address; unset TEST_BROKER_URL"));
        };
        shell(&(owned.control)(action, &owned.name), CONTROL_TIMEOUT).await
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

/// A name that no other test and no other run uses.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}.{:x}.{:08x}", std::process::id(), fastrand::u32(..))
}

#[expect(clippy::disallowed_methods, reason = "how tests are run is no configuration of the worker")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Waits until an AMQP handshake succeeds. This shows for every RabbitMQ that it is ready.
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

/// Runs a shell command. The error contains what it printed.
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

/// Runs a script of this repository that can install packages or images. Shows its progress and returns its output.
pub(crate) async fn install(script: &str) -> Result<String, String> {
    let path = format!("{}/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(&path);
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = timeout(INSTALL_TIMEOUT, command.output()).await;
    let output = output.map_err(|_| format!("{script} took longer than {INSTALL_TIMEOUT:?}"))?;
    let output = output.map_err(|error| format!("{path}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{script} failed; its messages are above"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A free port on loopback, below the range that the system uses for outgoing connections: so no connection takes it while its
/// broker is stopped.
pub(crate) fn free_port() -> Result<u16, String> {
    (0..1000)
        .map(|_| fastrand::u16(20_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| "no free port on 127.0.0.1".to_owned())
}
