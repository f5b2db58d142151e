//! A fake CRM in memory. It creates tasks and enforces the limits of each token over all workers. It answers with the HTTP
//! replies of the contract's table of outcomes, and the worker's own code classifies them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::crm::Crm;
use wolkvox_task_worker::crm::classify::{HttpResult, Outcome, Reply, classify};

use crate::coverage::{Case, Situation};
use crate::invariants::requests::Request;
use crate::schedule::{chance, random_fault};
use crate::script::{Action, Draw, Fault, Nature, Script};
use crate::world::{WorkerProcess, World};

/// The simultaneous requests that the CRM accepts on a token.
const SIMULTANEOUS: usize = 2;
/// The time to the quota's reset that tokenInformation.php reports: 0.25 hours.
const RESTART: Duration = Duration::from_secs(900);
/// The text of the panic that a message of [`Nature::Panics`] causes.
pub(crate) const PANIC: &str = "simulated panic";

/// The CRM's state.
#[derive(Default)]
pub(crate) struct CrmState {
    on_token: BTreeMap<usize, usize>,
    used: BTreeMap<(usize, Date), u32>,
    requests: BTreeMap<usize, u64>,
    natures: BTreeMap<usize, Nature>,
    outage: Option<(Fault, Instant)>,
    revoked: BTreeMap<usize, Instant>,
}

impl CrmState {
    pub(crate) fn new(script: &Script) -> Self {
        let natures = script.messages.iter().map(|message| (message.subject, message.nature)).collect();
        Self { natures, ..Self::default() }
    }

    fn nature(&self, subject: usize) -> Nature {
        self.natures.get(&subject).copied().unwrap_or(Nature::Good)
    }

    fn outage(&self) -> Option<Fault> {
        self.outage.filter(|(_, until)| *until > Instant::now()).map(|(fault, _)| fault)
    }
}

/// How a request ends.
struct Plan {
    creates: bool,
    answer: HttpResult,
    hangs: bool,
}

