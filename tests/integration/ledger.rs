//! The ledger in a real Redis, the command that renews a ledger's id, and workers that take over from a killed one.

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
use wolkvox_task_worker::ledger::redis::{RedisLedger, prefix};
use wolkvox_task_worker::ledger::sqlite::SqliteLedger;
use wolkvox_task_worker::ledger::{
    self, AttemptResult, Change, Changed, Claim, ClaimId, Digest, Entry, Key, KnownResult, Ledger, LedgerError,
    LedgerMetadata, Limits, NewClaim, Owner, ReplayMark, entry,
};

mod owners;
#[path = "../../src/ledger/suite.rs"]
mod suite;
mod takeover;

use self::suite::{
    FakeClock, Fixture, LONG_RETENTION, Model, SHORT_RETENTION, durable_suite, finish, first, key, steps, suite,
};
use crate::support::broker::unique;
use crate::support::process::{Env, run};
use crate::support::redis::Redis;

async fn open(url: &str, prefix: &str, limits: Limits, clock: Clock) -> Result<RedisLedger, LedgerError> {
    let url = SecretString::from(url).into();
    let opened = RedisLedger::open(&url, prefix, limits, clock, false);
    let ledger = timeout(Duration::from_secs(20), opened).await.unwrap()?;
    let about = ledger.about();
    if about.last_change.is_none() && !about.proves_unsent {
        // A new ledger begins with a random epoch; the claims of these tests have epoch 0.
        assert!(ledger.set_about(about.clone(), LedgerMetadata { epoch: 0, ..about }).await?);
    }
    Ok(ledger)
}

/// A ledger with a prefix that no other test uses.
async fn own(redis: &Redis, limits: Limits, clock: Clock) -> RedisLedger {
    open(&redis.url, &unique("test"), limits, clock).await.unwrap()
}

async fn connect(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url.as_str()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Tries again until it succeeds, as the worker does.
async fn in_time(mut step: impl AsyncFnMut() -> Result<(), LedgerError>) {
    let tries = async {
        while step().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), tries).await.unwrap();
}

#[tokio::test]
async fn redis_ledger_passes_the_suite() {
    let redis = Redis::shared().await;
    suite(async |limits, clock| Arc::new(own(redis, limits, clock).await) as _).await;
    let prefix = unique("test");
    durable_suite(async |clock| Arc::new(open(&redis.url, &prefix, LONG_RETENTION, clock).await.unwrap()) as _).await;
}

#[tokio::test]
async fn redis_ledger_matches_the_model_across_restarts() {
    let redis = Redis::shared().await;
    let mut runner = TestRunner::default();
    // In seconds instead of milliseconds, so that nothing expires during the test by Redis' own clock.
    let limits = Limits { retention: SHORT_RETENTION.retention * 1000, ..SHORT_RETENTION };
    for _ in 0..48 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let (clock, prefix, mut model) = (FakeClock::new(), unique("test"), Model::default());
        let mut ledger = open(&redis.url, &prefix, limits, clock.clock()).await.unwrap();
        for step in &steps {
            if step.reopen {
                ledger = open(&redis.url, &prefix, limits, clock.clock()).await.unwrap();
            }
            model.step(step, &ledger, &clock, limits, 1000).await;
        }
    }
}

#[tokio::test]
async fn replicas_share_entries() {
    let redis = Redis::shared().await;
    let (clock, prefix) = (FakeClock::new(), unique("test"));
    let fixture = async || Fixture {
        ledger: Arc::new(open(&redis.url, &prefix, LONG_RETENTION, clock.clock()).await.unwrap()),
        clock: clock.clone(),
    };
    let (here, there) = (fixture().await, fixture().await);
    assert_eq!(here.ledger.about(), there.ledger.about());
    here.claim("a", 1).await;
    assert_eq!(there.get("a").await, here.get("a").await);
    here.finish("a", 1, AttemptResult::Created).await;
    assert!(there.is_created("a").await);
    // Of simultaneous claims one wins, whichever replica sends it.
    let claims = (0..40_u64).map(async |id| {
        let replica = if id % 2 == 0 { &here } else { &there };
        let claim = Change::Claim { expected: None, new: first(id, clock.now()) };
        matches!(replica.change("b", claim).await, Changed::Done(_))
    });
    assert_eq!(join_all(claims).await.into_iter().filter(|won| *won).count(), 1);
    let about = LedgerMetadata { proves_unsent: true, epoch: 3, ..here.ledger.about() };
    let stale = there.ledger.about();
    assert!(here.ledger.set_about(here.ledger.about(), about.clone()).await.unwrap());
    let lost = LedgerMetadata { epoch: 1, ..stale.clone() };
    assert!(!there.ledger.set_about(stale, lost).await.unwrap(), "the other replica has replaced what was seen");
    let reloaded = there.ledger.reload_about().await.unwrap();
    assert_eq!((reloaded.proves_unsent, reloaded.epoch), (true, 3));
    assert_eq!(reloaded.last_change.map(|at| at.as_millisecond()), Some(clock.now().as_millisecond()));
}

