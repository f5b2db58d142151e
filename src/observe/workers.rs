//! A client for the admin ports of running workers: `/status` and `/ledger`.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use futures_util::future::join_all;
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use url::{Url, form_urlencoded};

use crate::message::reference::Reference;
use crate::observe::ledger_page::{LedgerEntry, LedgerPage, LedgerResult, MAX_IDS};
use crate::observe::status::Page;

/// Time limit for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Interval between two calls of `/ledger`: a worker answers ten a second.
const LEDGER_CALL_INTERVAL: Duration = Duration::from_millis(110);
/// The problem of an empty list.
const NO_WORKER: &str = "console.workers names no worker";

/// The workers of a queue.
#[derive(Clone, Debug)]
pub struct Workers(Vec<Url>);

/// A worker and its answer.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// Its address, without a path.
    pub address: String,
    /// Its status page, or why there is none.
    pub page: Result<Page, StatusError>,
}

/// Why there is no status page of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusError {
    /// The reason.
    pub why: String,
    /// Whether something answers at the address, so that starting a worker does not help.
    pub is_other: bool,
}

/// What the ledgers know about some ids.
#[derive(Clone, Debug)]
pub struct LedgerAnswer {
    /// One entry for each id, in the order of the ids.
    pub entries: Vec<LedgerEntry>,
    /// Whether a missing entry proves that nothing was sent.
    pub proves_unsent: bool,
    /// The workers whose ledgers may know more.
    pub unasked: Vec<UnaskedWorker>,
}

/// A worker whose ledger was not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnaskedWorker {
    /// Its address, without a path.
    pub address: String,
    /// The reason.
    pub why: String,
}

impl std::fmt::Display for UnaskedWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.address, self.why)
    }
}

impl Workers {
    /// A client for these addresses.
    #[must_use]
    pub fn new(addresses: Vec<Url>) -> Self {
        Self(addresses)
    }

    /// The status page of each worker.
    pub async fn status(&self) -> Vec<WorkerStatus> {
        join_all(self.0.iter().map(async |url| {
            let page = match get(url, "/status").await {
                Ok((200, body)) => serde_json::from_slice(&body).map_err(|error| StatusError {
                    why: format!("its status cannot be read: {error}"),
                    is_other: true,
                }),
                Ok((status, _)) => Err(StatusError { why: format!("it answered HTTP {status}"), is_other: true }),
                Err(why) => Err(StatusError { why, is_other: false }),
            };
            WorkerStatus { address: shown(url), page }
        }))
        .await
    }

    /// The workers that answer and serve this queue, and the others.
    pub async fn of_queue(&self, queue: &str) -> (Self, Vec<UnaskedWorker>) {
        let (mut those, mut failures) = (Vec::new(), Vec::new());
        for (answer, url) in self.status().await.into_iter().zip(&self.0) {
            let why = match answer.page.map(|page| page.queue) {
                Ok(Some(served)) if served == queue => {
                    those.push(url.clone());
                    continue;
                }
                Ok(Some(other)) => format!("this worker serves the queue {other}, and broker.queue is {queue}"),
                Ok(None) => "its ledger is not open yet".to_owned(),
                Err(no_page) => no_page.why,
            };
            failures.push(UnaskedWorker { address: answer.address, why });
        }
        (Self(those), failures)
    }

    /// The number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The ledger entries of some ids. If several workers answer, the entry that knows most is used.
    ///
    /// # Errors
    /// No worker could be asked.
    pub async fn ledger(&self, ids: &[String]) -> Result<LedgerAnswer, Vec<UnaskedWorker>> {
        self.ledger_by("id", ids).await
    }

    /// The ledger entry of a reference.
    ///
    /// # Errors
    /// Why no worker could be asked.
    pub async fn find(&self, reference: Reference) -> Result<LedgerEntry, String> {
        let answer = self.ledger_by("ref", &[reference.to_string()]).await;
        let mut entries = answer.map_err(|failures| reasons(&failures))?.entries;
        entries.pop().ok_or_else(|| "it answered nothing".to_owned())
    }

    async fn ledger_by(&self, name: &str, ids: &[String]) -> Result<LedgerAnswer, Vec<UnaskedWorker>> {
        let mut entries: Vec<LedgerEntry> = ids.iter().map(|id| LedgerEntry::new(id, None)).collect();
        let (mut answered, mut proves_unsent) = (false, true);
        let mut unasked = Vec::new();
        for url in &self.0 {
            match ask_ledger(url, name, ids).await {
                Ok((others, worker_proves)) => {
                    answered = true;
                    proves_unsent &= worker_proves;
                    merge(&mut entries, others);
                }
                Err(why) => {
                    // Its ledger may know what the others do not.
                    proves_unsent = false;
                    unasked.push(UnaskedWorker { address: shown(url), why });
                }
            }
        }
        if answered { Ok(LedgerAnswer { entries, proves_unsent, unasked }) } else { Err(unasked) }
    }
}

