//! *Now*: whether the worker works, and if not, why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Shell, show};
use crate::broker::connect::BrokerError;
use crate::broker::depths;
use crate::console::App;
use crate::console::chart::{MINUTES, bars};
use crate::console::safety::Visitor;
use crate::console::times::When;
use crate::count::{counted, grouped};
use crate::dead_letters::Queues;
use crate::observe::events::{MAX_RECENT, RecentMessage};
use crate::observe::overview::{Overview, QueueWorker};
use crate::observe::status::{Minute, Page as StatusPage, TokenStatus};
use crate::observe::workers::Workers;

/// How long one answer of the workers is reused for all viewers.
const MAX_ANSWER_AGE: Duration = Duration::from_secs(2);
/// Seconds until the page is loaded again.
const REFRESH_SECONDS: u32 = 5;

/// The last answers, for all viewers.
#[derive(Default)]
pub(crate) struct Shared(Mutex<Option<(Instant, Arc<Overview>)>>);

impl App {
    /// Asks the workers and counts the queues.
    pub(crate) async fn overview(&self) -> Arc<Overview> {
        let mut shared = self.shared.0.lock().await;
        if let Some((at, overview)) = shared.as_ref()
            && at.elapsed() < MAX_ANSWER_AGE
        {
            return Arc::clone(overview);
        }
        let workers = Workers::new(self.config.console.workers.clone());
        let names = Queues::counted(&self.config);
        let (answers, depths) = tokio::join!(workers.status(), depths::count(&self.dead_letters.connector, &names));
        let queues = &self.dead_letters.queues;
        let dead = [queues.dead.as_str(), &queues.broker];
        let overview = Arc::new(Overview::new(&queues.work, &dead, answers, depths));
        *shared = Some((Instant::now(), Arc::clone(&overview)));
        overview
    }
}

#[derive(Template)]
#[template(path = "now.html")]
struct Page {
    shell: Shell,
    sentence: String,
    works: bool,
    forecast: Vec<String>,
    workers: Vec<Worker>,
    tokens: Vec<TokenRow>,
    queues: Vec<(String, String)>,
    queue_problem: Option<String>,
    /// None when they cannot be counted.
    dead: Option<u64>,
    /// Somebody reads them now, so not all are counted.
    dead_is_read: bool,
    kinds: Vec<(String, String)>,
    /// A caption and a chart.
    charts: Vec<(String, String)>,
    recent: Vec<RecentRow>,
}

struct Worker {
    address: String,
    name: String,
    role: &'static str,
    state: String,
    is_good: bool,
    is_open: bool,
    gate: String,
    gate_since: Option<When>,
    failure: Option<String>,
    next_probe: Option<When>,
    ledger: String,
}

struct TokenRow {
    name: String,
    state: String,
    until: Option<When>,
    left: String,
    is_good: bool,
}

struct RecentRow {
    at: When,
    id: String,
    outcome: String,
    reason: String,
    is_good: bool,
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    RawQuery(query): RawQuery,
) -> Response {
    let overview = app.overview().await;
    let now = app.now();
    let zone = app.config.crm.timezone.clone();
    let shell =
        Shell::new(&app, &visitor, "Now", "now").refreshing(REFRESH_SECONDS, "", query.as_deref().unwrap_or_default());
    let shell = Shell { read_at: Some(When::new(now, now, &zone)), ..shell };
    let reports = add_up(&active_pages(&overview.workers));
    let sees = shell.sees_bodies;
    let page = Page {
        sentence: overview.sentence.clone(),
        works: overview.works,
        forecast: overview.forecast(now, &zone),
        workers: overview.workers.iter().map(|member| worker(&app, member, sees)).collect(),
        tokens: reports.tokens.iter().map(|(worker, state)| token(&app, worker.as_deref(), state)).collect(),
        queues: overview
            .depths
            .as_ref()
            .map(|depths| depths.iter().map(|(name, count)| (name.clone(), grouped(*count))).collect())
            .unwrap_or_default(),
        queue_problem: overview.depths.as_ref().err().map(BrokerError::with_advice),
        dead: overview.dead_letters(),
        dead_is_read: overview.dead_letters_are_read(),
        kinds: reports.kinds.iter().map(|(kind, count)| ((*kind).to_owned(), grouped(*count))).collect(),
        charts: reports
            .minutes
            .as_deref()
            .map_or_else(Vec::new, |minutes| charts(minutes, overview.backlog(now, &zone))),
        recent: reports.recent.iter().map(|settled| recent(&app, settled, sees)).collect(),
        shell,
    };
    show(&page)
}

