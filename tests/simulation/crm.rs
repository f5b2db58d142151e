//! The CRM in memory. It creates tasks, enforces the limits of each token over all workers, and gives the answers of the
//! contract's table of outcomes as HTTP replies, which the worker classifies itself.

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

use crate::coverage::{Case, Met};
use crate::invariants::requests::Request;
use crate::schedule::{chance, random_fault};
use crate::script::{Draw, Fault, Nature, Script};
use crate::world::{Life, World};

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
        let mut dice = self.script.dice(Draw::Request, subject, *turn);
        let unlucky = !self.is_calm() && chance(&mut dice, self.script.setting.crm_faults);
        let outage = crm.outage();
        if let Some(fault @ (Fault::NotSent | Fault::Unavailable503)) = outage {
            return (self.faulty(fault, &mut dice), dice);
        }
        let day = (token, self.true_clock.now().to_zoned_datetime(TimeZone::UTC).date());
        let used = crm.used.entry(day).or_default();
        *used += 1;
        let met = |case| self.truth().met(Met::Case(case));
        if !self.is_calm() && self.script.setting.quota.is_some_and(|quota| *used > quota) {
            met(Case::QuotaUsedUp);
            return (verdict(403, "TOKEN LIMIT EXCEEDED"), dice);
        }
        if crm.revoked.get(&token).is_some_and(|until| *until > Instant::now()) {
            met(Case::TokenRevoked);
            return (verdict(403, "PLEASE VALIDATE TOKEN"), dice);
        }
        if crm.on_token.get(&token).is_some_and(|count| *count > SIMULTANEOUS) {
            met(Case::TooManyAtATime);
            return (verdict(403, "TOO MANY SIMULTANEOUS CONNECTIONS"), dice);
        }
        if let Some(fault) = outage.or_else(|| unlucky.then(|| random_fault(&mut dice))) {
            return (self.faulty(fault, &mut dice), dice);
        }
        let is_refused = crm.nature(subject) == Nature::Refused;
        (if is_refused { verdict(412, "BAD ID_RECORD") } else { created() }, dice)
    }

    fn faulty(&self, fault: Fault, dice: &mut Rng) -> Plan {
        self.truth().met(Met::Fault(fault));
        let not_created = |answer| Plan { creates: false, answer, hangs: false };
        let lost = |why: &str| HttpResult::NoAnswer(why.to_owned());
        let hint = dice.bool().then(|| dice.u32(0..400));
        if hint.is_some() && matches!(fault, Fault::Throttled429 | Fault::Unavailable503) {
            self.truth().met(Met::Case(Case::RetryAfter));
        }
        match fault {
            Fault::NotSent => not_created(HttpResult::NotSent("connection refused".to_owned())),
            Fault::Unavailable503 => not_created(with_hint(page(503), hint)),
            Fault::Code500 => verdict(500, "INTERNAL ERROR"),
            Fault::Silent => not_created(lost("reset")),
            Fault::SilentCreated => Plan { creates: true, ..not_created(lost("reset")) },
            Fault::Hangs => Plan { creates: dice.bool(), hangs: true, ..not_created(lost("timed out")) },
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
    let answer = HttpResult::Reply(Reply { status: code, retry_after: None, body });
    Plan { creates: false, answer, hangs: false }
}

fn page(status: u16) -> HttpResult {
    let body = format!("<html>{status}</html>").into_bytes();
    HttpResult::Reply(Reply { status, retry_after: None, body })
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
    pub(crate) life: Arc<Life>,
}

impl FakeCrm {
    async fn request(&self, token: usize, subject: usize) -> HttpResult {
        let (world, life) = (&self.world, &self.life);
        life.alive().await;
        let request = world.truth().sent(life.number, token, subject);
        *world.crm().on_token.entry(token).or_default() += 1;
        let (plan, mut dice) = world.plan(token, subject);
        let latency = Duration::from_millis(dice.u64(1..=world.script.setting.latency.as_millis() as u64));
        sleep(latency.mul_f64(dice.f64())).await;
        // A request of a dead worker can have arrived complete, or not.
        if plan.creates && (!life.is_dead() || dice.bool()) {
            world.truth().created(&request);
        }
        sleep(if plan.hangs { world.config.crm.request_timeout } else { latency }).await;
        if let Some(count) = world.crm().on_token.get_mut(&token) {
            *count -= 1;
        }
        self.answer(request, plan).await
    }

    async fn answer(&self, request: Request, plan: Plan) -> HttpResult {
        let (world, life) = (&self.world, &self.life);
        let nature = world.crm().nature(request.subject);
        if life.is_dead() {
            world.truth().answered(&request, None);
        } else if nature == Nature::Deadly {
            world.kill(life, Some(&request));
            world.truth().answered(&request, None);
        } else if nature == Nature::Panics {
            world.truth().answered(&request, None);
            world.truth().panicked(&request);
            let since = Instant::now();
            world.after(Duration::from_secs(1), move |world| world.truth().next_probe_went(&request, since));
            std::panic::panic_any(PANIC);
        } else if world.dies(life) {
            world.truth().met(Met::Case(Case::DeathBeforeRecord));
            world.truth().answered(&request, None);
        } else {
            let classified = classify(&plan.answer, Timestamp::UNIX_EPOCH);
            let hint = classified.retry_after.map(|hint| hint.min(world.config.retry.retry_after_max));
            let rest = self.rest(request.token, classified.outcome, hint);
            world.truth().answered(&request, Some((classified.outcome, hint)));
            if let Some(rest) = rest {
                world.truth().rests(&request, classified.outcome, rest);
            }
        }
        life.alive().await;
        plan.answer
    }

    /// How long the worker must not use the token.
    fn rest(&self, token: usize, outcome: Outcome, hint: Option<Duration>) -> Option<Duration> {
        let (world, config) = (&self.world, &self.world.config);
        match outcome {
            Outcome::Throttled => Some(hint.unwrap_or_default()),
            Outcome::QuotaExhausted => {
                let is_reported = world.reports_quota(token);
                let reset = if is_reported { RESTART } else { world.clocks[self.life.worker].until_midnight() };
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
            self.life.alive().await;
            sleep(Duration::from_millis(20)).await;
            self.life.alive().await;
            let outage = self.world.crm().outage();
            if let Some(fault @ (Fault::NotSent | Fault::Unavailable503)) = outage {
                let mut dice = Rng::with_seed(self.world.script.seed);
                return self.world.faulty(fault, &mut dice).answer;
            }
            let is_reported = self.world.reports_quota(token_number(token));
            let (code, hours) = if is_reported { (200, "0.25") } else { (412, "null") };
            let body = format!(r#"{{"code": "{code}", "msg": "", "data": {{"hours_to_restart": {hours}}}}}"#);
            HttpResult::Reply(Reply { status: code, retry_after: None, body: body.into_bytes() })
        }
        .boxed()
    }
}
