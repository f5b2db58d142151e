//! Runs episodes on several threads, and shortens the script of an episode that failed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, sleep, sleep_until};
use wolkvox_task_worker::broker::{HeaderValue, Headers, Message, Properties};
use wolkvox_task_worker::config::{Config, OnUnknown, Sources};
use wolkvox_task_worker::message::task::MAX_BODY;
use wolkvox_task_worker::retry::Schedule;

use crate::broker::NUMBER;
use crate::coverage::{Coverage, Situation};
use crate::schedule::generate;
use crate::script::{Action, Nature, PlannedMessage, Script};
use crate::world::World;

/// The work queue.
pub(crate) const QUEUE: &str = "wolkvox.tasks";
/// The CRM's operation.
pub(crate) const OPERATION: &str = "simulated";

/// The result of an episode.
pub(crate) struct EpisodeResult {
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) messages: u64,
    pub(crate) met: Coverage,
}

/// Runs one episode in simulated time.
pub(crate) fn episode(script: &Script) -> EpisodeResult {
    fastrand::seed(script.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(crate::reports::watched(play(script.clone())))
}

async fn play(script: Script) -> EpisodeResult {
    let messages = script.messages.len() as u64;
    let config = configuration(&script);
    let world = World::new(script, config);
    crate::reports::watch(&world);
    for worker in 0..world.script.setting.workers {
        world.start(worker);
    }
    let began = Instant::now();
    let publishing = world.tasks.spawn(publish(Arc::clone(&world), began));
    for event in world.script.events.clone() {
        sleep_until(began + event.at).await;
        carry_out(&world, event.action);
    }
    let _ = publishing.await;
    world.end_faults();
    let left_over = settle(&world).await;
    for worker in 0..world.script.setting.workers {
        world.stop(worker).await;
    }
    let mut checker = world.checker();
    if checker.violations.is_empty() {
        checker.end(&left_over);
    }
    let (violations, trace) = (std::mem::take(&mut checker.violations), std::mem::take(&mut checker.trace));
    EpisodeResult { violations, trace, messages, met: std::mem::take(&mut checker.met) }
}

async fn publish(world: Arc<World>, began: Instant) {
    let mut planned = world.script.messages.clone();
    planned.sort_by_key(|planned| planned.at);
    for planned in planned {
        sleep_until(began + planned.at).await;
        world.publish(planned.number, message(&world, &planned));
    }
}

fn carry_out(world: &Arc<World>, action: Action) {
    world.checker().met(Situation::Event(action.name()));
    match action {
        Action::Crash(worker) => world.crash(worker),
        Action::Restart(worker) => {
            let world = Arc::clone(world);
            let tasks = world.tasks.clone();
            tasks.spawn(async move {
                world.stop(worker).await;
                world.start(worker);
            });
        }
        Action::Cut { worker, client, broker } => world.cut(worker, client, broker),
        Action::Outage(fault, lasts) => world.outage(fault, lasts),
        Action::Revoked(token, lasts) => world.revoke(token, lasts),
        Action::Publishing(confirm, lasts) => world.start_publish_outage(confirm, lasts),
        Action::CutOff { worker, client, broker, ledger } => {
            world.stores.fail(Some(worker), false, ledger);
            // At this time messages wait for their claims.
            world.after(ledger / 4, move |world| world.cut(worker, client, broker));
        }
        Action::NoLedger { taken, lasts } => world.stores.fail(None, taken, lasts),
        Action::ClockStep { worker, seconds } => world.clocks[worker].step(seconds),
        Action::LedgerLost(worker) => world.stores.empty(worker),
        Action::Replay => world.replay(),
    }
}

/// Waits until every message is settled. Returns the messages that are not settled after the longest allowed time.
async fn settle(world: &Arc<World>) -> Vec<String> {
    /// Time for quotas, suspended tokens, held messages, and several messages that end workers, one after the other.
    const SLACK: Duration = Duration::from_secs(8 * 3_600);
    let config = &world.config;
    let worst = Schedule::from(&config.retry).worst_case(config.crm.request_timeout);
    let deadline = Instant::now() + worst + SLACK;
    let mut pause = Duration::from_secs(1);
    loop {
        let left_over = world.left_over();
        if left_over.is_empty() || Instant::now() > deadline || !world.checker().violations.is_empty() {
            return left_over;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

pub(crate) fn body(planned: &PlannedMessage) -> Vec<u8> {
    let subject = planned.subject;
    let whole = format!(
        r#"{{"name": "subject {subject}", "name_module": "cases", "completion_date": "2026-04-01 10:00:00", "id_record": "7", "wolkvox_owner": "ana"}}"#
    );
    match planned.nature {
        Nature::NoJson => format!("no json {subject}").into_bytes(),
        Nature::BadTask => whole.replace("completion_date", "completion_day").into_bytes(),
        Nature::TooLarge => vec![b' '; MAX_BODY + 1],
        Nature::Good | Nature::Refused | Nature::Deadly | Nature::Panics => whole.into_bytes(),
    }
}

fn message(world: &World, planned: &PlannedMessage) -> Message {
    let mut headers = Headers::default();
    headers.insert(NUMBER.into(), HeaderValue::LongLongInt(planned.number as i64));
    for elsewhere in ["CC", "BCC"] {
        headers.insert(elsewhere.into(), HeaderValue::LongString("elsewhere".into()));
    }
    if planned.replay {
        headers.insert("x-wtw-dead-letter".into(), HeaderValue::LongLongInt(1));
        let failed_at = format!("2026-03-01T00:00:00.{:03}Z", planned.number);
        headers.insert("x-wtw-failed-at".into(), HeaderValue::LongString(failed_at.into()));
    }
    if planned.attempts > 0 {
        headers.insert("x-wtw-attempts".into(), HeaderValue::LongLongInt(planned.attempts.into()));
    }
    let mut properties =
        Properties::default().with_headers(headers).with_expiration("86400000".into()).with_user_id("crm".into());
    if let Some(id) = &planned.id {
        properties = properties.with_message_id(id.as_str().into());
    }
    if let Some(before) = planned.dated {
        let now = world.true_clock.now().as_second() as u64;
        properties = properties.with_timestamp(now - before);
    }
    let (exchange, routing_key) = ("crm".to_owned(), "task.new".to_owned());
    Message { body: body(planned), properties, exchange, routing_key, ..Message::default() }
}

/// The configuration of a script's setting.
pub(crate) fn configuration(script: &Script) -> Config {
    let set = &script.setting;
    let given =
        [("WTW_CRM_SERVER", "http://127.0.0.1"), ("WTW_CRM_OPERATION", OPERATION), ("WTW_CRM_TOKENS", "token-0")];
    let environment = given.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let loaded = Config::load(&Sources { environment, ..Sources::default() }, &[]);
    let mut config = loaded.map_err(|problems| problems.to_string()).expect("a configuration").config;
    config.crm.tokens = (0..set.tokens).map(|token| SecretString::from(format!("token-{token}"))).collect();
    config.crm.max_in_flight_per_token = set.in_flight;
    config.crm.requests_per_second = set.requests_per_second;
    config.task.max_age = set.max_age;
    config.retry.immediate_attempts = set.immediate_attempts;
    config.retry.delays.clone_from(&set.delays);
    config.retry.retry_after_max = set.retry_after_max;
    config.retry.on_unknown = if set.strict { OnUnknown::DeadLetter } else { OnUnknown::Retry };
    config.gate.failures = set.failures;
    (config.gate.probe_initial, config.gate.probe_max) = set.probe;
    (config.gate.recheck, config.gate.hold) = (set.recheck, set.hold);
    config
}

/// The result of a campaign.
pub(crate) struct Campaign {
    pub(crate) messages: u64,
    pub(crate) episodes: u64,
    pub(crate) met: Coverage,
}

/// Runs episodes on `threads`, starting with `seed`, until `messages` are simulated or an episode fails.
pub(crate) fn campaign(seed: u64, messages: u64, threads: usize) -> Result<Campaign, String> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let met = Mutex::new(Coverage::default());
    let (stop, failed) = (AtomicBool::new(false), Mutex::new(None::<u64>));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && done.load(Ordering::Relaxed) < messages {
                    let seed = seed.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
                    let ended = episode(&generate(seed));
                    done.fetch_add(ended.messages, Ordering::Relaxed);
                    met.lock().expect("no panic inside").add(ended.met);
                    if !ended.violations.is_empty() {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = failed.lock().expect("no panic inside");
                        *failed = Some(failed.map_or(seed, |other| other.min(seed)));
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("no panic inside") {
        Some(seed) => Err(report(&generate(seed))),
        None => Ok(Campaign {
            messages: done.into_inner(),
            episodes: next.into_inner(),
            met: met.into_inner().expect("no panic inside"),
        }),
    }
}

/// The report of a failed episode, with the shortest script that still fails.
fn report(script: &Script) -> String {
    let short = shorten(script.clone());
    let ended = episode(&short);
    let (violations, trace) = (ended.violations.join("\n  "), ended.trace.join("\n  "));
    let (seed, count) = (script.seed, script.messages.len());
    let messages: Vec<String> = short.messages.iter().map(|planned| format!("  {planned:?}")).collect();
    let events: Vec<String> = short.events.iter().map(|event| format!("  {event:?}")).collect();
    format!(
        "seed {seed} fails. Run it again with: make sim MESSAGES=1 SEED={seed}\n{} of its {count} messages are enough, with {} of its {} events:\n  {:?}\n{}\n{}\nevents:\n  {trace}\nviolations:\n  {violations}",
        short.messages.len(),
        short.events.len(),
        script.events.len(),
        short.setting,
        messages.join("\n"),
        events.join("\n"),
    )
}

/// Removes faults, messages and events without which the episode still fails: first in large pieces, then in smaller ones.
fn shorten(mut script: Script) -> Script {
    const MAX_TRIES: usize = 600;
    // Bounded, so that the report comes soon also if each episode runs long.
    const LONGEST: Duration = Duration::from_secs(60);
    let (mut tries, began) = (0, Instant::now());
    let mut fails = |script: &Script| {
        tries += 1;
        tries <= MAX_TRIES && began.elapsed() < LONGEST && !episode(script).violations.is_empty()
    };
    let reductions: [fn(&mut Script); 5] = [
        |script| script.setting.crm_faults = 0,
        |script| script.setting.publish_faults = 0,
        |script| script.setting.ledger_faults = 0,
        |script| script.setting.crashes = 0,
        |script| script.setting.workers = 1,
    ];
    for reduce in reductions {
        let mut less = script.clone();
        reduce(&mut less);
        less.events.retain(|event| less.setting.workers == 2 || event.concerns_first());
        if fails(&less) {
            script = less;
        }
    }
    loop {
        let size = script.messages.len() + script.events.len();
        script.events = fewer(&script.events, |events| fails(&Script { events, ..script.clone() }));
        script.messages = fewer(&script.messages, |messages| fails(&Script { messages, ..script.clone() }));
        if script.messages.len() + script.events.len() == size {
            return script;
        }
    }
}

/// Removes items while `fails` is still true for the rest.
fn fewer<T: Clone>(items: &[T], mut fails: impl FnMut(Vec<T>) -> bool) -> Vec<T> {
    let mut items = items.to_vec();
    let mut piece = items.len();
    while piece > 0 {
        let mut from = 0;
        while from < items.len() {
            let mut less = items.clone();
            less.drain(from..(from + piece).min(items.len()));
            if fails(less.clone()) {
                items = less;
            } else {
                from += piece;
            }
        }
        piece /= 2;
    }
    items
}
