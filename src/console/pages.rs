//! The routes of the console, the frame that all pages share, and answers that are not pages.

mod action;
mod activity;
mod configuration;
mod doubt;
mod edit;
mod example;
mod failed;
mod find;
mod login;
mod message;
pub(crate) mod now;
mod posted;
mod results;

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::middleware::from_fn_with_state;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use url::form_urlencoded;

use super::App;
use super::index::View;
use super::safety::{PostRefusal, Visitor, guard};
use super::times::When;

/// The style sheet.
const STYLE: &str = include_str!("pages/style.css");

/// All routes, behind the checks of [`safety`](super::safety).
pub(super) fn routes(app: &Arc<App>) -> Router {
    let pages = Router::new()
        .route("/", get(now::page))
        .route("/failed", get(failed::page))
        .route("/failed/read", post(failed::read_again))
        .route("/failed/export", get(failed::export))
        .route("/message/{print}", get(message::page))
        .route("/message/{print}/raw", get(message::raw))
        .route("/message/{print}/edit", get(edit::page).post(edit::post))
        .route("/find", get(find::page))
        .route("/doubt", get(doubt::page).post(doubt::post))
        .route("/activity", get(activity::page))
        .route("/actions", post(action::count))
        .route("/actions/{id}", get(action::page).post(action::post))
        .route("/configuration", get(configuration::page).post(configuration::check))
        .route("/login", get(login::page).post(login::post))
        .route("/logout", post(login::logout))
        .route("/style.css", get(async || ([(CONTENT_TYPE, "text/css")], STYLE)))
        .route("/healthz", get(async || "ok\n"))
        .fallback(no_page)
        .with_state(Arc::clone(app));
    let routes = match app.base.as_str() {
        "/" => pages,
        base => Router::new().nest(base, pages).route("/healthz", get(async || "ok\n")),
    };
    routes.layer(DefaultBodyLimit::disable()).layer(from_fn_with_state(Arc::clone(app), guard))
}

/// The frame around every page.
pub(crate) struct Shell {
    pub(crate) base: String,
    pub(crate) title: &'static str,
    pub(crate) active: &'static str,
    pub(crate) queue: String,
    pub(crate) who: String,
    pub(crate) role: &'static str,
    pub(crate) can_act: bool,
    /// Whether bodies and the CRM's words are shown.
    pub(crate) sees_bodies: bool,
    pub(crate) has_login: bool,
    pub(crate) token: String,
    /// Seconds until the browser loads the page again; none for a page that stays.
    pub(crate) refresh: Option<u32>,
    /// The link that stops or restarts the refresh.
    pub(crate) pause: Option<String>,
    /// When the data of the page was read.
    pub(crate) read_at: Option<When>,
    /// Notes above the page.
    pub(crate) notes: Vec<String>,
}

impl Shell {
    pub(crate) fn new(app: &App, visitor: &Visitor, title: &'static str, active: &'static str) -> Self {
        let sees_bodies = visitor.role == super::auth::Role::Operator;
        Self {
            base: app.base.clone(),
            title,
            active,
            queue: app.dead_letters.queues.work.clone(),
            who: visitor.session.name.clone(),
            role: match (visitor.can_act, sees_bodies) {
                (true, _) => "operator",
                (false, true) => "read only",
                (false, false) => "viewer",
            },
            can_act: visitor.can_act,
            sees_bodies,
            has_login: app.auth.is_needed(),
            token: visitor.session.form.clone(),
            refresh: None,
            pause: None,
            read_at: None,
            notes: Vec::new(),
        }
    }

    /// Makes the browser load the page again, unless the address has `refresh=off`.
    pub(crate) fn refreshing(mut self, seconds: u32, path: &str, query: &str) -> Self {
        let is_paused =
            form_urlencoded::parse(query.as_bytes()).any(|(name, value)| name == "refresh" && value == "off");
        self.refresh = (!is_paused).then_some(seconds);
        self.pause =
            Some(if is_paused { format!("{}{path}", self.base) } else { format!("{}{path}?refresh=off", self.base) });
        self
    }

