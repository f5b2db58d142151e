//! Tests of the prefetch, of progress and forecast, and of a stop while the ledger is being opened.

use tokio::time::Instant;

use super::*;
use crate::broker::depths::Depths;
use crate::config::Sources;

#[test]
fn prefetch_keeps_slots_busy_and_fits_the_pods_memory() {
    // The numbers of docs/sizing.md in KiB: the pod's limit, the worker itself, and a largest message with its request.
    const FREE: usize = (512 - 60) << 10;
    const MESSAGE: usize = 512;
    let crm = configured("memory:").crm;
    let prefetch = |slots, rate, hold| {
        let crm = config::Crm { requests_per_second: rate, ..crm.clone() };
        usize::from(prefetch(slots, &crm, Duration::from_secs(hold)))
    };
    for slots in 1..=MAX_PREFETCH {
        let prefetch = prefetch(slots, None, 600);
        assert!(prefetch > slots || prefetch == MAX_PREFETCH, "{slots} slots: {prefetch}");
        assert!(prefetch <= 24 * slots, "{slots} slots: {prefetch}");
        assert!(prefetch * MESSAGE <= FREE || slots > 450, "{slots} slots: {prefetch}");
    }
    assert_eq!(prefetch(2, None, 600), 48);
    assert_eq!(prefetch(MAX_PREFETCH + 1, None, 600), MAX_PREFETCH);
    // One request every ten seconds: otherwise the last message would be sent long after it must be held.
    assert_eq!([0.001, 0.1, 1.0, 100.0].map(|rate| prefetch(64, Some(rate), 600)), [1, 30, 300, 512]);
    // Requests that take 20 s each: 41 of them are open at two a second.
    assert_eq!([2.0, 100.0].map(|rate| prefetch(64, Some(rate), 10)), [41, 500]);
}

fn configured(ledger: &str) -> Config {
    let given = [
        ("WTW_CRM_SERVER", "crm.test"),
        ("WTW_CRM_OPERATION", "demo"),
        ("WTW_CRM_TOKENS", "a"),
        ("WTW_LEDGER_URL", ledger),
    ];
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config
}

fn status(config: &Config) -> Arc<Status> {
    let gate = Gate::new(&config.gate, &config.crm, Duration::ZERO, Clock::system(), Box::new(|_, _| {}));
    Arc::new(Status::new(
        Arc::new(Telemetry::new("/", "wolkvox.tasks", jiff::Timestamp::UNIX_EPOCH)),
        gate,
        Arc::new(Mapper::new(config).unwrap()),
        config.ledger.store.as_str(),
    ))
}

#[tokio::test(start_paused = true)]
async fn process_is_not_alive_after_30_seconds_without_progress() {
    let status = status(&configured("memory:"));
    for (passes, is_alive) in [(29, true), (2, false)] {
        sleep(Duration::from_secs(passes)).await;
        assert_eq!(status.is_alive(), is_alive);
    }
    TaskTracker::new().spawn(Arc::clone(&status).beat());
    sleep(Duration::from_secs(60)).await;
    assert!(status.is_alive(), "the runtime makes progress");
}

#[tokio::test(start_paused = true)]
async fn forecast_is_empty_when_the_connection_to_the_broker_is_lost() {
    let config = configured("memory:");
    let status = status(&config);
    status.connection(&ConnectionChange::Lost("connection refused".to_owned()));
    status.measure(Some(Depths::from([("wolkvox.tasks".to_owned(), 3)])));
    assert_eq!(status.forecast().backlog, None, "the last count is old");
}

#[tokio::test(start_paused = true)]
async fn worker_that_cannot_compare_the_owners_of_its_queue_says_so() {
    let status = status(&configured("memory:"));
    let uncompared = ConnectionChange::Uncompared(Some("ACCESS_REFUSED".to_owned()));
    let connected = ConnectionChange::Connected { node: "amqp://b".to_owned(), others: 0 };
    status.ledger(None);
    status.connection(&connected);
    status.connection(&uncompared);
    let said = "no message is processed, because the owner of the queue cannot be compared: ACCESS_REFUSED";
    assert_eq!(status.unready().as_deref(), Some(said));
    status.connection(&ConnectionChange::Uncompared(None));
    assert_eq!(status.unready(), None);
    status.connection(&uncompared);
    status.connection(&ConnectionChange::Lost("connection refused".to_owned()));
    status.connection(&connected);
    assert_eq!(status.unready(), None, "it is not known on a new connection");
}

#[tokio::test(start_paused = true)]
async fn app_stops_while_the_ledger_is_being_opened() {
    // Takes connections and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/0", mute.local_addr().unwrap());
    let config = configured(&url);
    let status = status(&config);
    let (stop, began) = (CancellationToken::new(), Instant::now());
    let stopping = async {
        sleep(Duration::from_secs(1)).await;
        stop.cancel();
    };
    let (opened, ()) = tokio::join!(open_ledger(&config, &status, &stop), stopping);
    assert!(opened.is_none());
    assert_eq!(began.elapsed(), Duration::from_secs(1));
}