/// The sum of what the workers report.
#[derive(Debug, Default)]
struct Reports<'a> {
    /// The tokens. Each has the name of its worker if there are several, and its address if workers share a name.
    tokens: Vec<(Option<String>, &'a TokenStatus)>,
    /// Dead letters since the start of the workers, by kind.
    kinds: BTreeMap<&'a str, u64>,
    /// The last hour; none without a worker.
    minutes: Option<Vec<Minute>>,
    /// The last settled messages, the newest first.
    recent: Vec<&'a RecentMessage>,
}

/// The addresses and status pages of the active workers. If no worker is known to be active, the first page, which can be a
/// standby's.
fn active_pages(workers: &[QueueWorker]) -> Vec<(&str, &StatusPage)> {
    let pages = || {
        workers
            .iter()
            .filter_map(|QueueWorker { answer, .. }| Some((answer.address.as_str(), answer.page.as_ref().ok()?)))
    };
    let active: Vec<(&str, &StatusPage)> = pages().filter(|(_, page)| page.role == "active").collect();
    if active.is_empty() { pages().take(1).collect() } else { active }
}

/// Adds up what the workers report.
fn add_up<'a>(pages: &[(&str, &'a StatusPage)]) -> Reports<'a> {
    let (mut reports, mut minutes) = (Reports::default(), BTreeMap::<Option<Timestamp>, Minute>::new());
    for (address, page) in pages {
        // Workers on one host have the same name.
        let name = match pages.iter().filter(|(_, other)| other.worker == page.worker).count() {
            _ if pages.len() == 1 => None,
            1 => Some(page.worker.clone()),
            _ => Some(format!("{} at {address}", page.worker)),
        };
        reports.tokens.extend(page.tokens.iter().map(|token| (name.clone(), token)));
        for (kind, count) in page.messages.dead_lettered.iter().filter(|(_, count)| **count > 0) {
            *reports.kinds.entry(kind).or_default() += count;
        }
        for minute in &page.last_hour {
            let sum = minutes.entry(minute.at).or_insert_with(|| Minute { at: minute.at, ..Minute::default() });
            sum.created += minute.created;
            sum.dead_lettered += minute.dead_lettered;
            // Each worker counts the same queues.
            sum.backlog = sum.backlog.max(minute.backlog);
        }
        reports.recent.extend(&page.recent);
    }
    // The last hour of one worker can begin a minute before that of another.
    let too_many = minutes.len().saturating_sub(MINUTES);
    reports.minutes = (!pages.is_empty()).then(|| minutes.into_values().skip(too_many).collect());
    reports.recent.sort_by(|a, b| b.at.cmp(&a.at));
    reports.recent.truncate(MAX_RECENT);
    reports
}

/// `sees`: whether the visitor may see the words of the CRM.
fn worker(app: &App, QueueWorker { answer, role }: &QueueWorker, sees: bool) -> Worker {
    let (now, zone, role) = (app.now(), &app.config.crm.timezone, *role);
    let page = match &answer.page {
        Ok(page) => page,
        Err(no_page) => {
            return Worker {
                address: answer.address.clone(),
                name: "–".to_owned(),
                role,
                state: no_page.why.clone(),
                is_good: false,
                is_open: false,
                gate: "–".to_owned(),
                gate_since: None,
                failure: None,
                next_probe: None,
                ledger: "–".to_owned(),
            };
        }
    };
    let gate = match (page.gate.open, &page.gate.reason) {
        (true, _) => "open".to_owned(),
        (false, reason) => format!("closed: {}", reason.as_deref().unwrap_or_default()),
    };
    let ledger = page.ledger.reason.clone().unwrap_or_else(|| "usable".to_owned());
    Worker {
        address: answer.address.clone(),
        name: page.worker.clone(),
        role,
        state: page.reason.clone().unwrap_or_else(|| "ready".to_owned()),
        is_good: page.ready,
        is_open: page.gate.open,
        gate,
        gate_since: Some(When::parse(&page.gate.since, now, zone)),
        failure: page.gate.last_failure.clone().filter(|_| sees && !page.gate.open),
        next_probe: page.gate.next_probe_at.as_ref().map(|at| When::parse(at, now, zone).of_probe(now)),
        ledger: format!("{}, {}, {ledger}", page.ledger.kind, counted(page.ledger.entries.unsigned_abs(), "message")),
    }
}

