//! The CRM in memory: it makes tasks, counts requests on each token over all workers, and answers as the contract's table of
//! outcomes has it, in real replies, so that the worker classifies them itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep};
use wolkvox_task_worker::crm::Crm;
use wolkvox_task_worker::crm::classify::{HttpResult, Outcome, Reply};

use crate::coverage::{Case, Met};
use crate::invariants::Post;
use crate::schedule::{Fault, Game, Nature, chance, random_fault};
use crate::world::{Life, World};

/// Requests at a time that the CRM takes on a token.
const SIMULTANEOUS: usize = 2;
/// What tokenInformation.php tells a token that it knows of its reset, 0.25 hours.
const RESTART: Duration = Duration::from_secs(900);
/// The panic that a panicking letter causes.
pub(crate) const PANIC: &str = "simulated panic";

/// The CRM's state.
#[derive(Default)]
pub(crate) struct Office {
    on_token: BTreeMap<usize, usize>,
    used: BTreeMap<(usize, Date), u32>,
    posts: BTreeMap<usize, u64>,
    outage: Option<(Fault, Instant)>,
    revoked: BTreeMap<usize, Instant>,
}

/// What a request comes to.
struct Plan {
    makes: bool,
    outcome: Outcome,
    answer: HttpResult,
    hangs: bool,
}

impl World {
    fn office(&self) -> std::sync::MutexGuard<'_, Office> {
        self.office.lock().expect("no panic inside")
    }

    pub(crate) fn outage(&self, fault: Fault, lasts: Duration) {
        self.office().outage = Some((fault, Instant::now() + lasts));
    }

    pub(crate) fn revoke(&self, token: usize, lasts: Duration) {
        self.office().revoked.insert(token, Instant::now() + lasts);
    }

    /// Whether tokenInformation.php accepts a token that a strange 403 came for.
    fn vouches(&self, token: usize) -> bool {
        !(self.script.seed + token as u64).is_multiple_of(4)
    }

    fn plan(&self, token: usize, subject: usize) -> (Plan, Rng) {
        let mut office = self.office();
        let turn = office.posts.entry(subject).or_default();
        *turn += 1;
        let mut dice = self.script.dice(Game::Request, subject, *turn);
        let now = Instant::now();
        let unlucky = !self.is_calm() && chance(&mut dice, self.script.setting.crm_faults);
        let outage = office.outage.filter(|(_, until)| *until > now).map(|(fault, _)| fault);
        if let Some(fault @ (Fault::NotSent | Fault::Unavailable503)) = outage {
            return (self.faulty(fault, token, &mut dice), dice);
        }
        let day = (token, self.true_time().to_zoned_datetime(TimeZone::UTC).date());
        let used = office.used.entry(day).or_default();
        *used += 1;
        if !self.is_calm() && self.script.setting.quota.is_some_and(|quota| *used > quota) {
            self.book().met(Met::Case(Case::QuotaUsedUp));
            return (verdict(Outcome::QuotaExhausted, 403, "TOKEN LIMIT EXCEEDED"), dice);
        }
        if office.revoked.get(&token).is_some_and(|until| *until > now) {
            self.book().met(Met::Case(Case::TokenRevoked));
            return (verdict(Outcome::Unauthorized, 403, "PLEASE VALIDATE TOKEN"), dice);
        }
        if office.on_token.get(&token).is_some_and(|count| *count > SIMULTANEOUS) {
            self.book().met(Met::Case(Case::TooManyAtATime));
            return (verdict(Outcome::Throttled, 403, "TOO MANY SIMULTANEOUS CONNECTIONS"), dice);
        }
        let fault = outage.or_else(|| unlucky.then(|| random_fault(&mut dice)));
        if let Some(fault) = fault {
            return (self.faulty(fault, token, &mut dice), dice);
        }
        let refused = self.nature(subject) == Nature::Refused;
        let plan = if refused { verdict(Outcome::Rejected, 412, "BAD ID_RECORD") } else { made() };
        (plan, dice)
    }

    fn nature(&self, subject: usize) -> Nature {
        let letter = self.script.letters.iter().find(|letter| letter.subject == subject);
        letter.map_or(Nature::Good, |letter| letter.nature)
    }

    fn faulty(&self, fault: Fault, token: usize, dice: &mut Rng) -> Plan {
        let plan = |outcome, makes, answer| Plan { makes, outcome, answer, hangs: false };
        self.book().met(Met::Fault(fault));
        let lost = |why: &str| HttpResult::NoAnswer(why.to_owned());
        match fault {
            Fault::NotSent => plan(Outcome::Unavailable, false, HttpResult::NotSent("connection refused".to_owned())),
            Fault::Unavailable503 => plan(Outcome::Unavailable, false, page(503)),
            Fault::Code500 => verdict(Outcome::Unavailable, 500, "INTERNAL ERROR"),
            Fault::Silent => plan(Outcome::Unknown, false, lost("reset")),
            Fault::SilentCreated => plan(Outcome::Unknown, true, lost("reset")),
            Fault::Hangs => Plan { hangs: true, ..plan(Outcome::Unknown, dice.bool(), lost("timed out")) },
            Fault::Garbage => plan(Outcome::Unknown, false, page(200)),
            Fault::GarbageCreated => plan(Outcome::Unknown, true, page(200)),
            Fault::Throttled429 => {
                let hint = dice.bool().then(|| dice.u32(0..400));
                if hint.is_some() {
                    self.book().met(Met::Case(Case::RetryAfter));
                }
                throttled(hint)
            }
            Fault::Rejected412 => verdict(Outcome::Rejected, 412, "BAD ID_RECORD"),
            Fault::Strange403 => {
                let outcome = if self.vouches(token) { Outcome::Rejected } else { Outcome::Unauthorized };
                verdict(outcome, 403, "NOT ALLOWED")
            }
            Fault::NotFound => plan(Outcome::Misconfigured, false, page(404)),
            Fault::NoApi => verdict(Outcome::Misconfigured, 400, "THE API INSERT DOES NOT EXIST"),
            Fault::Redirect => plan(Outcome::Misconfigured, false, page(302)),
            Fault::Forbidden => plan(Outcome::Unavailable, false, page(403)),
        }
    }
}

