//! Three RabbitMQ nodes in containers. Clients and peers reach a node through different networks, so that a test can
//! separate a node from its peers only.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use crate::support::broker::{Reaper, answers, free_port, install, shell, unique};

/// The longest time in which a node joins its cluster.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest time of one command.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(60);
const NODES: usize = 3;

/// A cluster of three nodes. Dropping it removes the containers.
pub(super) struct Cluster {
    name: String,
    image: String,
    ports: Vec<u16>,
    _reaper: Reaper,
}

impl Cluster {
    pub(super) async fn start() -> Result<Self, String> {
        shell("docker version", Duration::from_secs(20))
            .await
            .map_err(|_| "Docker is not installed, or its daemon does not answer. Install or start it")?;
        let image = install("deploy/docker/rabbitmq-image.sh").await?;
        let name = unique("wolkvox-task-worker-cluster");
        let containers: Vec<String> = (0..NODES).map(|node| format!("{name}-{node}")).collect();
        let remove = format!("timeout 60 docker rm -fv {}; timeout 20 docker network rm {name}", containers.join(" "));
        let reaper = Reaper::new(remove)?;
        let ports = (0..NODES).map(|_| free_port()).collect::<Result<_, _>>()?;
        let cluster = Self { name, image, ports, _reaper: reaper };
        cluster.sh(format!("docker network create --internal {}", cluster.name)).await?;
        try_join_all((0..NODES).map(|node| cluster.create(node))).await?;
        for node in 1..NODES {
            let member = "rabbitmqctl --quiet join_cluster rabbit@node0";
            cluster
                .inside(node, &format!("rabbitmqctl --quiet stop_app && {member} && rabbitmqctl --quiet start_app"))
                .await?;
        }
        for node in 0..NODES {
            cluster.whole(node).await?;
        }
        Ok(cluster)
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("amqp://guest:guest@127.0.0.1:{port}/%2f")).collect()
    }

    pub(super) async fn kill(&self, node: usize) -> Result<(), String> {
        self.sh(format!("docker kill {}", self.container(node))).await
    }

    /// Starts a node that was killed, and waits until it sees all nodes.
    pub(super) async fn start_again(&self, node: usize) -> Result<(), String> {
        self.sh(format!("docker start {}", self.container(node))).await?;
        self.whole(node).await
    }

    /// Separates a node from its peers. Clients still reach it.
    pub(super) async fn cut_off(&self, node: usize) -> Result<(), String> {
        self.sh(format!("docker network disconnect {} {}", self.name, self.container(node))).await
    }

    /// Connects a separated node to its peers again, and waits until it sees all nodes.
    pub(super) async fn join(&self, node: usize) -> Result<(), String> {
        self.connect(node).await?;
        self.whole(node).await
    }

    async fn create(&self, node: usize) -> Result<(), String> {
        // The nodes notice a separated peer within seconds, and a minority stops instead of working alone.
        let settings = "-setcookie chaos -kernel net_ticktime 8 -rabbit cluster_partition_handling pause_minority";
        self.sh(format!(
            "docker create --name {} --hostname node{node} --publish 127.0.0.1:{}:5672 \
             --env RABBITMQ_NODENAME=rabbit@node{node} --env RABBITMQ_CTL_ERL_ARGS='-setcookie chaos' \
             --env RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='{settings}' {}",
            self.container(node),
            self.ports[node],
            self.image,
        ))
        .await?;
        self.connect(node).await?;
        self.sh(format!("docker start {}", self.container(node))).await?;
        answers(&self.urls()[node], START_TIMEOUT).await
    }

    async fn connect(&self, node: usize) -> Result<(), String> {
        self.sh(format!("docker network connect --alias node{node} {} {}", self.name, self.container(node))).await
    }

    /// Waits until the node sees all nodes and answers clients.
    async fn whole(&self, node: usize) -> Result<(), String> {
        let all = format!("eval '{NODES} = length(rabbit_nodes:list_running()).'");
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(why) = self.inside(node, &format!("rabbitmqctl --quiet {all}")).await {
            if Instant::now() > deadline {
                return Err(why);
            }
            sleep(Duration::from_millis(200)).await;
        }
        answers(&self.urls()[node], START_TIMEOUT).await
    }

    async fn inside(&self, node: usize, script: &str) -> Result<(), String> {
        let script = script.replace('\'', r"'\''");
        self.sh(format!("docker exec {} sh -c '{script}'", self.container(node))).await
    }

    async fn sh(&self, script: String) -> Result<(), String> {
        shell(&script, CONTROL_TIMEOUT).await
    }

    fn container(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }
}
