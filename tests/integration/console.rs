//! Tests of the console with a real RabbitMQ, the sandbox and a real browser: pages, actions and safety rules.

mod acting;
mod audit;
mod browser;
mod doubt;
mod links;
mod login;
mod looking;
mod safety;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::support::process::{Env, Process};
use crate::support::rig::{LedgerFile, Rig, Worker};
use crate::support::{WAIT_TIMEOUT, eventually, http};

/// A running console, and the session of a visitor.
pub(crate) struct Console {
    pub(crate) process: Process,
    pub(crate) url: String,
    env: Env,
    client: Client,
    cookie: Mutex<String>,
    folder: Option<LedgerFile>,
}

/// A page.
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) location: String,
    pub(crate) text: String,
}

impl Console {
    /// Starts a console that asks `worker`, with its own state file.
    pub(crate) async fn start(rig: &Rig, worker: Option<&Worker>, more: &[(&str, &str)]) -> Self {
        let folder = LedgerFile::new();
        let state = folder.folder().join("console.db");
        let workers = worker.map_or("http://127.0.0.1:1", |worker| worker.admin.as_str());
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let own = [
            ("WTW_CONSOLE_STATE", state.to_str().expect("a path")),
            ("WTW_CONSOLE_WORKERS", workers),
            ("WTW_CONSOLE_LISTEN", &free.to_string()),
        ];
        let env = rig.env(&[&own[..], more].concat());
        let console = Self::with(env, free.to_string(), Some(folder));
        console.answers().await;
        console
    }

    fn with(env: Env, address: String, folder: Option<LedgerFile>) -> Self {
        let _ = http::client();
        let client = Client::builder().timeout(WAIT_TIMEOUT).redirect(Policy::none()).build().expect("a client");
        let process = Process::start(&["console"], &env);
        Self { process, url: format!("http://{address}"), env, client, cookie: Mutex::default(), folder }
    }

    /// Stops it with SIGTERM and starts it again with the same state. The visitor stays logged in.
    pub(crate) async fn restarted(mut self) -> Self {
        self.process.signal("TERM").await;
        self.process.ended().await;
        self.process = Process::start(&["console"], &self.env);
        self.answers().await;
        self
    }

    /// The same with more settings.
    pub(crate) async fn restarted_with(mut self, more: &[(&str, &str)]) -> Self {
        self.env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.restarted().await
    }

    async fn answers(&self) {
        let url = format!("{}/healthz", self.url);
        eventually("the console answers", || async { http::get(&url).await.filter(|(status, _)| status.is_success()) })
            .await;
    }

    async fn page(&self, response: Response) -> Page {
        let location = response.headers().get(LOCATION).map(|to| to.to_str().expect("text").to_owned());
        if let Some(cookie) = response.headers().get(SET_COOKIE) {
            let cookie = cookie.to_str().expect("text").split(';').next().unwrap_or_default().to_owned();
            *self.cookie.lock().await = cookie;
        }
        Page {
            status: response.status(),
            location: location.unwrap_or_default(),
            text: response.text().await.expect("text"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Page {
        let request = self.client.get(format!("{}{path}", self.url)).header(COOKIE, self.cookie.lock().await.clone());
        let response = request.send().await.expect("an answer");
        self.page(response).await
    }

    /// Posts a form of this console.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        let token = self.token().await;
        let fields = [&[("token", token.as_str())], fields].concat();
        self.post_as(path, &fields, &[("origin", &self.url)]).await
    }

    /// Posts with only these headers and fields.
    pub(crate) async fn post_as(&self, path: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Page {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let mut request =
            self.client.post(format!("{}{path}", self.url)).header(COOKIE, self.cookie.lock().await.clone());
        request = request.header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body).send().await.expect("an answer");
        self.page(response).await
    }

    /// The token of this visitor's forms.
    pub(crate) async fn token(&self) -> String {
        let page = self.get("/failed").await;
        let (_, rest) = page.text.split_once("name=\"token\" value=\"").expect("a form");
        rest.split('"').next().expect("a token").to_owned()
    }

    /// Waits until a page contains a text.
    pub(crate) async fn shows(&self, path: &str, part: &str) -> String {
        eventually(&format!("{path} shows {part}"), || async {
            let page = self.get(path).await;
            page.text.contains(part).then_some(page.text)
        })
        .await
    }

    /// Reads the queue again, and waits until a page contains a text: reading a long queue takes time.
    pub(crate) async fn reads(&self, path: &str, part: &str) -> String {
        let deadline = Instant::now() + WAIT_TIMEOUT * 10;
        self.post("/failed/read", &[]).await;
        loop {
            let page = self.get(path).await.text;
            if page.contains(part) {
                return page;
            }
            assert!(Instant::now() < deadline, "{path} does not show {part}: {page}");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Counts an action and opens its page. Returns its path.
    pub(crate) async fn count(&self, fields: &[(&str, &str)]) -> String {
        let page = self.post("/actions", fields).await;
        self.counted(page).await
    }

    /// Waits until the action is counted to which a post has led. Returns the path of its page.
    pub(crate) async fn counted(&self, posted: Page) -> String {
        assert_eq!(posted.status, StatusCode::SEE_OTHER, "{}", posted.text);
        let path = posted.location;
        eventually("the messages are counted", || async {
            (!self.get(&path).await.text.contains("The messages are being counted")).then_some(())
        })
        .await;
        path
    }

    /// The link to a message's page on a list.
    pub(crate) async fn message(&self, id: &str) -> String {
        let list = self.get(&format!("/failed?view=list&id={id}")).await.text;
        let (_, rest) = list.split_once("/message/").unwrap_or_else(|| panic!("{id} is not in {list}"));
        format!("/message/{}", rest.split('"').next().expect("a link"))
    }

    /// The most memory that it used, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        self.process.peak_memory()
    }
}

/// A password file with one line; its folder is deleted when it is dropped.
pub(crate) fn password_file(lines: &str) -> (LedgerFile, PathBuf) {
    let folder = LedgerFile::new();
    let path = folder.folder().join("passwords");
    std::fs::write(&path, lines).expect("written");
    (folder, path)
}
