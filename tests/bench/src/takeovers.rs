//! How soon a standby takes over from the active worker, with a ledger that both share.

use std::time::Duration;

use tokio::time::sleep;

use crate::broker::{STANDBY_QUEUE, free_port};
use crate::clock;
use crate::contender::{Contender, Ledger, Running};
use crate::plan::Plan;
use crate::proxy::Proxy;
use crate::results::{Loss, Results, Series, Takeover};
use crate::site::Site;

const SHARED: Contender = Contender::Worker(Ledger::Redis);
/// The rate limit of both workers in requests a second, so that messages are left during the whole run.
const PACE: usize = 100;

/// Loses the active worker in each way, one after the other.
pub async fn measure(site: &Site, plan: &Plan, results: &mut Results) -> Result<(), String> {
    let mut takeovers = Loss::ALL.map(|loss| Takeover { loss, seconds: Series::default() });
    for _ in 0..plan.rounds {
        for at in &mut takeovers {
            let seconds = takeover(site, at.loss).await?;
            eprintln!("the active worker is {}: the standby's first request {seconds:.2} s later", at.loss.name());
            at.seconds.0.push(seconds);
        }
    }
    results.takeovers.extend(takeovers);
    Ok(())
}

/// Waits until a worker consumes, if only as a standby.
async fn ready(site: &Site, admin: &str, worker: &mut Running) -> Result<(), String> {
    loop {
        worker.is_alive()?;
        let answer = site.client().get(format!("http://{admin}/readyz")).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The time from the loss to the first request after the pause, in seconds.
async fn takeover(site: &Site, loss: Loss) -> Result<f64, String> {
    let broker = site.broker.client_of(STANDBY_QUEUE).await?;
    broker.purge().await?;
    broker.fill(60 * PACE).await?;
    site.reset(false).await?;
    let proxy = Proxy::start(&site.broker.url).await;
    let settings = |url: &str| {
        let pace = ("WTW_CRM_REQUESTS_PER_SECOND", PACE.to_string());
        let [_, queue, single] = site.broker_settings(STANDBY_QUEUE, true);
        [("WTW_BROKER_URLS", url.to_owned()), queue, single, pace]
    };
    let mut active = SHARED.start_with(site, 2, &settings(&proxy.url))?;
    site.reached(&mut active, PACE).await?;
    let admin = format!("127.0.0.1:{}", free_port()?);
    let listen = [("WTW_ADMIN_LISTEN", admin.clone())];
    let mut standby = SHARED.join(site, 2, &[&settings(&site.broker.url)[..], &listen].concat())?;
    ready(site, &admin, &mut standby).await?;

    site.reset(false).await?;
    let lost = clock::now_ns();
    match loss {
        Loss::Killed => active.signal("KILL")?,
        Loss::Stopped => active.signal("STOP")?,
        Loss::CutOff => proxy.hold(),
    }
    // The active worker may still send what it has fetched. Five seconds of work later, the pause is the longest time without
    // a request.
    let count = usize::try_from(site.report().await?.count).unwrap_or_default();
    site.reached(&mut standby, count + 5 * PACE).await?;
    let report = site.report().await?;
    // Nothing may have come between the loss and the first request: then that is the end of the pause.
    let first = report.first_ns.saturating_sub(lost);
    let end = if first > report.longest_gap_ns { report.first_ns } else { report.gap_end_ns };
    let seconds = end.saturating_sub(lost) as f64 / 1e9;
    standby.stop().await?;
    drop(active);
    broker.close().await;
    Ok(seconds)
}
