//! The login page.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Extension, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::http::header::{LOCATION, SET_COOKIE};
use axum::response::{IntoResponse as _, Response};
use secrecy::SecretString;

use super::{go, parameter, refused, show};
use crate::console::App;
use crate::console::auth::LoginResult;
use crate::console::safety::{self, IsSecure, NoSession, Visitor, new_session, session_cookie};
use crate::dead_letters::audit::{Record, new_action};

#[derive(Template)]
#[template(path = "login.html")]
struct Page {
    base: String,
    queue: String,
    to: String,
    name: String,
    problem: String,
}

/// Where the login leads: a path of this console, or its first page.
fn target(app: &App, to: Option<String>) -> String {
    // Browsers leave out tabs and line ends, and take a backslash for a slash: "/\t/host" is another server.
    to.filter(|to| to.starts_with(&app.base) && !to.starts_with("//"))
        .filter(|to| !to.contains(|letter: char| letter == '\\' || letter.is_control()))
        .unwrap_or_else(|| app.base.clone())
}

pub(super) async fn page(
    State(app): State<Arc<App>>,
    visitor: Option<Extension<Visitor>>,
    RawQuery(query): RawQuery,
) -> Response {
    if visitor.is_some() {
        return go(&app, "");
    }
    show(&form(&app, target(&app, parameter(query.as_deref(), "to")), String::new(), String::new()))
}

fn form(app: &App, to: String, name: String, problem: String) -> Page {
    Page { base: app.base.clone(), queue: app.dead_letters.queues.work.clone(), to, name, problem }
}

pub(super) async fn post(
    State(app): State<Arc<App>>,
    stranger: Option<Extension<NoSession>>,
    visitor: Option<Extension<Visitor>>,
    Extension(IsSecure(is_secure)): Extension<IsSecure>,
    request: Request,
) -> Response {
    let address = match (stranger, visitor) {
        (Some(Extension(NoSession(address))), _) => address,
        (None, Some(Extension(visitor))) => visitor.address,
        (None, None) => return StatusCode::FORBIDDEN.into_response(),
    };
    let Some(fields) = safety::read(request).await else {
        return (StatusCode::BAD_REQUEST, "The form could not be read: go back and send it again.\n").into_response();
    };
    let (name, to) = (fields.text("name").trim().to_owned(), target(&app, fields.get("to").map(ToOwned::to_owned)));
    if let Some(wait) = app.auth.wait(address) {
        return too_many(&app, to, name, wait);
    }
    let problem = match name.as_str() {
        "" => "Enter your name. The audit records it.".to_owned(),
        _ => match app.auth.check(address, &name, &SecretString::from(fields.text("password"))).await {
            LoginResult::Wait(wait) => return too_many(&app, to, name, wait),
            LoginResult::Wrong => {
                audit_login(&app, &name, address, "refused");
                "The name or the password is wrong.".to_owned()
            }
            LoginResult::Right(login) => match new_session(&app, &name, &login) {
                Ok(session) => {
                    audit_login(&app, &name, address, "done");
                    let cookie = session_cookie(&app.base, &session.id, is_secure);
                    return (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, to)]).into_response();
                }
                Err(why) => why,
            },
        },
    };
    (StatusCode::UNAUTHORIZED, show(&form(&app, to, name, problem))).into_response()
}

fn too_many(app: &App, to: String, name: String, wait: Duration) -> Response {
    let problem = format!("Too many wrong passwords from here. Try again in {} s.", wait.as_secs() + 1);
    (StatusCode::TOO_MANY_REQUESTS, show(&form(app, to, name, problem))).into_response()
}

/// Writes a login to the audit.
fn audit_login(app: &Arc<App>, name: &str, address: IpAddr, result: &str) {
    let record = Record {
        action: new_action(),
        what: "login".to_owned(),
        who: crate::message::failure::shorten(name, 100),
        from: format!("console {address}"),
        result: result.to_owned(),
        ..Record::default()
    };
    if result != "done" {
        // The audit stream records no wrong passwords, so that a flood of them cannot fill it.
        tracing::warn!(who = record.who, from = record.from, "a login was refused");
        return;
    }
    app.audit(record);
}

pub(super) async fn logout(
    State(app): State<Arc<App>>,
    Extension(visitor): Extension<Visitor>,
    request: Request,
) -> Response {
    let is_right = safety::read(request)
        .await
        .is_some_and(|form| crate::console::auth::same(form.text("token"), &visitor.session.form));
    if !is_right {
        return refused(&app, &visitor, &safety::PostRefusal::Unreadable, "");
    }
    if let Err(why) = app.store.end_session(&visitor.session.id) {
        tracing::warn!(why, "a logout could not be saved in console.state; check its disk and permissions");
    }
    let cookie = session_cookie(&app.base, "", false);
    (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, format!("{}login", app.base))]).into_response()
}
