//! The console: a web page on dead letters, workers and actions, served by a process of its own. Each page is HTML that the
//! server renders; no page needs a script.

mod actions;
pub(crate) mod auth;
mod chart;
pub(crate) mod check_marks;
mod index;
mod pages;
mod safety;
mod store;
mod text;
mod times;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::actions::Running;
use self::auth::Auth;
use self::index::Index;
use self::pages::now::Shared;
use self::safety::Peer;
use self::store::Store;
use crate::config::{Config, LedgerStore, Loaded};
use crate::dead_letters::DeadLetters;
use crate::dead_letters::audit::Record;
use crate::dead_letters::preview::Previewer;
use crate::observe::listener::{RetryingListener, bind};
use crate::observe::watched_files::WatchedFiles;
use crate::reload;

/// Connections at a time, at most.
const MAX_CONNECTIONS: usize = 128;
/// Time limit for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for a request and its answer. The longest is the download of all dead letters.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(600);
/// Time limit for open work when the console ends.
const GRACE: Duration = Duration::from_secs(10);
/// Interval at which old sessions and actions are deleted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// What every page has access to.
pub(crate) struct App {
    pub(crate) loaded: Loaded,
    pub(crate) config: Arc<Config>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) store: Store,
    pub(crate) index: Arc<Index>,
    pub(crate) auth: Auth,
    pub(crate) running: Running,
    pub(crate) shared: Shared,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// The start of every page's path; it ends with a slash.
    pub(crate) base: String,
    /// Whether the console runs in Kubernetes, for `check`.
    pub(crate) is_in_kubernetes: bool,
}

impl App {
    pub(crate) fn now(&self) -> Timestamp {
        self.dead_letters.clock.now()
    }

    /// Writes to the audit in the background, so that the visitor does not wait.
    pub(crate) fn audit(self: &Arc<Self>, record: Record) {
        let app = Arc::clone(self);
        self.tasks.spawn(async move { app.dead_letters.audit(record).await });
    }

    /// A mapper for this configuration. A rules file is read again each time.
    pub(crate) fn previewer(&self) -> Result<Previewer, String> {
        tokio::task::block_in_place(|| Previewer::new(&self.config))
    }
}

impl App {
    /// Reads the secret files of broker and ledger again when they change.
    fn watch_logins(&self) {
        // The console has no metrics, so only the log reports a change.
        let reports = Arc::<WatchedFiles>::default();
        if let Some(file) = self.config.broker.urls_file.clone() {
            let watching = reload::broker_urls(file, Arc::clone(&self.dead_letters.connector), Arc::clone(&reports));
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(watching));
        }
        if let (Some(file), LedgerStore::Redis(url)) = (self.config.ledger.url_file.clone(), &self.config.ledger.store)
        {
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(reload::ledger_url(
                file,
                url.clone(),
                reports,
            )));
        }
    }
}

/// Why the console does not start.
pub(crate) enum StartError {
    /// The configuration does not allow it.
    Configuration(String),
    /// It cannot start on this machine, for example because the port is in use.
    Failed(String),
}

/// A console that has its address but does not serve yet.
pub(crate) struct Console {
    app: Arc<App>,
    listener: TcpListener,
}

impl Console {
    /// Binds the address and opens the state.
    pub(crate) async fn bind(
        loaded: Loaded,
        is_in_kubernetes: bool,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let console = loaded.config.console.clone();
        let auth = Auth::new(&console, &stop).map_err(|why| match stop.is_cancelled() {
            true => StartError::Failed("interrupted".to_owned()),
            false => StartError::Configuration(why),
        })?;
        if !console.listen.ip().is_loopback() && !auth.is_needed() {
            return Err(StartError::Configuration(format!(
                "console.listen: {} is reached from other machines, and no password is set. Set console.password_file \
                 (\"console --hash-password\" makes a line of it), or listen on 127.0.0.1 and reach it by an SSH tunnel or \
                 \"kubectl port-forward\".",
                console.listen
            )));
        }
        let listener = bind(console.listen).map_err(|error| {
            StartError::Failed(format!("console.listen: cannot listen on {}: {error}", console.listen))
        })?;
        let config = Arc::new(loaded.config.clone());
        let dead_letters = DeadLetters::new(Arc::clone(&config));
        let app = App {
            store: Store::open(&console.state).map_err(StartError::Failed)?,
            index: Arc::new(Index::new(dead_letters.clone())),
            auth,
            running: Running::default(),
            shared: Shared::default(),
            tasks: TaskTracker::new(),
            stop,
            base: console.base_path.clone(),
            is_in_kubernetes,
            loaded,
            config,
            dead_letters,
        };
        Ok(Self { app: Arc::new(app), listener })
    }

    /// The address that it is served on.
    pub(crate) fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves the pages until it is stopped, then waits for open work.
    pub(crate) async fn serve(self) -> Result<(), String> {
        let Self { app, listener } = self;
        let mut listener = RetryingListener::new(listener, "console.listen");
        app.resume()?;
        let routes = pages::routes(&app);
        app.watch_logins();
        let (places, sweeping) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::clone(&app));
        app.tasks.spawn(async move {
            let swept = async {
                loop {
                    if let Err(why) = sweeping.store.sweep(sweeping.now().as_second()) {
                        tracing::warn!(
                            why,
                            "old records could not be deleted from console.state; check its disk and permissions"
                        );
                    }
                    sleep(SWEEP_INTERVAL).await;
                }
            };
            let _: Option<()> = sweeping.stop.run_until_cancelled(swept).await;
        });
        let accepting = async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let (stream, address) = listener.next().await;
                let served = connection(routes.clone(), stream, Peer(address));
                app.tasks.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
        };
        let _: Option<()> = app.stop.run_until_cancelled(accepting).await;
        app.tasks.close();
        // The next start of the console continues what does not finish in time.
        let _ = timeout(GRACE, app.tasks.wait()).await;
        Ok(())
    }
}

async fn connection(routes: Router, stream: tokio::net::TcpStream, peer: Peer) {
    let service = TowerToHyperService::new(routes.layer(Extension(peer)));
    let mut http = http1::Builder::new();
    let served = http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
    // A client that sends a broken request, or sends too slowly, gets no answer.
    let _ = timeout(EXCHANGE_TIMEOUT, served.serve_connection(TokioIo::new(stream), service)).await;
}
