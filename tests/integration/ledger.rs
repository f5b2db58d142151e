//! The ledger in a real Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use redis::aio::MultiplexedConnection;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use wolkvox_task_worker::clock::Clock;
use wolkvox_task_worker::config;
use wolkvox_task_worker::ledger::memory::MemoryLedger;
use wolkvox_task_worker::ledger::redis::{PREFIX, RedisLedger};
use wolkvox_task_worker::ledger::{self, Closing, Digest, Entry, Key, Ledger, LedgerError, Limits, Record, State};

#[path = "../../src/ledger/suite.rs"]
mod suite;

use self::suite::{Desk, Hands, ROOMY, TIGHT, all, closed, created, digest, intend, key, steps, suite, take};
use crate::support::broker::unique;
use crate::support::redis::Redis;

async fn open(url: &str, prefix: &str, limits: Limits, clock: Clock) -> Result<RedisLedger, LedgerError> {
    let url = SecretString::from(url);
    let opened = RedisLedger::open(&url, prefix, limits, clock);
    timeout(Duration::from_secs(20), opened).await.unwrap()
}

/// A ledger that no other test has.
async fn own(redis: &Redis, limits: Limits, clock: Clock) -> RedisLedger {
    open(&redis.url, &unique("test"), limits, clock).await.unwrap()
}

async fn connect(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url.as_str()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Tries until it works, as the worker does.
async fn in_time(mut step: impl AsyncFnMut() -> Result<(), LedgerError>) {
    let tries = async {
        while step().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), tries).await.unwrap();
}

#[tokio::test]
async fn redis_does_what_every_store_does() {
    let redis = Redis::shared().await;
    suite(async |limits, clock| Arc::new(own(redis, limits, clock).await) as _).await;
}

#[tokio::test]
async fn redis_is_like_memory_however_often_it_is_opened() {
    let redis = Redis::shared().await;
    let mut runner = TestRunner::default();
    // In seconds instead of milliseconds: by Redis' own clock nothing is to end during the test.
    let limits = Limits { retention: TIGHT.retention * 1000, ..TIGHT };
    for case in 0..48 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let (hands, prefix) = (Hands::new(), unique("test"));
        let memory = MemoryLedger::new(limits, hands.clock());
        let slow = async || open(&redis.url, &prefix, limits, hands.clock()).await.unwrap();
        let mut ledger = slow().await;
        for (place, step) in steps.iter().enumerate() {
            if step.reopen {
                ledger = slow().await;
            }
            hands.forward(step.milliseconds * 1000);
            take(&memory, step, hands.now()).await;
            take(&ledger, step, hands.now()).await;
            let (found, expected) = (all(&ledger).await, all(&memory).await);
            assert_eq!(found, expected, "case {case}, step {place} of {steps:#?}");
        }
    }
}

#[tokio::test]
async fn replicas_share_what_they_know() {
    let redis = Redis::shared().await;
    let (hands, prefix) = (Hands::new(), unique("test"));
    let desk = async || Desk {
        ledger: Arc::new(open(&redis.url, &prefix, ROOMY, hands.clock()).await.unwrap()),
        hands: hands.clone(),
    };
    let (first, second) = (desk().await, desk().await);
    first.record("a", intend(1)).await;
    assert_eq!(second.state("a").await, Some((State::Open, 1, 1)));
    second.record("a", intend(2)).await;
    first.record("a", created(1)).await;
    second.record("a", closed(2)).await;
    assert_eq!(second.state("a").await, Some((State::Created, 1, 0)));
    // At the same time on the same entry none is lost.
    let both = (0..40).map(|turn| if turn % 2 == 0 { &first } else { &second });
    join_all(both.map(|desk| desk.record("b", intend(1)))).await;
    assert_eq!(first.state("b").await, Some((State::Open, 1, 40)));
}

