//! The worker at the limits of the CRM, beside a client without a broker.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use crate::contender::{Contender, Ledger};
use crate::measure::turns;
use crate::plan::Plan;
use crate::results::{Ceiling, Results, Series};
use crate::site::{Server, Site};

const FILE: Contender = Contender::Worker(Ledger::File);
/// How long the CRM takes for a request.
const LATENCIES_MS: [u32; 2] = [40, 150];

/// Measures the worker and a client without a broker with the product's sandbox, which enforces the CRM's limits.
pub async fn measure(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    let kinds = LATENCIES_MS.into_iter().flat_map(|latency_ms| [1, 2, 4, 8].map(|tokens| (latency_ms, tokens)));
    let unmeasured =
        |(latency_ms, tokens)| Ceiling { tokens, latency_ms, rate: Series::default(), direct: Series::default() };
    let mut ceilings: Vec<Ceiling> = kinds.map(unmeasured).collect();
    for round in 0..plan.rounds {
        for at in turns(round, &mut ceilings) {
            let (rate, direct) = ceiling(site, at, plan.ceiling_seconds, round % 2 == 1).await?;
            at.rate.0.push(rate);
            at.direct.0.push(direct);
            let (share, left) = (100.0 * rate / at.allowed(), plan.rounds - round - 1);
            eprintln!(
                "{} ms, {} tokens: {rate:.1} tasks/s, {share:.1} % of {:.0}; a client alone {direct:.1}   {left} to go",
                at.latency_ms,
                at.tokens,
                at.allowed()
            );
        }
    }
    results.ceilings.extend(ceilings);
    Ok(())
}

/// Tasks per second of the worker and of a client without a broker; `worker_first` is the order.
async fn ceiling(site: &Site, at: &Ceiling, seconds: f64, worker_first: bool) -> Result<(f64, f64), String> {
    let names: Vec<String> = (0..at.tokens).map(|number| format!("bench-{number}")).collect();
    let mut command = site.worker();
    command.args(["sandbox", "--listen", "127.0.0.1:0", "--operation", "bench"]);
    command.args(["--latency", &format!("{}ms", at.latency_ms), "--daily-limit", "100000000"]);
    command.args(names.iter().flat_map(|name| ["--token", name]));
    let (sandbox, said) = Server::start_talking(&command)?;
    let said: Value = serde_json::from_str(&said).map_err(|error| format!("the sandbox: {error}"))?;
    let address = said.get("listening").and_then(Value::as_str).ok_or("the sandbox did not print its address")?;
    let rates = if worker_first {
        let rate = limited(site, address, &names, seconds).await?;
        (rate, direct(site, address, &names, seconds).await?)
    } else {
        let direct = direct(site, address, &names, seconds).await?;
        (limited(site, address, &names, seconds).await?, direct)
    };
    sandbox.stop().await?;
    Ok(rates)
}

async fn limited(site: &Site, address: &str, tokens: &[String], seconds: f64) -> Result<f64, String> {
    let broker = site.broker.client().await?;
    broker.purge().await?;
    // Half as many again as the limits allow.
    broker.fill((tokens.len() as f64 * 50.0 * (seconds + 1.0) * 1.5) as usize).await?;
    let settings = [("WTW_CRM_SERVER", address.to_owned()), ("WTW_CRM_TOKENS", tokens.join(","))];
    let running = FILE.start_with(site, 2, &settings)?;
    let rate = created(site, address, 2 * tokens.len(), seconds).await?;
    running.stop().await?;
    broker.close().await;
    forget(site, address).await?;
    Ok(rate)
}

/// Runs two loops for each token, which send requests without a pause.
async fn direct(site: &Site, address: &str, tokens: &[String], seconds: f64) -> Result<f64, String> {
    const BODY: &str = r#"{"operation":"bench","module":"wolkvox_activities","type":"task","fields":{"status":"created",
        "name":"a","priority":"high","name_module":"cases","completion_date":"2030-03-01 10:00:00","remember":false,
        "reminder_date":"2030-03-01 10:00:00","description":"","id_record":"1","wolkvox_owner":"agent@example.com"}}"#;
    let post = format!("{address}{}", wolkvox_task_worker::crm::INSERT_PATH);
    let loops: Vec<_> = tokens
        .iter()
        .chain(tokens)
        .map(|token| {
            let request =
                site.client().post(&post).header("wolkvox-token", token).header("content-type", "application/json");
            tokio::spawn(async move {
                while let Some(request) = request.try_clone() {
                    let Ok(answer) = request.body(BODY).send().await else { break };
                    let _ = answer.bytes().await;
                }
            })
        })
        .collect();
    let rate = created(site, address, 2 * tokens.len(), seconds).await;
    loops.iter().for_each(tokio::task::JoinHandle::abort);
    forget(site, address).await?;
    rate
}

/// Tasks per second by the sandbox's list of tasks, without the first second. Slots that answer at the same time distort both
/// ends, so the average is taken over the times in which as many tasks are created as there are slots.
async fn created(site: &Site, address: &str, slots: usize, seconds: f64) -> Result<f64, String> {
    let failed = |error: reqwest::Error| format!("the sandbox: {error}");
    sleep(Duration::from_secs_f64(seconds + 1.0)).await;
    let tasks = site.client().get(format!("{address}/sandbox/tasks")).send().await.map_err(failed)?;
    let tasks: Vec<Value> = serde_json::from_str(&tasks.text().await.map_err(failed)?).map_err(|e| e.to_string())?;
    let at = |task: &Value| task.get("at")?.as_str()?.parse::<jiff::Timestamp>().ok().map(|at| at.as_microsecond());
    let moments: Vec<i64> = tasks.iter().filter_map(at).collect();
    let begin = moments.first().ok_or("the sandbox created no task")? + 1_000_000;
    let counted: Vec<i64> = moments.into_iter().filter(|at| *at >= begin).collect();
    let turns: Vec<i64> = counted.iter().zip(counted.iter().skip(slots)).map(|(one, next)| next - one).collect();
    if turns.is_empty() {
        return Err("the sandbox created too few tasks for a measurement; see target/bench/log".to_owned());
    }
    Ok(slots as f64 * turns.len() as f64 / (turns.iter().sum::<i64>().max(1) as f64 / 1e6))
}

/// Deletes the tasks of the sandbox.
async fn forget(site: &Site, address: &str) -> Result<(), String> {
    let forgotten = site.client().delete(format!("{address}/sandbox")).send().await;
    forgotten.map(drop).map_err(|error| format!("the sandbox: {error}"))
}