    /// Shows when the dead letters were read, and what failed.
    pub(crate) fn reading(mut self, app: &App, view: &View) -> Self {
        let zone = &app.config.crm.timezone;
        if let Some(snapshot) = &view.snapshot {
            self.read_at = Some(When::new(snapshot.at, app.now(), zone));
            self.notes.extend(snapshot.scanned.warnings());
        }
        if let Some(why) = &view.failure {
            self.notes.push(format!("The dead letters could not be read: {why}"));
        }
        if let Some(seen) = view.reading {
            self.notes
                .push(format!("The dead letters are being read now ({seen} so far). Load the page again in a moment."));
        }
        self
    }

    fn is(&self, page: &str) -> bool {
        self.active == page
    }
}

/// A page with only a message.
#[derive(Template)]
#[template(path = "said.html")]
struct Said {
    shell: Shell,
    text: String,
    back: String,
}

/// Shows a message in place of a page.
pub(crate) fn said(app: &App, visitor: &Visitor, status: StatusCode, text: impl Into<String>, back: &str) -> Response {
    let shell = Shell::new(app, visitor, "Not done", "");
    let page = Said { shell, text: text.into(), back: format!("{}{back}", app.base) };
    (status, show(&page)).into_response()
}

async fn no_page(State(app): State<Arc<App>>, Extension(visitor): Extension<Visitor>) -> Response {
    said(&app, &visitor, StatusCode::NOT_FOUND, "There is no such page.", "")
}

/// Renders a template.
pub(crate) fn show(page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("this page cannot be rendered: {error}\n")).into_response()
        }
    }
}

/// The answer to a post that was refused.
pub(crate) fn refused(app: &App, visitor: &Visitor, refused: &PostRefusal, back: &str) -> Response {
    let (status, text) = match refused {
        PostRefusal::Expired(_) => (
            StatusCode::FORBIDDEN,
            "The form had expired. Nothing was done: go back, load the page again, and repeat it.",
        ),
        PostRefusal::NotAllowed => (StatusCode::FORBIDDEN, "You may look, but not act. Nothing was done."),
        PostRefusal::Unreadable => {
            (StatusCode::BAD_REQUEST, "The form was too large, or could not be read. Nothing was done.")
        }
    };
    said(app, visitor, status, text, back)
}

/// Redirects to another page after a post.
pub(crate) fn go(app: &App, path: &str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, format!("{}{path}", app.base))]).into_response()
}

/// A query parameter.
pub(crate) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.into_owned())
}

/// One page of a long list, with links to its neighbours.
pub(crate) struct Pager {
    /// The page's number, from 0.
    pub(crate) number: usize,
    /// The first row of the page.
    pub(crate) from: usize,
    pub(crate) newer_page: Option<String>,
    pub(crate) older_page: Option<String>,
}

impl Pager {
    /// The page that a query asks for, or else the last one.
    pub(crate) fn new(query: Option<&str>, rows: usize, rows_per_page: usize, link: impl Fn(usize) -> String) -> Self {
        let asked: usize = parameter(query, "page").and_then(|page| page.parse().ok()).unwrap_or(0);
        let last = rows.div_ceil(rows_per_page).saturating_sub(1);
        let number = asked.min(last);
        Self {
            number,
            from: number * rows_per_page,
            newer_page: (number > 0).then(|| link(number - 1)),
            older_page: (number < last).then(|| link(number + 1)),
        }
    }
}

/// The message's fingerprint as a path segment.
pub(crate) fn print_name(print: u128) -> String {
    format!("{print:032x}")
}

/// Reads a fingerprint from a path segment.
pub(crate) fn print_of(name: &str) -> Option<u128> {
    (name.len() == 32).then(|| u128::from_str_radix(name, 16).ok())?
}

/// A time in seconds since 1970, for a page.
pub(crate) fn when(app: &App, seconds: i64) -> When {
    let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    When::new(at, app.now(), &app.config.crm.timezone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_page_has_the_last_row() {
        let page = |rows| Pager::new(Some("page=999"), rows, 50, |_| String::new()).number;
        let pages = [0, 1, 50, 51, 100, 101].map(page);
        assert_eq!(pages, [0, 0, 0, 1, 1, 2]);
    }
}