#[tokio::test]
async fn shared_redis_keeps_a_separate_ledger_for_each_queue() {
    let redis = Redis::shared().await;
    let (clock, one) = (FakeClock::new(), unique("tasks[*]?"));
    let opened = async |queue: &str| {
        let ledger = open(&redis.url, &prefix(queue), LONG_RETENTION, clock.clock()).await.unwrap();
        Fixture { ledger: Arc::new(ledger), clock: clock.clone() }
    };
    let (here, there) = (opened(&one).await, opened(&unique("tasks")).await);
    let about = here.ledger.about();
    assert!(
        here.ledger.set_about(about.clone(), LedgerMetadata { proves_unsent: true, ..about.clone() }).await.unwrap()
    );
    here.create("a", 1).await;
    let other = there.ledger.reload_about().await.unwrap();
    assert!(
        other.id != about.id && !other.proves_unsent,
        "what one queue's ledger proves says nothing of another queue"
    );
    assert_eq!((there.get("a").await, there.ledger.entries()), (None, 0));
    assert!(here.ledger.find(key("a").prefix()).await.unwrap().is_some(), "a queue's name is no pattern");
    assert_eq!(there.ledger.find(key("a").prefix()).await.unwrap(), None);
}

#[tokio::test]
async fn redis_entries_expire_unless_a_claim_is_open() {
    let redis = Redis::shared().await;
    let (clock, prefix) = (FakeClock::new(), unique("test"));
    let ledger = Arc::new(open(&redis.url, &prefix, LONG_RETENTION, clock.clock()).await.unwrap());
    let fixture = Fixture { ledger, clock };
    let mut connection = connect(redis).await;
    let mut ttl = async || -> i64 {
        let pattern = format!("{prefix}entry:*");
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
        assert_eq!(keys.len(), 1);
        redis::cmd("PTTL").arg(&keys[0]).query_async(&mut connection).await.unwrap()
    };
    let retention = i64::try_from(LONG_RETENTION.retention.as_millis()).unwrap();
    for (claim, result) in [(1, AttemptResult::InDoubt), (2, AttemptResult::NotCreated), (3, AttemptResult::Created)] {
        fixture.claim("a", claim).await;
        assert_eq!(ttl().await, -1);
        fixture.finish("a", claim, result).await;
        assert!((retention - 20_000..=retention).contains(&ttl().await));
    }
}

#[tokio::test]
async fn emptied_redis_is_another_ledger_and_claims_conflict() {
    let redis = Redis::own().await.unwrap();
    let clock = FakeClock::new();
    let fixture = Fixture { ledger: Arc::new(own(&redis, LONG_RETENTION, clock.clock()).await), clock };
    let proven = LedgerMetadata { proves_unsent: true, epoch: 0, ..fixture.ledger.about() };
    fixture.ledger.set_about(fixture.ledger.about(), proven.clone()).await.unwrap();
    fixture.create("a", 1).await;
    let claim = |id, epoch| {
        let new = NewClaim { epoch, ..first(id, fixture.clock.now()) };
        Change::Claim { expected: None, new }
    };
    let mut connection = connect(&redis).await;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    // These claims were decided before the ledger was emptied. The first one notices it.
    for id in [2, 3] {
        assert_eq!(fixture.change("b", claim(id, 0)).await, Changed::Conflict(None));
    }
    let now = fixture.ledger.about();
    assert!(now.id != proven.id && !now.proves_unsent);
    assert!(matches!(fixture.change("b", claim(3, now.epoch)).await, Changed::Done(_)));
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    fixture.finish("b", 3, AttemptResult::Created).await;
    assert!(fixture.is_created("b").await, "a created task is recorded all the same");
    // A claim that was decided in an earlier epoch.
    fixture
        .ledger
        .set_about(fixture.ledger.about(), LedgerMetadata { epoch: 1, ..fixture.ledger.about() })
        .await
        .unwrap();
    assert_eq!(fixture.change("c", claim(4, 0)).await, Changed::Conflict(None));
}

#[tokio::test]
async fn restarted_redis_no_longer_proves_that_nothing_was_sent() {
    let redis = Redis::own().await.unwrap();
    let clock = FakeClock::new();
    let fixture = Fixture { ledger: Arc::new(own(&redis, LONG_RETENTION, clock.clock()).await), clock };
    let proven =
        LedgerMetadata { proves_unsent: true, epoch: 4, identities: "rules".to_owned(), ..fixture.ledger.about() };
    fixture.ledger.set_about(fixture.ledger.about(), proven.clone()).await.unwrap();
    assert_eq!(fixture.ledger.reload_about().await.unwrap(), proven);
    redis.kill().await.unwrap();
    redis.restart().await.unwrap();
    in_time(async || fixture.ledger.reload_about().await.map(drop)).await;
    assert_eq!(fixture.ledger.about(), LedgerMetadata { proves_unsent: false, epoch: 5, ..proven });
}

