//! Real parts broken by chance: broker, network, workers, ledger and CRM, while messages are published steadily. Afterwards
//! all is healed, the queues drain, and the [`books`] must balance.
//!
//! `make chaos SECONDS=300 SEED=7` runs at length; the same seed breaks the same parts in the same order. The schedule goes
//! by the clock, and is the only thing here that does.

mod books;
mod cluster;
mod plan;
mod publisher;
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

fn asked(name: &str) -> Option<u64> {
    variable(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

/// Breaks things as planned while messages are published; then heals all, and closes the books.
async fn run(kind: Kind, nodes: Nodes, ledger: Ledger) {
    let seed = asked("CHAOS_SEED").unwrap_or(1);
    let length = Duration::from_secs(asked("CHAOS_SECONDS").unwrap_or(0));
    let plan = Plan::new(kind, seed, length);
    println!("{kind:?}: seed {seed}");
    let began = Instant::now();
    let site = Site::open(kind, nodes, ledger).await;
    site.weather(plan.weather).await;
    let publisher = Publisher::start(site.urls(), site.queue());
    join_all(plan.lanes.iter().map(|lane| site.follow(lane))).await;
    let published = publisher.stop().await;
    let (books, log) = site.close(&published).await;
    println!("{log}\n{books}\n  seconds: {:.0}", began.elapsed().as_secs_f64());
    let wrong = books.wrong();
    assert!(wrong.is_empty(), "CHAOS_SEED={seed}\n{log}\n{books}\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn one_worker_that_must_not_double() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.unwrap_or_else(|why| panic!("{why}"));
    run(Kind::Strict, Nodes::One(broker), Ledger::File(LedgerFile::new())).await;
}

#[tokio::test]
async fn two_workers_that_share_a_ledger() {
    let _turn = crate::support::heavy().await;
    let broker = Broker::own().await.unwrap_or_else(|why| panic!("{why}"));
    let redis = Redis::own().await.unwrap_or_else(|why| panic!("{why}"));
    run(Kind::Failover, Nodes::One(broker), Ledger::Redis(redis)).await;
}

#[tokio::test]
async fn a_cluster_that_loses_each_node_in_turn_and_is_partitioned() {
    let _turn = crate::support::heavy().await;
    match Cluster::start().await {
        Ok(cluster) => {
            let redis = Redis::own().await.unwrap_or_else(|why| panic!("{why}"));
            run(Kind::Cluster, Nodes::Three(cluster), Ledger::Redis(redis)).await;
        }
        Err(why) => {
            assert!(variable("TEST_BROKER").is_none_or(|broker| broker != "docker"), "{why}");
            eprintln!("SKIPPED, a cluster wants Docker: {why}");
        }
    }
}