impl World {
    fn crm(&self) -> std::sync::MutexGuard<'_, CrmState> {
        self.crm.lock().expect("no panic inside")
    }

    pub(crate) fn outage(&self, fault: Fault, lasts: Duration) {
        self.crm().outage = Some((fault, Instant::now() + lasts));
    }

    pub(crate) fn revoke(&self, token: usize, lasts: Duration) {
        self.crm().revoked.insert(token, Instant::now() + lasts);
    }

    /// Whether tokenInformation.php reports this token's quota.
    fn reports_quota(&self, token: usize) -> bool {
        !(self.script.seed + token as u64).is_multiple_of(4)
    }

    fn plan(&self, token: usize, subject: usize) -> (Plan, Rng) {
        let mut crm = self.crm();
        let turn = crm.requests.entry(subject).or_default();
        *turn += 1;
        let mut rng = self.script.rng(Draw::Request, subject, *turn);
        let unlucky = !self.is_fault_free() && chance(&mut rng, self.script.setting.crm_faults);
        let outage = crm.outage();
        if let Some(fault @ (Fault::NotSent | Fault::Unavailable503)) = outage {
            return (self.faulty(fault, &mut rng), rng);
        }
        let day = (token, self.true_clock.now().to_zoned_datetime(TimeZone::UTC).date());
        let used = crm.used.entry(day).or_default();
        *used += 1;
        let met = |case| self.checker().met(Situation::Case(case));
        if !self.is_fault_free() && self.script.setting.quota.is_some_and(|quota| *used > quota) {
            met(Case::QuotaUsedUp);
            return (verdict(403, "TOKEN LIMIT EXCEEDED"), rng);
        }
        if crm.revoked.get(&token).is_some_and(|until| *until > Instant::now()) {
            met(Case::TokenRevoked);
            return (verdict(403, "PLEASE VALIDATE TOKEN"), rng);
        }
        if crm.on_token.get(&token).is_some_and(|count| *count > SIMULTANEOUS) {
            met(Case::TooManyAtATime);
            return (verdict(403, "TOO MANY SIMULTANEOUS CONNECTIONS"), rng);
        }
        if let Some(fault) = outage.or_else(|| unlucky.then(|| random_fault(&mut rng))) {
            return (self.faulty(fault, &mut rng), rng);
        }
        let is_refused = crm.nature(subject) == Nature::Refused;
        (if is_refused { verdict(412, "BAD ID_RECORD") } else { created() }, rng)
    }

    fn faulty(&self, fault: Fault, rng: &mut Rng) -> Plan {
        self.checker().met(Situation::Fault(fault));
        let not_created = |answer| Plan { creates: false, answer, hangs: false };
        let lost = |why: &str| HttpResult::NoAnswer(why.to_owned());
        let hint = rng.bool().then(|| rng.u32(0..400));
        if hint.is_some() && matches!(fault, Fault::Throttled429 | Fault::Unavailable503) {
            self.checker().met(Situation::Case(Case::RetryAfter));
        }
        match fault {
            Fault::NotSent => not_created(HttpResult::NotSent("connection refused".to_owned())),
            Fault::Unavailable503 => not_created(with_hint(page(503), hint)),
            Fault::Code500 => verdict(500, "INTERNAL ERROR"),
            Fault::Silent => not_created(lost("reset")),
            Fault::SilentCreated => Plan { creates: true, ..not_created(lost("reset")) },
            Fault::Hangs => Plan { creates: rng.bool(), hangs: true, ..not_created(lost("timed out")) },
            Fault::Garbage => not_created(page(200)),
            Fault::GarbageCreated => Plan { creates: true, ..not_created(page(200)) },
            Fault::Throttled429 => {
                let plan = verdict(429, "TOO MANY REQUESTS");
                Plan { answer: with_hint(plan.answer, hint), ..plan }
            }
            Fault::Rejected412 => verdict(412, "BAD ID_RECORD"),
            Fault::Strange403 => verdict(403, "NOT ALLOWED"),
            Fault::NotFound => not_created(page(404)),
            Fault::NoApi => verdict(400, "THE API INSERT DOES NOT EXIST"),
            Fault::Redirect => not_created(page(302)),
            Fault::Forbidden => not_created(page(403)),
        }
    }
}

fn created() -> Plan {
    Plan { creates: true, ..verdict(200, "CREATED") }
}

