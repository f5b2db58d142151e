//! Gets a Redis for the tests: from a given address, in Docker, or as a private server of this machine's `redis-server`, which
//! is installed if possible.
//!
//! `TEST_REDIS=docker` or `TEST_REDIS=node` chooses one of the last two. Nothing is left running, however the process ends: see
//! [`Reaper`].

use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use super::broker::{Reaper, free_port, install, shell, unique, variable};

/// The longest time until a server answers. On an idle machine it takes less than one second.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time to stop, pause or continue it.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
/// Redis writes to the disk before it answers, so that a killed server has lost nothing.
const DURABLE: &str = "--save '' --appendonly yes --appendfsync always";

/// A running Redis. Dropping it removes it, unless it was given by address.
pub(crate) struct Redis {
    /// Its address.
    pub(crate) url: String,
    owned: Option<Owned>,
}

struct Owned {
    /// The shell command for one of the actions below.
    control: Box<dyn Fn(&str) -> String + Send + Sync>,
    /// Removes the server when it is dropped.
    _reaper: Reaper,
}

impl Redis {
    /// The server that all tests of this process share: the one in `TEST_REDIS_URL`, otherwise a new one.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<Redis, String>> = OnceCell::const_new();
        let start = async || match variable("TEST_REDIS_URL") {
            Some(url) => Ok(Self { url, owned: None }),
            None => Self::own().await.map_err(|why| format!("{why}\nOr give the address of one in TEST_REDIS_URL.")),
        };
        match SHARED.get_or_init(start).await {
            Ok(redis) => redis,
            Err(why) => panic!("{why}"),
        }
    }

    /// Starts a new server that the caller can kill and pause.
    pub(crate) async fn own() -> Result<Self, String> {
        match variable("TEST_REDIS").as_deref() {
            Some("docker") => docker().await,
            Some("node") => node().await,
            Some(other) => Err(format!("TEST_REDIS is {other:?}; set it to \"docker\" or \"node\", or unset it")),
            None => match docker().await {
                Ok(redis) => Ok(redis),
                Err(docker) => {
                    node().await.map_err(|node| format!("no Redis to be had.\nDocker: {docker}\nWithout: {node}"))
                }
            },
        }
    }

    /// Kills the server, as a crash does. Its data stays.
    pub(crate) async fn kill(&self) -> Result<(), String> {
        self.control("kill").await
    }

    /// Starts the server again with its data and its address, and waits until it answers.
    pub(crate) async fn restart(&self) -> Result<(), String> {
        self.control("start").await?;
        answers(&self.url).await
    }

    /// Freezes the server: connections stay open and nothing answers.
    pub(crate) async fn pause(&self) -> Result<(), String> {
        self.control("pause").await
    }

    /// Ends the pause.
    pub(crate) async fn unpause(&self) -> Result<(), String> {
        self.control("unpause").await
    }

    /// Demands a password of every new connection.
    pub(crate) async fn set_password(&self, password: &str) {
        let client = redis::Client::open(self.url.as_str()).expect("an address");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("requirepass").arg(password);
        set.query_async::<()>(&mut connection).await.expect("set");
    }

    async fn control(&self, action: &str) -> Result<(), String> {
        let Some(owned) = &self.owned else {
            return Err(format!("cannot {action} a Redis that was given by its address; unset TEST_REDIS_URL"));
        };
        shell(&(owned.control)(action), CONTROL_TIMEOUT).await
    }
}

async fn docker() -> Result<Redis, String> {
    shell("docker version", Duration::from_secs(20))
        .await
        .map_err(|_| "Docker is not installed, or its daemon does not answer. Install or start it")?;
    install("deploy/docker/redis-image.sh").await?;
    let name = unique("wolkvox-task-worker-redis");
    let reaper = Reaper::new(format!("timeout 60 docker rm -fv {name}"))?;
    let port = free_port()?;
    let run = format!(
        "docker run --detach --name {name} --publish 127.0.0.1:{port}:6379 redis:8 \
         redis-server --protected-mode no {DURABLE}"
    );
    shell(&run, START_TIMEOUT).await?;
    let control = Box::new(move |action: &str| format!("docker {action} {name}"));
    started(port, control, reaper).await
}

async fn node() -> Result<Redis, String> {
    let server = install("deploy/redis-server.sh").await?;
    let folder = format!("/tmp/{}", unique("wolkvox-task-worker-redis"));
    // An ended process has no command line. Its entry in /proc can stay if its parent does not wait for it.
    let kill = format!(
        "pid=$(cat {folder}/pid) && kill -KILL $pid; \
         for tick in $(seq 200); do grep -q . /proc/$pid/cmdline 2>/dev/null || break; sleep 0.05; done"
    );
    let reaper = Reaper::new(format!("{{ {kill}; }}; rm -rf {folder}"))?;
    let port = free_port()?;
    let start = format!(
        "'{server}' --bind 127.0.0.1 --port {port} --dir {folder} --pidfile {folder}/pid --logfile {folder}/log \
         --daemonize yes {DURABLE}"
    );
    shell(&format!("mkdir -m 700 {folder} && {start}"), START_TIMEOUT).await?;
    let control = Box::new(move |action: &str| match action {
        "kill" => kill.clone(),
        "pause" => format!("kill -STOP $(cat {folder}/pid)"),
        "unpause" => format!("kill -CONT $(cat {folder}/pid)"),
        _ => start.clone(),
    });
    started(port, control, reaper).await
}

async fn started(
    port: u16,
    control: Box<dyn Fn(&str) -> String + Send + Sync>,
    reaper: Reaper,
) -> Result<Redis, String> {
    let url = format!("redis://127.0.0.1:{port}/0");
    answers(&url).await?;
    Ok(Redis { url, owned: Some(Owned { control, _reaper: reaper }) })
}

/// Waits until the server answers a PING. It refuses it while it loads its data.
async fn answers(url: &str) -> Result<(), String> {
    let client = redis::Client::open(url).map_err(|error| error.to_string())?;
    let mut last = String::from("nothing answers");
    let ping = async {
        loop {
            let pong = async {
                let mut connection = client.get_multiplexed_async_connection().await?;
                redis::cmd("PING").query_async::<String>(&mut connection).await
            };
            match pong.await {
                Ok(_) => return,
                Err(error) => last = error.to_string(),
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let answered = timeout(START_TIMEOUT, ping).await;
    answered.map_err(|_| format!("no answer within {START_TIMEOUT:?}: {last}"))
}