#[tokio::test]
async fn redis_that_hangs_or_ends_is_reported_and_used_again() {
    let redis = Redis::own().await.unwrap();
    let clock = FakeClock::new();
    let fixture = Fixture { ledger: Arc::new(own(&redis, LONG_RETENTION, clock.clock()).await), clock: clock.clone() };
    fixture.create("kept", 1).await;
    let key = key("a");
    let claim = Change::Claim { expected: None, new: first(2, clock.now()) };
    let write = async || fixture.ledger.change(&key, claim.clone()).await.map(drop);

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
    in_time(async || {
        let result = finish(2, AttemptResult::Created, 1, clock.now());
        fixture.ledger.change(&key, result).await.map(drop)
    })
    .await;
    assert!(fixture.is_created("a").await && fixture.is_created("kept").await);
}

/// A proxy between a ledger and its Redis. While `mute` is set, it drops the answers to scripts.
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
                let script = asked[..length].windows(4).any(|word| word == b"EVAL");
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
async fn change_counts_once_when_it_is_repeated_after_a_lost_answer() {
    let redis = Redis::shared().await;
    let mut proxy = Proxy::start(redis).await;
    let (clock, prefix) = (FakeClock::new(), unique("test"));
    let fixture = async |url: &str| Fixture {
        ledger: Arc::new(open(url, &prefix, LONG_RETENTION, clock.clock()).await.unwrap()),
        clock: clock.clone(),
    };
    let (through, beside) = (fixture(&proxy.url).await, fixture(&redis.url).await);
    let key = key("a");
    let (now, second) = (clock.now(), NewClaim { attempts: 2, ..first(2, clock.now()) });
    let mut expected: Option<Entry> = None;
    for step in 0..5 {
        let version = expected.as_ref().map(|entry| entry.version);
        let change = match step {
            0 => Change::Claim { expected: version, new: first(1, now) },
            1 => finish(1, AttemptResult::Orphaned, 1, now),
            2 => Change::Claim { expected: version, new: second.clone() },
            3 => Change::Withdraw(second.clone()),
            _ => finish(1, AttemptResult::Created, 1, now),
        };
        let (after, _) = entry::apply(expected.clone(), &change);
        proxy.mute.store(true, Ordering::Relaxed);
        let error = through.ledger.change(&key, change.clone()).await.unwrap_err().to_string();
        assert!(error.contains("look at Redis' load"), "{error}");
        assert_eq!(beside.get("a").await, after, "{change:?} was applied");
        proxy.mute.store(false, Ordering::Relaxed);
        through.change("a", change.clone()).await;
        let found = beside.get("a").await;
        // A withdrawal always changes the version.
        let without_version = |entry: Option<Entry>| entry.map(|entry| Entry { version: 0, ..entry });
        assert_eq!(without_version(found.clone()), without_version(after), "{change:?} repeated");
        expected = found;
    }
    proxy.tasks.shutdown().await;
}

#[tokio::test]
async fn closed_idle_connection_is_not_a_failure() {
    let redis = Redis::own().await.unwrap();
    let clock = FakeClock::new();
    let fixture = Fixture { ledger: Arc::new(own(&redis, LONG_RETENTION, clock.clock()).await), clock };
    let mut connection = connect(&redis).await;
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
    for id in 0..5 {
        kill.query_async::<i64>(&mut connection).await.unwrap();
        let claim = Change::Claim { expected: None, new: first(id, fixture.clock.now()) };
        assert!(matches!(fixture.change(id.to_string(), claim).await, Changed::Done(_)));
        kill.query_async::<i64>(&mut connection).await.unwrap();
        assert!(fixture.get(id.to_string()).await.is_some());
    }
}

#[tokio::test]
async fn ledger_that_cannot_be_opened_says_why_without_the_password() {
    let redis = Redis::own().await.unwrap();
    let refused = async |url: &str| {
        let opened = open(url, &prefix("wolkvox.tasks"), LONG_RETENTION, Clock::system()).await;
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
    let mut set = redis::cmd("HSET");
    set.arg(format!("{newer}about")).arg("format").arg("2");
    set.query_async::<()>(&mut connection).await.unwrap();
    let error = open(&redis.url, &newer, LONG_RETENTION, Clock::system()).await.err().unwrap();
    assert!(error.to_string().contains("it has format \"2\""), "{error}");
}

#[tokio::test]
async fn configured_ledger_is_opened() {
    let redis = Redis::own().await.unwrap();
    for store in [config::LedgerStore::Memory, config::LedgerStore::Redis(SecretString::from(redis.url.clone()).into())]
    {
        let retention = LONG_RETENTION.retention;
        let config = config::Ledger { store, url_file: None, retention, max_entries: 10, queue: "tasks".to_owned() };
        let ledger = ledger::open(&config, Clock::system()).await.unwrap();
        assert_eq!(ledger.get(&key("a")).await.unwrap(), None);
    }
}
