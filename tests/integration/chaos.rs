//! Breaks real parts in a random order (broker, network, workers, ledger and CRM) while messages are published steadily. Then
//! repairs them, waits until the queues are empty, and checks the [`report`]: no message is lost, no duplicate is silent.
//!
//! `make chaos SECONDS=300 SEED=7` runs for five minutes. The same seed breaks the same parts in the same order. Only the
//! schedule of the faults depends on the clock.

mod cluster;
mod plan;
mod publisher;
mod report;
mod site;

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::chaos::cluster::Cluster;
use crate::chaos::plan::{Kind, Plan};
use crate::chaos::publisher::Publisher;
use crate::chaos::site::{Ledger, Nodes, Site};
use crate::support::broker::{Broker, variable};
use crate::support::redis::Redis;
use crate::support::rig::LedgerFile;

fn number_variable(name: &str) -> Option<u64> {
    variable(name).map(|text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is not a whole number; correct or unset it"))
    })
}

/// Breaks parts as planned while messages are published. Then repairs them and checks the report.
async fn run(kind: Kind, nodes: Nodes, ledger: Ledger) {
    let seed = number_variable("CHAOS_SEED").unwrap_or(1);
    let length = Duration::from_secs(number_variable("CHAOS_SECONDS").unwrap_or(0));
    let plan = Plan::new(kind, seed, length);
    println!("{kind:?}: seed {seed}");
    let began = Instant::now();
    let site = Site::open(kind, nodes, ledger).await;
    site.random_faults(plan.random_faults).await;
    let publisher = Publisher::start(site.urls(), site.queue());
    join_all(plan.lanes.iter().map(|lane| site.follow(lane))).await;
    let published = publisher.stop().await;
    let (report, log) = site.close(&published).await;
    println!("{log}\n{report}\n  seconds: {:.0}", began.elapsed().as_secs_f64());
    let problems = report.problems();
    assert!(problems.is_empty(), "CHAOS_SEED={seed}\n{log}\n{report}\n{}", problems.join("\n"));
}

#[tokio::test]
async fn one_worker_in_strict_mode_accounts_for_every_message() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.unwrap_or_else(|why| panic!("{why}"));
    run(Kind::Strict, Nodes::One(broker), Ledger::File(LedgerFile::new())).await;
}

#[tokio::test]
async fn two_workers_with_a_shared_ledger_account_for_every_message() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.unwrap_or_else(|why| panic!("{why}"));
    let redis = Redis::own().await.unwrap_or_else(|why| panic!("{why}"));
    run(Kind::Failover, Nodes::One(broker), Ledger::Redis(redis)).await;
}

#[tokio::test]
async fn cluster_that_loses_each_node_and_is_partitioned_accounts_for_every_message() {
    let _turn = crate::support::heavy().await;
    match Cluster::start().await {
        Ok(cluster) => {
            let redis = Redis::own().await.unwrap_or_else(|why| panic!("{why}"));
            run(Kind::Cluster, Nodes::Three(cluster), Ledger::Redis(redis)).await;
        }
        Err(why) => {
            assert!(variable("TEST_BROKER").is_none_or(|broker| broker != "docker"), "{why}");
            eprintln!("SKIPPED: three RabbitMQ nodes need Docker: {why}");
        }
    }
}