fn verdict(code: u16, words: &str) -> Plan {
    let body = format!(r#"{{"code": "{code}", "error": "null", "msg": "{words}", "data": null}}"#).into_bytes();
    let answer = HttpResult::Reply(Reply { status: code, retry_after: None, is_cut: false, body });
    Plan { creates: false, answer, hangs: false }
}

fn page(status: u16) -> HttpResult {
    let body = format!("<html>{status}</html>").into_bytes();
    HttpResult::Reply(Reply { status, retry_after: None, is_cut: false, body })
}

fn with_hint(mut answer: HttpResult, hint: Option<u32>) -> HttpResult {
    if let HttpResult::Reply(reply) = &mut answer {
        reply.retry_after = hint.map(|seconds| seconds.to_string());
    }
    answer
}

/// The CRM as one worker reaches it.
pub(crate) struct FakeCrm {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<WorkerProcess>,
}

impl FakeCrm {
    async fn request(&self, token: usize, subject: usize) -> HttpResult {
        let (world, process) = (&self.world, &self.process);
        process.hang_if_dead().await;
        let request = world.checker().sent(process.number, token, subject);
        *world.crm().on_token.entry(token).or_default() += 1;
        let (plan, mut rng) = world.plan(token, subject);
        let latency = Duration::from_millis(rng.u64(1..=world.script.setting.latency.as_millis() as u64));
        sleep(latency.mul_f64(rng.f64())).await;
        // A request of a dead worker can have arrived complete, or not.
        if plan.creates && (!process.is_dead() || rng.bool()) {
            world.checker().created(&request);
        }
        sleep(if plan.hangs { world.config.crm.request_timeout } else { latency }).await;
        if let Some(count) = world.crm().on_token.get_mut(&token) {
            *count -= 1;
        }
        self.answer(request, plan).await
    }

    async fn answer(&self, request: Request, plan: Plan) -> HttpResult {
        let (world, process) = (&self.world, &self.process);
        let nature = world.crm().nature(request.subject);
        if process.is_dead() {
            world.checker().answered(&request, None);
        } else if nature == Nature::Deadly {
            world.kill(process, Some(&request));
            world.checker().answered(&request, None);
        } else if nature == Nature::Panics {
            world.checker().answered(&request, None);
            world.checker().panicked(&request);
            let since = Instant::now();
            world.after(Duration::from_secs(1), move |world| {
                // While nothing can be published, and until it is tried again, a message can wait for its copy instead of the gate.
                if !world.was_publishing_blocked() {
                    world.checker().check_next_probe(&request, since);
                }
            });
            std::panic::panic_any(PANIC);
        } else if world.crashes_here(process) {
            world.checker().met(Situation::Case(Case::DeathBeforeRecord));
            world.checker().answered(&request, None);
        } else {
            let classified = classify(&plan.answer, Timestamp::UNIX_EPOCH);
            let hint = classified.retry_after.map(|hint| hint.min(world.config.retry.retry_after_max));
            let rest = self.rest(request.token, classified.outcome, hint);
            world.checker().answered(&request, Some((classified.outcome, hint)));
            if let Some(rest) = rest {
                world.checker().rests(&request, classified.outcome, rest);
            }
        }
        process.hang_if_dead().await;
        plan.answer
    }

    /// How long the worker must not use the token.
    fn rest(&self, token: usize, outcome: Outcome, hint: Option<Duration>) -> Option<Duration> {
        let (world, config) = (&self.world, &self.world.config);
        match outcome {
            Outcome::Throttled => Some(hint.unwrap_or_default()),
            Outcome::QuotaExhausted => {
                let is_reported = world.reports_quota(token);
                // The worker keeps the midnight that it has computed before its clock was set.
                let is_clock_set =
                    world.script.events.iter().any(|event| matches!(event.action, Action::ClockStep { .. }));
                let reset = match (is_reported, is_clock_set) {
                    (true, _) => RESTART,
                    (false, true) => Duration::ZERO,
                    (false, false) => world.clocks[self.process.worker].until_midnight(),
                };
                Some(reset.min(config.gate.recheck))
            }
            Outcome::Unauthorized => Some(config.gate.recheck),
            Outcome::Created | Outcome::Rejected | Outcome::Misconfigured | Outcome::Unavailable | Outcome::Unknown => {
                None
            }
        }
    }
}

fn token_number(token: &SecretString) -> usize {
    token.expose_secret().trim_start_matches("token-").parse().unwrap_or(usize::MAX)
}

impl Crm for FakeCrm {
    fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult> {
        async move {
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let name = body.pointer("/fields/name").and_then(serde_json::Value::as_str).unwrap_or_default();
            let subject = name.trim_start_matches("subject ").parse().unwrap_or(usize::MAX);
            self.request(token_number(token), subject).await
        }
        .boxed()
    }

    fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult> {
        async move {
            self.process.hang_if_dead().await;
            self.world.checker().token_asked(self.process.number);
            sleep(Duration::from_millis(20)).await;
            self.process.hang_if_dead().await;
            let outage = self.world.crm().outage();
            if let Some(fault @ (Fault::NotSent | Fault::Unavailable503)) = outage {
                let mut rng = Rng::with_seed(self.world.script.seed);
                return self.world.faulty(fault, &mut rng).answer;
            }
            let is_reported = self.world.reports_quota(token_number(token));
            let (code, hours) = if is_reported { (200, "0.25") } else { (412, "null") };
            let body = format!(r#"{{"code": "{code}", "msg": "", "data": {{"hours_to_restart": {hours}}}}}"#);
            HttpResult::Reply(Reply { status: code, retry_after: None, is_cut: false, body: body.into_bytes() })
        }
        .boxed()
    }
}