#[tokio::test]
async fn outcomes_end_by_themselves_and_open_intents_do_not() {
    let redis = Redis::shared().await;
    let (hands, prefix) = (Hands::new(), unique("test"));
    let ledger = Arc::new(open(&redis.url, &prefix, ROOMY, hands.clock()).await.unwrap());
    let desk = Desk { ledger, hands };
    let mut connection = connect(redis).await;
    let mut ttl = async || -> i64 {
        let pattern = format!("{prefix}entry:*");
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
        assert_eq!(keys.len(), 1);
        redis::cmd("PTTL").arg(&keys[0]).query_async(&mut connection).await.unwrap()
    };
    let retention = i64::try_from(ROOMY.retention.as_millis()).unwrap();
    desk.record("a", intend(1)).await;
    assert_eq!(ttl().await, -1);
    desk.record("a", closed(1)).await;
    assert!((retention - 20_000..=retention).contains(&ttl().await));
    desk.record("a", intend(2)).await;
    assert_eq!(ttl().await, -1);
    // What comes back lives as long as it would have.
    desk.hands.forward(retention / 2);
    desk.record("a", Record::Withdraw).await;
    assert!((retention / 2 - 20_000..=retention / 2).contains(&ttl().await));
    desk.record("a", created(2)).await;
    assert!((retention - 20_000..=retention).contains(&ttl().await));
}

#[tokio::test]
async fn a_redis_that_hangs_or_dies_is_said_and_comes_back() {
    let redis = Redis::own().await.unwrap();
    let hands = Hands::new();
    let ledger = own(&redis, ROOMY, hands.clock()).await;
    let desk = Desk { ledger: Arc::new(ledger), hands: hands.clone() };
    desk.record("kept", created(1)).await;
    let key = key("a");
    let write = async || desk.ledger.record(&key, digest(0), intend(1), hands.now()).await.map(drop);

    redis.pause().await.unwrap();
    let started = Instant::now();
    let errors = join_all((0..20).map(async |_| write().await.unwrap_err().to_string())).await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let host = redis.url.trim_start_matches("redis://");
    for error in errors {
        assert!(error.contains(host) && error.contains("; "), "{error}");
    }
    redis.unpause().await.unwrap();
    in_time(write).await;

    redis.kill().await.unwrap();
    let error = write().await.unwrap_err().to_string();
    assert!(error.contains("start Redis, or correct host and port"), "{error}");
    redis.restart().await.unwrap();
    in_time(async || desk.ledger.record(&key, digest(0), created(1), hands.now()).await.map(drop)).await;
    assert_eq!(desk.state("a").await, Some((State::Created, 1, 0)));
    assert_eq!(desk.state("kept").await, Some((State::Created, 1, 0)));
}