fn made() -> Plan {
    verdict(Outcome::Created, 200, "CREATED")
}

fn verdict(outcome: Outcome, code: u16, words: &str) -> Plan {
    let body = format!(r#"{{"code": "{code}", "error": "null", "msg": "{words}", "data": null}}"#).into_bytes();
    let answer = HttpResult::Reply(Reply { status: code, retry_after: None, body });
    Plan { makes: outcome == Outcome::Created, outcome, answer, hangs: false }
}

fn page(status: u16) -> HttpResult {
    let body = format!("<html>{status}</html>").into_bytes();
    HttpResult::Reply(Reply { status, retry_after: None, body })
}

fn throttled(hint: Option<u32>) -> Plan {
    let mut plan = verdict(Outcome::Throttled, 429, "TOO MANY REQUESTS");
    if let HttpResult::Reply(reply) = &mut plan.answer {
        reply.retry_after = hint.map(|seconds| seconds.to_string());
    }
    plan
}

/// The CRM as one worker reaches it.
pub(crate) struct Line {
    pub(crate) world: Arc<World>,
    pub(crate) life: Arc<Life>,
}

impl Line {
    async fn post(&self, token: usize, subject: usize) -> HttpResult {
        let (world, life) = (&self.world, &self.life);
        life.still().await;
        let post = world.book().arrived(life.number, token, subject);
        *world.office().on_token.entry(token).or_default() += 1;
        let (plan, mut dice) = world.plan(token, subject);
        let latency = Duration::from_millis(dice.u64(1..=world.script.setting.latency.as_millis() as u64));
        sleep(latency.mul_f64(dice.f64())).await;
        // What a dead worker sent may have arrived whole, or not.
        if plan.makes && (!life.is_dead() || dice.bool()) {
            world.book().created(&post);
        }
        sleep(if plan.hangs { world.config.crm.request_timeout } else { latency }).await;
        if let Some(count) = world.office().on_token.get_mut(&token) {
            *count -= 1;
        }
        self.answer(post, plan).await
    }

    async fn answer(&self, post: Post, plan: Plan) -> HttpResult {
        let (world, life) = (&self.world, &self.life);
        let nature = world.nature(post.subject);
        if life.is_dead() {
            world.book().answered(&post, None);
        } else if nature == Nature::Deadly {
            world.kill(life, Some(&post));
            world.book().answered(&post, None);
        } else if nature == Nature::Panics {
            world.book().panicked(&post);
            world.book().answered(&post, None);
            std::panic::panic_any(PANIC);
        } else if world.dies(life) {
            world.book().met(Met::Case(Case::DeathBeforeRecord));
            world.book().answered(&post, None);
        } else {
            world.book().answered(&post, Some(plan.outcome));
            if let Some(rest) = self.rest(post.token, &plan) {
                world.book().rests(&post, plan.outcome, rest);
            }
        }
        life.still().await;
        plan.answer
    }

    /// For how long the worker is to leave the token alone.
    fn rest(&self, token: usize, plan: &Plan) -> Option<Duration> {
        let (world, config) = (&self.world, &self.world.config);
        match (plan.outcome, &plan.answer) {
            (Outcome::Throttled, HttpResult::Reply(reply)) => {
                let hint = reply.retry_after.as_ref()?.parse().ok()?;
                Some(Duration::from_secs(hint).min(config.retry.retry_after_max))
            }
            (Outcome::QuotaExhausted, _) => {
                let reset = if world.vouches(token) { RESTART } else { world.until_midnight() };
                Some(reset.min(config.gate.recheck))
            }
            (Outcome::Unauthorized, _) => Some(config.gate.recheck),
            _ => None,
        }
    }
}

fn token_number(token: &SecretString) -> usize {
    token.expose_secret().trim_start_matches("token-").parse().unwrap_or(usize::MAX)
}

impl Crm for Line {
    fn insert<'a>(&'a self, token: &'a SecretString, body: Bytes) -> BoxFuture<'a, HttpResult> {
        async move {
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let name = body.pointer("/fields/name").and_then(serde_json::Value::as_str).unwrap_or_default();
            let subject = name.trim_start_matches("subject ").parse().unwrap_or(usize::MAX);
            self.post(token_number(token), subject).await
        }
        .boxed()
    }

    fn token_information<'a>(&'a self, token: &'a SecretString) -> BoxFuture<'a, HttpResult> {
        async move {
            self.life.still().await;
            sleep(Duration::from_millis(20)).await;
            self.life.still().await;
            self.world.book().vouched(self.life.number);
            let (code, hours) = if self.world.vouches(token_number(token)) { (200, "0.25") } else { (403, "null") };
            let body = format!(r#"{{"code": "{code}", "msg": "", "data": {{"hours_to_restart": {hours}}}}}"#);
            HttpResult::Reply(Reply { status: code, retry_after: None, body: body.into_bytes() })
        }
        .boxed()
    }
}
