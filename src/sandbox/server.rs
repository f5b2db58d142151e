//! Serves the sandbox's connections and routes. It accepts connections itself, so that a fault can end a TCP connection.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{MAX_BODY, refuse};
use super::answer::{Answer, NoAnswer, Refusal};
use super::client::{Client, ConnectionEnd};
use super::state::State;
use super::{control, insert, query, token};
use crate::observe::listener::LimitedListener;

/// The beginning of the API's paths.
const API: &str = "/server/API";
/// How long requests in progress may last after the shutdown has begun.
const GRACE: Duration = Duration::from_secs(1);
/// Time limit for writing the final bytes of a connection that a fault ends.
const LAST_WRITE: Duration = Duration::from_secs(30);

/// Accepts connections until `shutdown`, then lets requests in progress finish for [`GRACE`].
pub(super) async fn serve(listener: TcpListener, state: Arc<State>, shutdown: CancellationToken) {
    let routes = routes(Arc::clone(&state));
    let mut accepting = LimitedListener::new(listener, "the sandbox");
    let connections = TaskTracker::new();
    let end = CancellationToken::new();
    let _end_when_dropped = end.clone().drop_guard();
    let mut number = 0;
    while let Some((stream, place)) = shutdown.run_until_cancelled(accepting.next()).await {
        number += 1;
        let (routes, state) = (routes.clone(), Arc::clone(&state));
        let (shutdown, end) = (shutdown.clone(), end.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = connection(stream, number, state, routes, shutdown, end).await {
                tracing::debug!(connection = number, %error, "a connection ended with an error");
            }
        });
    }
    drop(accepting);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        end.cancel();
        connections.wait().await;
    }
}

/// Serves one connection until it ends, for example by a fault.
async fn connection(
    stream: TcpStream,
    number: u64,
    state: Arc<State>,
    routes: Router,
    shutdown: CancellationToken,
    end: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let client = Client::new(number, stream.try_clone()?);
    let routes = TowerToHyperService::new(routes);
    let of_requests = client.clone();
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let client = of_requests.clone();
        request.extensions_mut().insert(client.clone());
        let is_silent = request.uri().path().starts_with(API) && state.account().silent_close;
        let answered = routes.call(request);
        async move {
            let response = answered.await?;
            if let Some(how) = response.extensions().get::<NoAnswer>() {
                return withhold(&client, *how).await;
            }
            if is_silent { close_silently(&client, response).await } else { Ok(response) }
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(TcpStream::from_std(stream)?), service);
    tokio::select! {
        ended = &mut connection => return ended.map_err(io::Error::other),
        how = client.ended() => return end_connection(connection.into_parts().io.into_inner(), how).await,
        () = shutdown.cancelled() => std::pin::Pin::new(&mut connection).graceful_shutdown(),
    }
    tokio::select! {
        ended = &mut connection => ended.map_err(io::Error::other),
        how = client.ended() => end_connection(connection.into_parts().io.into_inner(), how).await,
        () = end.cancelled() => Ok(()),
    }
}

/// Gives no answer.
async fn withhold(client: &Client, how: NoAnswer) -> Result<Response, Infallible> {
    match how {
        NoAnswer::Hang => {}
        NoAnswer::Reset => client.end(ConnectionEnd::Reset),
    }
    std::future::pending().await
}

/// Answers and closes the connection, without a header that says so.
async fn close_silently(client: &Client, response: Response) -> Result<Response, Infallible> {
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let answer = Answer { status: head.status, headers: head.headers, body, withheld: None };
    client.end(ConnectionEnd::Write(answer.to_wire("")));
    std::future::pending().await
}

/// Ends a connection as a fault says.
async fn end_connection(mut stream: TcpStream, how: ConnectionEnd) -> io::Result<()> {
    match how {
        // With no time to linger, closing sends RST instead of FIN.
        ConnectionEnd::Reset => stream.set_zero_linger(),
        ConnectionEnd::Write(bytes) => {
            let written = async {
                stream.write_all(&bytes).await?;
                stream.shutdown().await
            };
            tokio::time::timeout(LAST_WRITE, written).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    }
}

fn routes(state: Arc<State>) -> Router {
    Router::new()
        .route("/server/API/v2/custom/insert.php", post(insert::insert).fallback(only_post))
        .route("/server/API/v2/custom/query.php", post(query::by_field).fallback(only_post))
        .route("/server/API/v2/custom/queryDates.php", post(query::by_dates).fallback(only_post))
        .route("/server/API/v2/token/tokenInformation.php", get(token::information).fallback(only_get))
        .route("/sandbox/tasks", get(control::tasks))
        .route("/sandbox/stats", get(control::stats))
        .route("/sandbox/faults", put(control::faults))
        .route("/sandbox", delete(control::forget))
        .fallback(elsewhere)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state)
}

async fn only_post(Shared(state): Shared<Arc<State>>) -> Response {
    refuse(&state, &state.account(), &Refusal::WrongMethod("POST"))
}

async fn only_get(Shared(state): Shared<Arc<State>>) -> Response {
    refuse(&state, &state.account(), &Refusal::WrongMethod("GET"))
}

/// Answers all other paths: below the API's path as the API does, elsewhere as a web server does.
async fn elsewhere(Shared(state): Shared<Arc<State>>, uri: Uri) -> Response {
    let under_api = uri.path().strip_prefix(API);
    if under_api.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        refuse(&state, &state.account(), &Refusal::NoSuchApi)
    } else {
        Answer::html(StatusCode::NOT_FOUND).into_response()
    }
}
