//! A stand-in CRM without limits or latency: whatever is posted under `/server` is answered with code 200 and counted. The
//! shipped sandbox checks, remembers and limits, and would be the slowest part.
//!
//! `POST /reset` forgets; `POST /reset/stamps` forgets and has it measure each message's way from here on;
//! `GET /wait/N` is answered once N requests have come, with the Nth one's moment; `GET /report` says what came.

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

/// As the vendor's page has it.
const CREATED: &str = r#"{"code":"200","error":"","msg":"ok","data":{"id":"4711"}}"#;

/// What came since the last reset.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests.
    pub count: u64,
    /// When the first came, in nanoseconds since 1970, as all moments here.
    pub first_ns: u64,
    /// The longest time between two of them.
    pub longest_gap_ns: u64,
    /// When that ended.
    pub gap_end_ns: u64,
    /// From each message's stamp to its request, where stamps are looked for.
    pub ways_ns: Vec<u64>,
}

#[derive(Default)]
struct Books {
    report: Report,
    stamps: bool,
    /// When each came: whoever asks late is told the same.
    moments: Vec<u64>,
    waiting: Vec<(usize, oneshot::Sender<u64>)>,
}

impl Books {
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

type Shared = Arc<Mutex<Books>>;

/// Serves for ever; prints its address first.
pub async fn serve() -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    println!("{}", listener.local_addr().map_err(|error| error.to_string())?);
    let books = Shared::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let books = Arc::clone(&books);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&books)));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(mut request: Request<Incoming>, books: Shared) -> Result<Response<String>, hyper::Error> {
    let path = request.uri().path();
    if path.starts_with("/server") {
        let now = clock::now_ns();
        let stamps = {
            let mut books = locked(&books);
            books.count(now);
            books.stamps
        };
        let body = read(request.body_mut(), stamps).await?;
        if stamps && let Some(stamp) = clock::stamp_in(&body) {
            locked(&books).report.ways_ns.push(now.saturating_sub(stamp));
        }
        return Ok(Response::new(CREATED.to_owned()));
    }
    let text = control(path, &books).await;
    Ok(Response::new(text))
}

async fn control(path: &str, books: &Shared) -> String {
    if let Some(wanted) = path.strip_prefix("/wait/").and_then(|wanted| wanted.parse().ok()) {
        return wait(wanted, books).await.to_string();
    }
    if path.starts_with("/reset") {
        *locked(books) = Books { stamps: path.ends_with("/stamps"), ..Books::default() };
    }
    serde_json::to_string(&locked(books).report).unwrap_or_default()
}

async fn wait(wanted: usize, books: &Shared) -> u64 {
    let reached = {
        let mut books = locked(books);
        if let Some(moment) = books.moments.get(wanted.saturating_sub(1)) {
            return *moment;
        }
        let (sender, reached) = oneshot::channel();
        books.waiting.push((wanted, sender));
        reached
    };
    reached.await.unwrap_or_default()
}

fn locked(books: &Shared) -> std::sync::MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body, where it is looked at.
async fn read(body: &mut Incoming, keep: bool) -> Result<Vec<u8>, hyper::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
        if let (true, Ok(data)) = (keep, frame?.into_data()) {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}
