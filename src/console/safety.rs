//! The checks of every request: host name, origin of a post, login. And the security headers of every answer.

mod headers;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{Extension, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, ORIGIN,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use url::form_urlencoded;

use self::headers::{header, last, last_item, user};
use super::App;
use super::auth::{self, Role};
use super::store::LoginSession;

/// The largest form, in bytes: the largest body, each byte percent-encoded as three.
const MAX_FORM_BYTES: usize = 1 << 20;
/// The name of the session's cookie.
const SESSION: &str = "wtw_session";
/// Content-Security-Policy: only our own style sheet, no frames, forms only to this console.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The address of the connection's other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The visitor of a request.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    pub(crate) session: LoginSession,
    pub(crate) role: Role,
    pub(crate) address: IpAddr,
    /// Whether actions are allowed in this console at all.
    pub(crate) can_act: bool,
}

/// The fields of a post whose token was right.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Whether the form has the field, even an empty one.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }
}

/// Why a post was refused.
pub(crate) enum PostRefusal {
    /// The form belongs to another session or is old. The page shows the fields again.
    Expired(Form),
    /// The visitor may not act.
    NotAllowed,
    /// It is too large or unreadable.
    Unreadable,
}

/// Reads a post.
pub(crate) async fn form(visitor: &Visitor, request: Request) -> Result<Form, PostRefusal> {
    let form = read(request).await.ok_or(PostRefusal::Unreadable)?;
    if !auth::same(form.text("token"), &visitor.session.form) {
        return Err(PostRefusal::Expired(form));
    }
    if !visitor.can_act {
        return Err(PostRefusal::NotAllowed);
    }
    Ok(form)
}

/// The fields of a post whose token was not checked yet.
pub(crate) async fn read(request: Request) -> Option<Form> {
    let body = to_bytes(request.into_body(), MAX_FORM_BYTES).await.ok()?;
    let fields = form_urlencoded::parse(&body).map(|(name, value)| (name.into_owned(), value.into_owned()));
    Some(Form(fields.collect()))
}

