//! A stand-in CRM without limits and latency: it counts every request under `/server` and answers with code 200. The sandbox of
//! the product validates, stores and limits, so it would be the slowest part.
//!
//! `POST /reset` starts a new count. `POST /reset/stamps` also measures the time from each message's publish to its request.
//! `GET /wait/N` answers after N requests with the time of the Nth one. `GET /report` returns the [`RequestStats`].

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::clock;

/// The answer of the vendor's documentation.
const CREATED: &str = r#"{"code":"200","error":"","msg":"ok","data":{"id":"4711"}}"#;

/// The requests since the last reset.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RequestStats {
    /// The number of requests.
    pub count: u64,
    /// The time of the first request, in nanoseconds since 1970 as all times here.
    pub first_ns: u64,
    /// The longest time between two requests.
    pub longest_gap_ns: u64,
    /// The end of that time.
    pub gap_end_ns: u64,
    /// The times from publish to request, if they are measured.
    pub ways_ns: Vec<u64>,
}

#[derive(Default)]
struct Requests {
    report: RequestStats,
    stamps: bool,
    /// The time of each request, for a `GET /wait/N` that comes later.
    moments: Vec<u64>,
    waiting: Vec<(usize, oneshot::Sender<u64>)>,
}

impl Requests {
    fn count(&mut self, now: u64) {
        let report = &mut self.report;
        report.count += 1;
        match self.moments.last().map(|last| now.saturating_sub(*last)) {
            None => report.first_ns = now,
            Some(gap) if gap > report.longest_gap_ns => (report.longest_gap_ns, report.gap_end_ns) = (gap, now),
            Some(_) => {}
        }
        self.moments.push(now);
        let count = self.moments.len();
        for (_, waiting) in self.waiting.extract_if(.., |(wanted, _)| *wanted <= count) {
            let _ = waiting.send(now);
        }
    }
}

type Shared = Arc<Mutex<Requests>>;

/// Prints its address and serves without end.
pub async fn serve() -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    println!("{}", listener.local_addr().map_err(|error| error.to_string())?);
    let requests = Shared::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let requests = Arc::clone(&requests);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&requests)));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(mut request: Request<Incoming>, requests: Shared) -> Result<Response<String>, hyper::Error> {
    let path = request.uri().path();
    if path.starts_with("/server") {
        let now = clock::now_ns();
        let stamps = {
            let mut requests = locked(&requests);
            requests.count(now);
            requests.stamps
        };
        let body = read(request.body_mut(), stamps).await?;
        if stamps && let Some(stamp) = clock::stamp_in(&body) {
            locked(&requests).report.ways_ns.push(now.saturating_sub(stamp));
        }
        return Ok(Response::new(CREATED.to_owned()));
    }
    let text = control(path, &requests).await;
    Ok(Response::new(text))
}

async fn control(path: &str, requests: &Shared) -> String {
    if let Some(wanted) = path.strip_prefix("/wait/").and_then(|wanted| wanted.parse().ok()) {
        return wait(wanted, requests).await.to_string();
    }
    if path.starts_with("/reset") {
        *locked(requests) = Requests { stamps: path.ends_with("/stamps"), ..Requests::default() };
    }
    serde_json::to_string(&locked(requests).report).unwrap_or_default()
}

async fn wait(wanted: usize, requests: &Shared) -> u64 {
    let reached = {
        let mut requests = locked(requests);
        if let Some(moment) = requests.moments.get(wanted.saturating_sub(1)) {
            return *moment;
        }
        let (sender, reached) = oneshot::channel();
        requests.waiting.push((wanted, sender));
        reached
    };
    reached.await.unwrap_or_default()
}

fn locked(requests: &Shared) -> std::sync::MutexGuard<'_, Requests> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the body. Returns it only if `keep` is set.
async fn read(body: &mut Incoming, keep: bool) -> Result<Vec<u8>, hyper::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
        if let (true, Ok(data)) = (keep, frame?.into_data()) {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}
