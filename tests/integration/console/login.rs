//! Tests of logins behind a proxy and at the end of a session.

use reqwest::StatusCode;

use super::{Console, password_file};
use crate::dead_letters::dead_properties;
use crate::support::process::run;
use crate::support::rig::Rig;

#[tokio::test]
async fn trusted_proxy_names_the_user_and_the_base_path_holds_all_pages() {
    let rig = Rig::new("console.proxy").await;
    rig.declare_topology().await;
    let proxied = [
        ("WTW_CONSOLE_USER_HEADER", "X-User"),
        ("WTW_CONSOLE_TRUSTED_PROXIES", "127.0.0.1"),
        ("WTW_CONSOLE_BASE_PATH", "/wolkvox"),
    ];
    let console = Console::start(&rig, None, &proxied).await;
    let client = crate::support::http::client();
    let asked =
        client.get(format!("{}/wolkvox/", console.url)).header("x-user", "ana").header("x-forwarded-proto", "https");
    let answer = asked.send().await.expect("an answer");
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.contains("Path=/wolkvox/") && cookie.ends_with("; Secure"), "{cookie}");
    let page = answer.text().await.expect("text");
    assert!(page.contains("ana (operator)") && page.contains("href=\"/wolkvox/failed\""), "{page}");
    let outside = client.get(format!("{}/failed", console.url)).header("x-user", "ana");
    assert_eq!(outside.send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn user_header_is_utf8_and_a_request_without_it_is_refused() {
    let rig = Rig::new("console.utf8").await;
    rig.declare_topology().await;
    let proxied = [("WTW_CONSOLE_USER_HEADER", "X-User"), ("WTW_CONSOLE_TRUSTED_PROXIES", "127.0.0.1")];
    let console = Console::start(&rig, None, &proxied).await;
    let client = crate::support::http::client();
    let named = client.get(&console.url).header("x-user", "José".as_bytes()).send().await.expect("an answer");
    assert!(named.text().await.expect("text").contains("José (operator)"));
    let latin1: &[u8] = b"Jos\xe9";
    for request in [client.get(&console.url), client.get(&console.url).header("x-user", latin1)] {
        let refused = request.send().await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(refused.text().await.expect("text").contains("x-user (console.user_header) is missing"));
    }
    let hash = run(&["console", "--hash-password"], &Vec::new(), b"anas own").await.stdout;
    let (_folder, operators) = password_file(&format!("ana:{hash}"));
    let file = ("WTW_CONSOLE_PASSWORD_FILE", operators.to_str().expect("a path"));
    let console = Console::start(&rig, None, &[proxied[0], proxied[1], file]).await;
    assert_eq!(console.get("/").await.location, "/login?to=%2F", "a password is the other way in");
}

#[tokio::test]
async fn user_header_is_ignored_unless_a_trusted_proxy_sent_it() {
    let rig = Rig::new("console.forged").await;
    rig.declare_topology().await;
    let elsewhere = [("WTW_CONSOLE_USER_HEADER", "X-User"), ("WTW_CONSOLE_TRUSTED_PROXIES", "192.0.2.1")];
    let console = Console::start(&rig, None, &elsewhere).await;
    let forged = crate::support::http::client().get(&console.url).header("x-user", "ana");
    let answer = forged.header("x-forwarded-proto", "https").send().await.expect("an answer");
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    let page = answer.text().await.expect("text");
    assert!(page.contains("local (operator)") && !page.contains("ana"), "{page}");
    assert!(!cookie.contains("Secure"), "{cookie}");
}

#[tokio::test]
async fn forwarded_host_counts_only_from_a_trusted_proxy() {
    let rig = Rig::new("console.forwarded").await;
    rig.declare_topology().await;
    let allowed = ("WTW_CONSOLE_ALLOWED_HOSTS", "console.example.com");
    for (proxy, foreign, ours) in [
        ("127.0.0.1", StatusCode::FORBIDDEN, StatusCode::SEE_OTHER),
        ("192.0.2.1", StatusCode::OK, StatusCode::FORBIDDEN),
    ] {
        let console = Console::start(&rig, None, &[allowed, ("WTW_CONSOLE_TRUSTED_PROXIES", proxy)]).await;
        let client = crate::support::http::client();
        let asked = client.get(&console.url).header("x-forwarded-host", "evil.example");
        assert_eq!(asked.send().await.expect("an answer").status(), foreign, "{proxy}");
        // The browser's origin is the name that it knows, not the address that the proxy asks.
        let token = console.token().await;
        let headers = [("origin", "https://console.example.com"), ("x-forwarded-host", "console.example.com")];
        let read = console.post_as("/failed/read", &[("token", &token)], &headers).await;
        assert_eq!(read.status, ours, "{proxy}: {}", read.text);
    }
}

#[tokio::test]
async fn login_cookie_is_secure_only_when_a_trusted_proxy_says_https() {
    let rig = Rig::new("console.secure").await;
    rig.declare_topology().await;
    let hash = run(&["console", "--hash-password"], &Vec::new(), b"anas own").await.stdout;
    let (_folder, operators) = password_file(&format!("ana:{hash}"));
    let file = ("WTW_CONSOLE_PASSWORD_FILE", operators.to_str().expect("a path"));
    for (proxy, is_secure) in [("127.0.0.1", true), ("192.0.2.1", false)] {
        let console = Console::start(&rig, None, &[file, ("WTW_CONSOLE_TRUSTED_PROXIES", proxy)]).await;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        let login = client.post(format!("{}/login", console.url)).header("origin", &console.url);
        let login = login.header("x-forwarded-proto", "https").body("name=ana&password=anas+own");
        let answer = login.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let cookie = answer.headers()["set-cookie"].to_str().expect("text");
        assert_eq!(cookie.contains("; Secure"), is_secure, "{proxy}: {cookie}");
    }
}

#[tokio::test]
async fn edited_text_is_shown_again_when_the_session_has_ended() {
    let rig = Rig::new("console.kept").await;
    rig.declare_topology().await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "invalid_task", "no", &[])).await;
    let hash = run(&["console", "--hash-password"], &Vec::new(), b"anas own").await.stdout;
    let (_folder, operators) = password_file(&format!("ana:{hash}"));
    let file = ("WTW_CONSOLE_PASSWORD_FILE", operators.to_str().expect("a path"));
    let console = Console::start(&rig, None, &[file]).await;
    let (origin, credentials) = (console.url.clone(), [("name", "ana"), ("password", "anas own")]);
    let entered = console.post_as("/login", &credentials, &[("origin", &origin)]).await;
    assert_eq!(entered.status, StatusCode::SEE_OTHER, "{}", entered.text);
    let audited = || async { console.process.lines().into_iter().find(|line| line.contains("\"what\":\"login\"")) };
    let line = crate::support::eventually("an audit line", audited).await;
    assert!(line.contains("\"who\":\"ana\"") && !line.contains("anas own"), "{line}");
    console.shows("/failed", "1</span>").await;
    let edit = format!("{}/edit", console.message("m-1").await);
    let token = console.token().await;
    console.post("/logout", &[]).await;
    let body = "{\"name\":\"</textarea><script>\",\r\n\"description\":\"long work\"}";
    let fields = [("token", token.as_str()), ("password", "s3cret"), ("body", body), ("field.name", "a < b")];
    let kept = console.post_as(&edit, &fields, &[("origin", &origin)]).await;
    assert_eq!(kept.status, StatusCode::UNAUTHORIZED, "{}", kept.text);
    for part in ["long work", "a &#60; b", "&#60;/textarea&#62;", "readonly", &format!("login?to={edit}")] {
        assert!(kept.text.contains(part), "{part} is not in {}", kept.text);
    }
    assert!(!kept.text.contains(&token) && !kept.text.contains("s3cret"), "{}", kept.text);
    // Only a post of the form is answered without a login.
    for path in [edit.clone(), edit.replace("/edit", "/raw")] {
        assert_eq!(console.get(&path).await.status, StatusCode::SEE_OTHER, "{path}");
    }
    let foreign = console.post_as(&edit, &fields, &[("origin", "http://evil.example")]).await;
    assert!(foreign.status == StatusCode::FORBIDDEN && !foreign.text.contains("long work"), "{}", foreign.text);
}