fn token(app: &App, worker: Option<&str>, token: &TokenStatus) -> TokenRow {
    let (now, zone) = (app.now(), &app.config.crm.timezone);
    let left = match (token.quota_left, token.quota_limit) {
        (Some(left), Some(limit)) => format!("{} of {}", grouped(left), counted(limit, "call")),
        (Some(left), None) => counted(left, "call"),
        (None, _) => "not known yet".to_owned(),
    };
    TokenRow {
        name: worker.map_or_else(|| token.token.to_string(), |worker| format!("{} of {worker}", token.token)),
        state: match &token.suspended {
            Some(why) => format!("suspended: {why}"),
            None => format!("{} of {} slots in use", token.in_use, token.slots),
        },
        until: token.until.as_ref().map(|at| When::parse(at, now, zone)),
        left,
        is_good: token.suspended.is_none(),
    }
}

fn charts(minutes: &[Minute], backlog: Option<u64>) -> Vec<(String, String)> {
    let of = |value: fn(&Minute) -> Option<u64>| minutes.iter().map(value).collect::<Vec<_>>();
    let sum = |value: fn(&Minute) -> Option<u64>| grouped(of(value).into_iter().flatten().sum());
    let created: fn(&Minute) -> Option<u64> = |minute| Some(minute.created);
    let failed: fn(&Minute) -> Option<u64> = |minute| Some(minute.dead_lettered);
    let waiting: fn(&Minute) -> Option<u64> = |minute| minute.backlog;
    let now = backlog.map_or_else(|| "not known yet".to_owned(), grouped);
    vec![
        (format!("Created in the last hour: {}", sum(created)), bars("Tasks created", "good", &of(created))),
        (format!("Failed in the last hour: {}", sum(failed)), bars("Messages dead-lettered", "bad", &of(failed))),
        (format!("Waiting: {now}"), bars("Messages waiting", "flat", &of(waiting))),
    ]
}

fn recent(app: &App, recent: &RecentMessage, sees: bool) -> RecentRow {
    RecentRow {
        at: When::parse(&recent.at, app.now(), &app.config.crm.timezone),
        id: recent.message_id.clone().unwrap_or_default(),
        outcome: match &recent.kind {
            Some(kind) => format!("dead letter: {kind}"),
            None => recent.outcome.replace('_', " "),
        },
        reason: if sees { recent.reason.clone().unwrap_or_default() } else { String::new() },
        is_good: matches!(recent.outcome.as_str(), "created" | "already_created" | "skipped"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(worker: &str, created: u64, settled: &[(&str, &str)]) -> StatusPage {
        let recent: Vec<_> = settled.iter().map(|(at, id)| json!({ "at": at, "message_id": id })).collect();
        let page = json!({
            "worker": worker,
            "role": "active",
            "tokens": [{ "token": 1 }],
            "messages": { "dead_lettered": { "rejected": created, "expired": 0 } },
            "last_hour": [{ "at": "2026-03-01T10:00:00Z", "created": created, "dead_lettered": 1, "backlog": created * 10 }],
            "recent": recent,
        });
        serde_json::from_value(page).unwrap()
    }

    #[test]
    fn several_active_workers_are_added_up() {
        let first = page("a", 2, &[("2026-03-01T10:00:03.000Z", "m-3"), ("2026-03-01T10:00:01.000Z", "m-1")]);
        let second = page("b", 3, &[("2026-03-01T10:00:02.000Z", "m-2")]);
        let both = add_up(&[("host:1", &first), ("host:2", &second)]);
        let tokens: Vec<_> = both.tokens.iter().map(|(worker, token)| (worker.as_deref(), token.token)).collect();
        assert_eq!(tokens, [(Some("a"), 1), (Some("b"), 1)]);
        assert_eq!(both.kinds, BTreeMap::from([("rejected", 5)]));
        let minutes = both.minutes.unwrap();
        let counts: Vec<_> = minutes.iter().map(|m| (m.created, m.dead_lettered, m.backlog)).collect();
        assert_eq!(counts, [(5, 2, Some(30))]);
        let ids: Vec<_> = both.recent.iter().filter_map(|recent| recent.message_id.as_deref()).collect();
        assert_eq!(ids, ["m-3", "m-2", "m-1"]);
        assert_eq!(add_up(&[("host:1", &first)]).tokens.first().unwrap().0, None, "one worker is not named");
        let same = add_up(&[("host:1", &first), ("host:2", &first)]);
        let names: Vec<_> = same.tokens.iter().filter_map(|(worker, _)| worker.as_deref()).collect();
        assert_eq!(names, ["a at host:1", "a at host:2"]);
        assert!(add_up(&[]).minutes.is_none());
    }
}