/// Refuses what is not safe, and adds the security headers to every answer.
pub(crate) async fn guard(
    State(app): State<Arc<App>>,
    Extension(Peer(peer)): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/healthz" || path == format!("{}healthz", app.base) {
        return harden(next.run(request).await);
    }
    let is_trusted = app.config.console.trusted_proxies.contains(&peer.ip());
    if let Some(refusal) = refusal(&app, &request, is_trusted) {
        return harden((StatusCode::FORBIDDEN, refusal).into_response());
    }
    let is_secure = is_trusted && last(request.headers(), "x-forwarded-proto") == Some("https");
    request.extensions_mut().insert(IsSecure(is_secure));
    let address = address(peer.ip(), is_trusted, request.headers());
    let is_open = ["login", "style.css"].iter().any(|page| path == format!("{}{page}", app.base))
        || (request.method() == Method::POST && is_edit(&app.base, &path));
    let (visitor, cookie) = match visitor(&app, request.headers(), is_trusted, address) {
        Ok(found) => found,
        Err(why) => return harden((StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()),
    };
    match visitor {
        Some(visitor) => {
            request.extensions_mut().insert(visitor);
        }
        None if is_open => {
            request.extensions_mut().insert(NoSession(address));
        }
        None => {
            // Only a GET has a page that the login can lead back to.
            let asked = request.uri().path_and_query().filter(|_| request.method() == Method::GET);
            let asked = asked.map_or(app.base.as_str(), |asked| asked.as_str());
            let to = form_urlencoded::Serializer::new(String::new()).append_pair("to", asked).finish();
            let to = format!("{}login?{to}", app.base);
            return harden((StatusCode::SEE_OTHER, [(LOCATION, to)]).into_response());
        }
    }
    let mut response = next.run(request).await;
    if let Some(session) = cookie
        && let Ok(cookie) = HeaderValue::from_str(&session_cookie(&app.base, &session, is_secure))
    {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    harden(response)
}

/// Whether a path is that of an edit form. A post to it without a session changes nothing: the answer is the posted text.
fn is_edit(base: &str, path: &str) -> bool {
    let message = path.strip_prefix(base).and_then(|path| path.strip_prefix("message/")?.strip_suffix("/edit"));
    message.is_some_and(|message| !message.is_empty() && !message.contains('/'))
}

/// Whether a trusted proxy says that the browser uses HTTPS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IsSecure(pub(crate) bool);

/// A visitor who has not logged in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoSession(pub(crate) IpAddr);

/// The session cookie. An empty session deletes it.
pub(crate) fn session_cookie(base: &str, session: &str, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    let age = if session.is_empty() { "; Max-Age=0" } else { "" };
    format!("{SESSION}={session}; Path={base}; HttpOnly; SameSite=Strict{secure}{age}")
}

/// Why a request is refused for every visitor.
fn refusal(app: &App, request: &Request, is_trusted: bool) -> Option<String> {
    let headers = request.headers();
    let host = host(headers, is_trusted);
    let allowed = &app.config.console.allowed_hosts;
    if !is_allowed_host(&host, allowed) {
        return Some(format!(
            "The host name {:?} is not allowed. Add it to console.allowed_hosts, if this console is reached by that name.\n",
            crate::visible::line(&host)
        ));
    }
    if let Some(name) = &app.config.console.user_header
        && is_trusted
        && !app.auth.is_needed()
        && user(headers, name).is_none()
    {
        return Some(format!(
            "The proxy named no user: the header {name} (console.user_header) is missing or not UTF-8. Correct the proxy.\n"
        ));
    }
    let is_cross = header(headers, "sec-fetch-site").is_some_and(|site| site == "cross-site");
    if is_cross && reads_queues(&app.base, request.uri()) {
        return Some("This page was opened from another site, and was refused. Open it in the console.\n".to_owned());
    }
    if *request.method() != Method::POST {
        return None;
    }
    (!is_same_origin(headers, &host, allowed) || is_cross)
        .then(|| "This form was sent from another site, and was refused.\n".to_owned())
}

/// Whether each request for this address reads the queues. Each reading raises the delivery counts of the messages.
fn reads_queues(base: &str, uri: &Uri) -> bool {
    match uri.path().strip_prefix(base) {
        Some("failed/export") => true,
        Some("find") => uri.query().is_some_and(|query| !query.is_empty()),
        _ => false,
    }
}

/// Whether a form was sent from this console. `host` is the name that the browser asked for. A proxy can leave the port out of
/// `X-Forwarded-Host` and pass on the browser's `Host`, so that also counts.
fn is_same_origin(headers: &HeaderMap, host: &str, allowed: &[String]) -> bool {
    let origin = header(headers, ORIGIN.as_str()).unwrap_or_default().to_ascii_lowercase();
    let Some((_, origin)) = origin.split_once("://") else { return false };
    let own = header(headers, HOST.as_str()).unwrap_or_default().to_ascii_lowercase();
    origin == host || (origin == own && is_allowed_host(&own, allowed))
}

/// The host name that the browser asked for: that of the request, or what a trusted proxy reports.
fn host(headers: &HeaderMap, is_trusted: bool) -> String {
    let forwarded = last_item(headers, "x-forwarded-host").filter(|name| is_trusted && !name.is_empty());
    forwarded.or_else(|| header(headers, HOST.as_str())).unwrap_or_default().to_ascii_lowercase()
}

/// Whether a `Host` header names this console. With DNS rebinding, a foreign page gets this address under another name.
fn is_allowed_host(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_loopback = name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || allowed.iter().any(|allowed| allowed == name || allowed == host)
}

/// The visitor's address: that of the connection, or what a trusted proxy reports.
fn address(peer: IpAddr, is_trusted: bool, headers: &HeaderMap) -> IpAddr {
    let forwarded = last_item(headers, "x-forwarded-for").filter(|_| is_trusted);
    forwarded.and_then(|address| address.parse().ok()).unwrap_or(peer)
}

/// The visitor, and the session for the cookie of the answer.
fn visitor(
    app: &App,
    headers: &HeaderMap,
    is_trusted: bool,
    address: IpAddr,
) -> Result<(Option<Visitor>, Option<String>), String> {
    let now = app.now().as_second();
    let cookie = cookie(headers);
    let known = cookie.map(|id| app.store.session(id, now)).transpose()?.flatten();
    let of = |session: LoginSession, role: Role| {
        let can_act = role == Role::Operator && !app.config.console.read_only;
        Visitor { session, role, address, can_act }
    };
    let named = app.config.console.user_header.as_deref().filter(|_| is_trusted);
    let (name, login) = match named.and_then(|name| user(headers, name)) {
        Some(name) => (name, auth::PROXY),
        None if app.auth.is_needed() => {
            let visitor = known.and_then(|session| app.auth.role(&session.login).map(|role| of(session, role)));
            return Ok((visitor, None));
        }
        None => ("local", auth::LOCAL),
    };
    if let Some(session) = known.filter(|session| (session.name.as_str(), session.login.as_str()) == (name, login)) {
        return Ok((Some(of(session, Role::Operator)), None));
    }
    let session = new_session(app, name, login)?;
    let id = session.id.clone();
    Ok((Some(of(session, Role::Operator)), Some(id)))
}

/// Creates a session.
pub(crate) fn new_session(app: &App, name: &str, login: &str) -> Result<LoginSession, String> {
    let name = crate::message::failure::shorten(name, 100);
    let session = LoginSession { id: auth::secret()?, name, login: login.to_owned(), form: auth::secret()? };
    app.store.begin_session(&session, app.now().as_second())?;
    Ok(session)
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
    cookies.flat_map(|list| list.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == SESSION).then_some(value)
    })
}