/// Between a ledger and its Redis: swallows what is answered to scripts while it is told to.
struct Proxy {
    url: String,
    mute: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Proxy {
    async fn start(redis: &Redis) -> Self {
        let server = redis.url.trim_start_matches("redis://").trim_end_matches("/0").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}/0", listener.local_addr().unwrap());
        let mute = Arc::new(AtomicBool::new(false));
        let (muted, mut tasks) = (Arc::clone(&mute), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                connections.spawn(forward(client, server, Arc::clone(&muted)));
            }
        });
        Self { url, mute, tasks }
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, mute: Arc<AtomicBool>) {
    let (mut asked, mut answered) = ([0; 4096], [0; 4096]);
    let mut swallow = false;
    loop {
        tokio::select! {
            Ok(length @ 1..) = client.read(&mut asked) => {
                let script = asked[..length].windows(7).any(|word| word == b"EVALSHA");
                swallow = script && mute.load(Ordering::Relaxed);
                server.write_all(&asked[..length]).await.unwrap();
            }
            Ok(length @ 1..) = server.read(&mut answered) => {
                if !swallow && client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}

#[tokio::test]
async fn a_record_whose_answer_is_lost_counts_once_when_it_is_given_again() {
    let redis = Redis::shared().await;
    let mut proxy = Proxy::start(redis).await;
    let (hands, prefix) = (Hands::new(), unique("test"));
    let desk = async |url: &str| Desk {
        ledger: Arc::new(open(url, &prefix, ROOMY, hands.clock()).await.unwrap()),
        hands: hands.clone(),
    };
    let (through, beside) = (desk(&proxy.url).await, desk(&redis.url).await);
    through.record("a", intend(1)).await;
    through.record("a", intend(2)).await;
    let key = key("a");
    for (record, expected) in [
        (intend(3), Some((State::Open, 3, 3))),
        (Record::Withdraw, Some((State::Open, 2, 2))),
        (closed(2), Some((State::Unknown, 2, 0))),
    ] {
        proxy.mute.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            let write = through.ledger.record(&key, digest(0), record, hands.now());
            let error = write.await.unwrap_err().to_string();
            assert!(error.contains("look at Redis' load"), "{error}");
            assert_eq!(beside.state("a").await, expected, "{record:?} was taken");
            hands.forward(1);
        }
        proxy.mute.store(false, Ordering::Relaxed);
        through.record("a", record).await;
        assert_eq!(beside.state("a").await, expected, "{record:?}");
    }
    proxy.tasks.shutdown().await;
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_no_failure() {
    let redis = Redis::own().await.unwrap();
    let hands = Hands::new();
    let ledger = Arc::new(own(&redis, ROOMY, hands.clock()).await);
    let desk = Desk { ledger, hands };
    let mut connection = connect(&redis).await;
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
    for _ in 0..5 {
        kill.query_async::<i64>(&mut connection).await.unwrap();
        desk.record("a", closed(1)).await;
        kill.query_async::<i64>(&mut connection).await.unwrap();
        assert_eq!(desk.state("a").await, Some((State::Closed, 1, 0)));
    }
}

#[tokio::test]
async fn what_cannot_be_opened_says_why_and_no_password() {
    let redis = Redis::own().await.unwrap();
    let refused = async |url: &str| {
        let opened = open(url, PREFIX, ROOMY, Clock::system()).await;
        let error = opened.err().unwrap();
        let said = format!("{error} {error:?}");
        assert!(!said.contains("hunter2"), "{said}");
        said
    };
    let host = redis.url.trim_start_matches("redis://");
    let said = refused(&format!("redis://someone:hunter2@{host}")).await;
    assert!(said.contains("check user and password in ledger.url"), "{said}");
    assert!(said.starts_with(&format!("ledger redis://{host}: ")), "{said}");
    let said = refused("redis://:hunter2@127.0.0.1:1/3").await;
    assert!(said.contains("redis://127.0.0.1:1/3") && said.contains("start Redis"), "{said}");
    let said = refused(&format!("rediss://:hunter2@{host}")).await;
    assert!(said.contains("rediss://"), "{said}");
    let said = refused(&format!("redis://:hunter2@{host}x")).await;
    assert!(said.contains("correct ledger.url"), "{said}");

    let mut connection = connect(&redis).await;
    let newer = unique("test");
    let mut set = redis::cmd("SET");
    set.arg(format!("{newer}format")).arg("2");
    set.query_async::<()>(&mut connection).await.unwrap();
    let error = open(&redis.url, &newer, ROOMY, Clock::system()).await.err().unwrap();
    assert!(error.to_string().contains("it has format \"2\""), "{error}");
}

#[tokio::test]
async fn the_configured_ledger_is_opened() {
    let redis = Redis::own().await.unwrap();
    for store in [config::LedgerStore::Memory, config::LedgerStore::Redis(SecretString::from(redis.url.clone()))] {
        let retention = ROOMY.retention;
        let config = config::Ledger { store, url_file: None, retention, max_entries: 10 };
        let ledger = ledger::open(&config, Clock::system()).await.unwrap();
        assert_eq!(ledger.look(&key("a")).await.unwrap(), None);
    }
}