/// Why no worker could be used.
#[must_use]
pub fn reasons(failures: &[UnaskedWorker]) -> String {
    let each: Vec<String> = failures.iter().map(ToString::to_string).collect();
    if each.is_empty() { NO_WORKER.to_owned() } else { each.join("; ") }
}

/// Replaces each entry by one of the same id that knows more.
pub fn merge(known: &mut [LedgerEntry], others: Vec<LedgerEntry>) {
    for (known, other) in known.iter_mut().zip(others) {
        if rank(&other) > rank(known) {
            *known = other;
        }
    }
}

/// How much an entry knows: created is more than in doubt, and that is more than no entry.
fn rank(entry: &LedgerEntry) -> u8 {
    match entry.result {
        Some(LedgerResult::Created) => 4,
        Some(LedgerResult::InDoubt) => 3,
        _ if entry.claim_open => 3,
        Some(LedgerResult::NotCreated) => 2,
        None => u8::from(entry.found),
    }
}

async fn ask_ledger(url: &Url, name: &str, ids: &[String]) -> Result<(Vec<LedgerEntry>, bool), String> {
    let mut entries = Vec::with_capacity(ids.len());
    let mut proves = false;
    for some in ids.chunks(MAX_IDS) {
        let query =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(some.iter().map(|id| (name, id))).finish();
        let (status, body) = get_when_free(url, &format!("/ledger?{query}")).await?;
        if status != 200 {
            return Err(format!("it answered HTTP {status}: {}", String::from_utf8_lossy(&body).trim()));
        }
        let page: LedgerPage =
            serde_json::from_slice(&body).map_err(|error| format!("its answer cannot be read: {error}"))?;
        proves = page.proves_unsent;
        entries.extend(page.entries);
        // Another question follows a full one, in this call or in the next.
        if some.len() == MAX_IDS {
            sleep(LEDGER_CALL_INTERVAL).await;
        }
    }
    match entries.len() == ids.len() {
        true => Ok((entries, proves)),
        false => Err("it answered about other ids".to_owned()),
    }
}

/// An address for people, without user, password and path.
fn shown(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80))
}

/// Status and body of a page; asked again for a while if others have used up the calls of this second.
async fn get_when_free(url: &Url, path: &str) -> Result<(u16, Vec<u8>), String> {
    let end = Instant::now() + ANSWER_TIMEOUT;
    loop {
        match get(url, path).await? {
            (429, _) if Instant::now() + LEDGER_CALL_INTERVAL < end => sleep(LEDGER_CALL_INTERVAL).await,
            answer => return Ok(answer),
        }
    }
}

/// Status and body of a page.
async fn get(url: &Url, path: &str) -> Result<(u16, Vec<u8>), String> {
    let asked = timeout(ANSWER_TIMEOUT, exchange(url, path)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))
}

async fn exchange(url: &Url, path: &str) -> Result<(u16, Vec<u8>), String> {
    let host = url.host_str().ok_or("the address has no host")?.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| {
        let is_refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
        if is_refused { "connection refused; is the worker running?".to_owned() } else { error.to_string() }
    })?;
    let failed = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let _connection = AbortOnDropHandle::new(tokio_util::task::TaskTracker::new().spawn(connection));
    let path = format!("{}{path}", url.path().trim_end_matches('/'));
    let request = Request::get(path).header(HOST, shown(url)).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(failed)?;
    let status = answer.status().as_u16();
    let body = to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES).await.map_err(|error| error.to_string())?;
    Ok((status, body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failure_names_the_reason_of_each_worker() {
        let of = async |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let (workers, unasked) = Workers::new(addresses).of_queue("tasks").await;
            assert_eq!(workers.count(), 0);
            reasons(&unasked)
        };
        assert_eq!(of(&[]).await, NO_WORKER);
        let refused = "connection refused; is the worker running?";
        let expected = format!("127.0.0.1:1: {refused}; 127.0.0.1:9: {refused}");
        assert_eq!(of(&["http://127.0.0.1:1", "http://127.0.0.1:9"]).await, expected);
    }
}