/// The security headers of every answer.
fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &'static str); 6] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "same-origin"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_accepted_only_when_loopback_or_allowed() {
        let allowed = ["console.example.com".to_owned(), "10.0.0.7:9465".to_owned()];
        for (host, is_allowed) in [
            ("localhost", true),
            ("localhost:9465", true),
            ("127.0.0.1:9465", true),
            ("127.1.2.3", true),
            ("[::1]:9465", true),
            ("console.example.com", true),
            ("console.example.com:443", true),
            ("10.0.0.7:9465", true),
            ("10.0.0.7", false),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("console.example.com.evil", false),
            ("", false),
            ("[::1", false),
        ] {
            assert_eq!(is_allowed_host(host, &allowed), is_allowed, "{host}");
        }
    }

    #[test]
    fn forwarded_host_counts_only_from_a_trusted_proxy() {
        let header =
            |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers = HeaderMap::from_iter([
            header("host", "10.0.0.7:9465"),
            header("x-forwarded-host", "console.example.com, forged.example"),
        ]);
        // Some proxies add a line of their own.
        headers.append("x-forwarded-host", HeaderValue::from_static("evil.example, Console.example.com"));
        assert_eq!(host(&headers, false), "10.0.0.7:9465");
        assert_eq!(host(&headers, true), "console.example.com");
        let without = HeaderMap::from_iter([header("host", "LOCALHOST")]);
        assert_eq!(host(&without, true), "localhost");
    }

    #[test]
    fn origin_of_a_form_is_the_forwarded_host_or_an_allowed_own_host() {
        let allowed = ["console.example.com".to_owned()];
        for (origin, own, is_same) in [
            ("https://console.example.com", "127.0.0.1:9465", true),
            ("https://Console.example.com:8443", "console.example.com:8443", true),
            ("https://console.example.com:8443", "console.example.com", false),
            ("https://evil.example", "evil.example", false),
            ("https://", "", false),
            ("null", "null", false),
        ] {
            let headers = [(ORIGIN, HeaderValue::from_static(origin)), (HOST, HeaderValue::from_static(own))];
            let headers = HeaderMap::from_iter(headers);
            assert_eq!(is_same_origin(&headers, "console.example.com", &allowed), is_same, "{origin} {own}");
        }
    }

    #[test]
    fn only_the_form_of_an_edit_is_shown_again_without_a_session() {
        for (path, is_form) in [
            ("/wolkvox/message/0a/edit", true),
            ("/wolkvox/message//edit", false),
            ("/wolkvox/message/0a/raw", false),
            ("/wolkvox/message/0a/0b/edit", false),
            ("/message/0a/edit", false),
        ] {
            assert_eq!(is_edit("/wolkvox/", path), is_form, "{path}");
        }
    }

    #[test]
    fn forwarded_address_counts_only_from_a_trusted_proxy() {
        let mut headers = HeaderMap::from_iter([("x-forwarded-for".parse().unwrap(), "3.3.3.3".parse().unwrap())]);
        headers.append("x-forwarded-for", HeaderValue::from_static("1.1.1.1, 2.2.2.2"));
        let peer = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(address(peer, false, &headers), peer);
        assert_eq!(address(peer, true, &headers), IpAddr::from([2, 2, 2, 2]));
    }
}
