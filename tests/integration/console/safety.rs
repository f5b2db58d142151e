//! Tests of each safety rule, from outside.

use lapin::types::AMQPValue;
use reqwest::StatusCode;
use serde_json::json;

use super::{Console, password_file};
use crate::dead_letters::dead_properties;
use crate::support::process::run;
use crate::support::rig::{Rig, task, task_with};

const MAYBE: [(&str, AMQPValue); 1] = [("x-wtw-possibly-created", AMQPValue::Boolean(true))];

#[tokio::test]
async fn post_is_refused_without_our_origin_and_the_sessions_token() {
    let rig = Rig::new("console.posts").await;
    rig.declare_topology().await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "1</span>").await;
    let token = console.token().await;
    let origin = console.url.clone();
    let right = [("token", token.as_str()), ("what", "discard"), ("query", "kind=rejected")];
    let wrong = [("token", "0123456789abcdef0123456789abcdef"), right[1], right[2]];
    for (fields, headers, says) in [
        (&right[..], &[][..], "from another site"),
        (&right, &[("origin", "http://evil.example")], "from another site"),
        (&right, &[("origin", "null")], "from another site"),
        (&right, &[("origin", "http://127.0.0.1:1")], "from another site"),
        (&right, &[("origin", &origin), ("sec-fetch-site", "cross-site")], "from another site"),
        (&right[1..], &[("origin", &origin)], "had expired"),
        (&wrong, &[("origin", &origin)], "had expired"),
    ] {
        let refused = console.post_as("/actions", fields, headers).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{headers:?}: {}", refused.text);
        assert!(refused.text.contains(says), "{headers:?}: {}", refused.text);
    }
    let taken = console.post_as("/actions", &right, &[("origin", &origin)]).await;
    assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.text);
    // The same form after a restart of the console.
    let console = console.restarted().await;
    console.shows("/failed", "1</span>").await;
    let taken = console.post_as("/actions", &right, &[("origin", &origin)]).await;
    assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.text);
    rig.wait_for_dead_letters(1).await;
}

#[tokio::test]
async fn other_site_cannot_make_the_console_read_the_queues() {
    let rig = Rig::new("console.cross").await;
    rig.declare_topology().await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    let client = crate::support::http::client();
    let asked = async |method: reqwest::Method, path: &str, site: &str| {
        let request = client.request(method, format!("{}{path}", console.url)).header("sec-fetch-site", site);
        let answer = request.send().await.expect("an answer");
        (answer.status(), answer.text().await.expect("text"))
    };
    for path in ["/failed/export", "/failed/export?kind=rejected", "/find?id=m-1"] {
        let (status, text) = asked(reqwest::Method::GET, path, "cross-site").await;
        assert!(status == StatusCode::FORBIDDEN && text.contains("from another site"), "{path}: {text}");
        assert_eq!(asked(reqwest::Method::HEAD, path, "cross-site").await.0, StatusCode::FORBIDDEN, "{path}");
    }
    for site in ["same-origin", "none"] {
        assert_eq!(asked(reqwest::Method::HEAD, "/failed/export", site).await.0, StatusCode::OK, "{site}");
    }
    let read = rig.amqp.take(&rig.dead_letter_queue()).await;
    let count = |name: &str| crate::support::amqp::number(&read, name).unwrap_or(0);
    assert_eq!(count("x-delivery-count").max(count("x-acquired-count")), 0, "{:?}", read.properties);
    for path in ["/find", "/failed"] {
        assert_eq!(asked(reqwest::Method::GET, path, "cross-site").await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn unknown_host_name_is_refused() {
    let rig = Rig::new("console.hosts").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[("WTW_CONSOLE_ALLOWED_HOSTS", "console.example.com")]).await;
    let client = crate::support::http::client();
    for (host, status) in [
        ("evil.example", StatusCode::FORBIDDEN),
        ("127.0.0.1.evil.example", StatusCode::FORBIDDEN),
        ("console.example.com", StatusCode::OK),
        ("localhost:9465", StatusCode::OK),
    ] {
        let answer = client.get(&console.url).header("host", host).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{host}");
    }
}

#[tokio::test]
async fn answers_forbid_scripts_frames_and_caches() {
    let rig = Rig::new("console.headers").await;
    rig.declare_topology().await;
    let console = Console::start(&rig, None, &[]).await;
    let client = crate::support::http::client();
    for path in ["/", "/failed", "/style.css", "/nowhere", "/healthz"] {
        let answer = client.get(format!("{}{path}", console.url)).send().await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        let policy = header("content-security-policy").unwrap_or_default();
        for part in ["default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("script-src") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(header("x-frame-options").as_deref(), Some("DENY"), "{path}");
        assert_eq!(header("cache-control").as_deref(), Some("no-store"), "{path}");
        assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
    }
}

/// Every field that a publisher or the CRM controls, on every page that shows it.
#[tokio::test]
async fn foreign_text_is_escaped_on_every_page() {
    let rig = Rig::new("console.script").await;
    rig.declare_topology().await;
    let evil = "<script>alert(1)</script>\u{202e}\u{9b}'\"&</textarea></pre>";
    let text = |text: &str| AMQPValue::LongString(text.into());
    let history = serde_json::json!([{ "at": evil, "outcome": evil, "message": evil, "duration_ms": 1 }]).to_string();
    let more = [
        ("x-wtw-crm-message", text(evil)),
        ("x-wtw-rule", text(evil)),
        ("x-wtw-action", text(evil)),
        ("x-wtw-edited", text(evil)),
        ("x-wtw-history", text(&history)),
        ("x-wtw-original-exchange", text(evil)),
        ("x-wtw-original-routing-key", text(evil)),
        MAYBE[0].clone(),
    ];
    let body = task_with(evil, serde_json::json!({ "description": evil, evil: evil }));
    rig.put_dead_letter(&body, dead_properties(Some(evil), evil, &format!("name: {evil}"), &more)).await;
    let worker = rig.worker(&[]).await;
    rig.publish(&format!("good {evil}"), &task("good")).await;
    let console = Console::start(&rig, Some(&worker), &[]).await;
    console.shows("/", "&lt;script&gt;alert(1)").await;
    console.shows("/failed", "1</span>").await;
    let list = console.get("/failed?view=list").await.text;
    let (_, rest) = list.split_once("/message/").expect("a link");
    let print = rest.split('"').next().expect("a link").to_owned();
    let path = console.count(&[("what", "replay"), ("print", &print), ("doubt", "yes")]).await;
    // After the check-off there is no form.
    let edit = format!("/message/{print}/edit");
    assert_harmless(&edit, &console.get(&edit).await.text);
    console.post("/doubt", &[("print", &print), ("found", "exists")]).await;
    let query =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("id", evil).append_pair("text", evil).finish();
    for path in [
        "/".to_owned(),
        "/failed".to_owned(),
        "/failed?view=list".to_owned(),
        format!("/failed?{query}"),
        format!("/failed?kind={query}"),
        format!("/find?{query}"),
        "/doubt".to_owned(),
        "/activity".to_owned(),
        format!("/message/{print}"),
        format!("/message/{print}/edit"),
        format!("/actions/{query}"),
        path,
    ] {
        assert_harmless(&path, &console.get(&path).await.text);
    }
    let shown = console.get(&format!("/message/{print}")).await.text;
    assert!(shown.contains("&lt;script&gt;alert(1)&lt;/script&gt;[U+202E][U+009B]"), "{shown}");
    // The reason of a discard is somebody's text, too.
    let discard = console.count(&[("what", "discard"), ("print", &print)]).await;
    console.post(&discard, &[("do", "confirm"), ("reason", evil)]).await;
    assert_harmless(&discard, &console.shows(&discard, "Discard: done").await);
    let find =
        format!("/find?{}", url::form_urlencoded::Serializer::new(String::new()).append_pair("id", evil).finish());
    assert_harmless(&find, &console.shows(&find, "discarded: <span class=\"text\">&lt;script").await);
    assert_harmless("/activity", &console.shows("/activity", "because: &lt;script").await);
}

fn assert_harmless(path: &str, page: &str) {
    assert!(!page.contains("<script"), "{path}: {page}");
    assert!(!page.contains("</textarea></pre>"), "{path}: {page}");
    // A form field keeps the text that it must send back. Everywhere else hidden characters are shown by name.
    let is_hidden_field = |tag: &&str| tag.starts_with("input type=\"hidden\"");
    let deceives = |tag: &str| tag.contains(['\u{202e}', '\u{9b}']);
    if !path.ends_with("/edit") {
        assert!(!page.split('<').filter(|tag| !is_hidden_field(tag)).any(deceives), "{path}: {page}");
    }
}

#[tokio::test]
async fn console_beyond_loopback_does_not_start_without_a_password() {
    let rig = Rig::new("console.beyond").await;
    let state = crate::support::rig::LedgerFile::new();
    let state = state.folder().join("c.db");
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let env = rig.env(&[("WTW_CONSOLE_LISTEN", listen), ("WTW_CONSOLE_STATE", state.to_str().expect("a path"))]);
        let refused = run(&["console"], &env, b"").await;
        assert_eq!(refused.code, Some(78), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("no password is set") && refused.stderr.contains("port-forward"),
            "{}",
            refused.stderr
        );
    }
    for (key, value, says) in [
        ("WTW_CONSOLE_USER_HEADER", "x-user", "needs console.trusted_proxies"),
        ("WTW_CONSOLE_VIEWER_PASSWORD_FILE", "/nowhere", "needs console.password_file"),
        ("WTW_CONSOLE_PASSWORD_FILE", "/nowhere", "cannot be read"),
    ] {
        let refused = run(&["console"], &rig.env(&[(key, value)]), b"").await;
        assert!(refused.code == Some(78) && refused.stderr.contains(says), "{key}: {}", refused.stderr);
    }
}

#[tokio::test]
async fn password_opens_the_console_and_a_wrong_one_delays() {
    let rig = Rig::new("console.login").await;
    rig.declare_topology().await;
    let said = [
        ("x-wtw-crm-code", AMQPValue::LongLongInt(417)),
        ("x-wtw-crm-message", AMQPValue::LongString("secret words".into())),
    ];
    rig.put_dead_letter(
        br#"{"name":"secret body"}"#,
        dead_properties(Some("m-1"), "rejected", "name: is \"secret reason\"", &said),
    )
    .await;
    let hash = async |password: &[u8]| run(&["console", "--hash-password"], &Vec::new(), password).await.stdout;
    let (_folder, operators) = password_file(&hash(b"operators' own").await);
    let (_other, viewers) = password_file(&format!("eye:{}", hash(b"viewers' own").await));
    let files = [
        ("WTW_CONSOLE_PASSWORD_FILE", operators.to_str().expect("a path")),
        ("WTW_CONSOLE_VIEWER_PASSWORD_FILE", viewers.to_str().expect("a path")),
    ];
    let worker = rig.worker(&[]).await;
    let console = Console::start(&rig, Some(&worker), &files).await;
    let origin = console.url.clone();
    let login = async |name: &str, password: &str| {
        console
            .post_as("/login", &[("name", name), ("password", password), ("to", "/failed")], &[("origin", &origin)])
            .await
    };
    let page = console.get("/failed?kind=rejected").await;
    let asked = "/login?to=%2Ffailed%3Fkind%3Drejected";
    assert_eq!((page.status, page.location.as_str()), (StatusCode::SEE_OTHER, asked), "the filter is kept");
    for elsewhere in ["%2F%09%2Fevil", "%2F%2Fevil", "%2F%5Cevil", "http%3A%2F%2Fevil"] {
        let page = console.get(&format!("/login?to={elsewhere}")).await.text;
        assert!(page.contains("name=\"to\" value=\"/\""), "{elsewhere}: {page}");
    }
    for (path, status) in [("/login", StatusCode::OK), ("/style.css", StatusCode::OK), ("/healthz", StatusCode::OK)] {
        assert_eq!(console.get(path).await.status, status, "{path}");
    }
    // A viewer sees no bodies, no words of the CRM and no searches, and has no actions.
    rig.crm.faults(json!([{ "action": "api:403:secret words about an address" }])).await;
    rig.publish("blocked", &task_with("Blocked", json!({}))).await;
    assert_eq!(login("ana", "operators' own").await.status, StatusCode::SEE_OTHER);
    let searched = [("what", "discard"), ("query", "kind=rejected&cause=code+417%3A+secret+words")];
    let action = console.count(&searched).await;
    assert!(console.get(&action).await.text.contains("secret words"));
    console.shows("/", "secret words about an address").await;
    let entered = login("eye", "viewers' own").await;
    assert_eq!((entered.status, entered.location.as_str()), (StatusCode::SEE_OTHER, "/failed"), "{}", entered.text);
    let message = is_told_nothing(&console, &action).await;
    // An operator can do everything.
    assert_eq!(login("ana", "operators' own").await.status, StatusCode::SEE_OTHER);
    assert!(console.get(&message).await.text.contains("secret body"));
    // After a wrong password the address waits, longer each time, even with the right password.
    assert_eq!(login("ana", "operators own").await.status, StatusCode::UNAUTHORIZED);
    let waits = login("ana", "operators' own").await;
    assert!(waits.status == StatusCode::TOO_MANY_REQUESTS && waits.text.contains("Try again in 1 s"), "{}", waits.text);
    let wrong = async || (login("ana", "operators own").await.status == StatusCode::UNAUTHORIZED).then_some(());
    crate::support::eventually("it may try again", wrong).await;
    let waits = login("ana", "operators' own").await;
    assert!(waits.status == StatusCode::TOO_MANY_REQUESTS && waits.text.contains("Try again in 2 s"), "{}", waits.text);
    let entered = async || (login("ana", "operators' own").await.status == StatusCode::SEE_OTHER).then_some(());
    crate::support::eventually("it may enter again", entered).await;
    rig.wait_for_dead_letters(1).await;
}

#[tokio::test]
async fn session_ends_when_its_login_is_no_longer_valid() {
    let rig = Rig::new("console.sessions").await;
    rig.declare_topology().await;
    let hash = async |password: &[u8]| run(&["console", "--hash-password"], &Vec::new(), password).await.stdout;
    let (folder, operators) = password_file(&format!("ana:{}", hash(b"anas own").await));
    let open = Console::start(&rig, None, &[]).await;
    assert!(open.get("/failed").await.text.contains("local (operator)"));
    let file = ("WTW_CONSOLE_PASSWORD_FILE", operators.to_str().expect("a path"));
    let mut console = open.restarted_with(&[file]).await;
    assert_eq!(console.get("/failed").await.status, StatusCode::SEE_OTHER, "passwords are needed now");
    let origin = console.url.clone();
    let fields = [("name", "ana"), ("password", "anas own")];
    assert_eq!(console.post_as("/login", &fields, &[("origin", &origin)]).await.status, StatusCode::SEE_OTHER);
    console = console.restarted_with(&[]).await;
    assert!(console.get("/failed").await.text.contains("ana (operator)"), "the login is still valid");
    std::fs::write(&operators, hash(b"anas new one").await).expect("written");
    console = console.restarted_with(&[]).await;
    assert_eq!(console.get("/failed").await.status, StatusCode::SEE_OTHER, "the password was changed");
    drop((console, folder));
}

/// Checks what a viewer sees and may do. Returns the address of the message's page.
async fn is_told_nothing(console: &Console, action: &str) -> String {
    console.shows("/failed", "1</span>").await;
    let message = console.message("m-1").await;
    for path in ["/", "/failed", "/failed?view=list", "/doubt", "/find?id=m-1", "/activity", &message, action] {
        let page = console.get(path).await.text;
        assert!(!page.contains("secret") && !page.contains("Replay"), "{path}: {page}");
    }
    let others = ["/failed/export", "/failed?text=secret", "/failed?cause=code+417%3A+secret+words"].map(String::from);
    for path in [format!("{message}/raw"), format!("{message}/edit")].into_iter().chain(others) {
        let page = console.get(&path).await;
        assert!(page.status == StatusCode::FORBIDDEN && !page.text.contains("secret"), "{path}: {}", page.text);
    }
    let refused = console.post("/actions", &[("what", "discard"), ("query", "kind=rejected")]).await;
    assert!(refused.status == StatusCode::FORBIDDEN && refused.text.contains("may look"), "{}", refused.text);
    message
}

#[tokio::test]
async fn read_only_console_refuses_every_action() {
    let rig = Rig::new("console.readonly").await;
    rig.declare_topology().await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[("WTW_CONSOLE_READ_ONLY", "true")]).await;
    let page = console.shows("/failed", "1</span>").await;
    assert!(!page.contains("Replay…"), "{page}");
    for (path, fields) in [
        ("/actions", &[("what", "discard"), ("query", "kind=rejected")][..]),
        ("/doubt", &[("print", "0"), ("found", "exists")]),
        ("/configuration", &[]),
    ] {
        let refused = console.post(path, fields).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}: {}", refused.text);
    }
    rig.wait_for_dead_letters(1).await;
}

/// RabbitMQ counts each reading, so the queue is read only once a minute, however many people look.
#[tokio::test]
async fn queue_is_read_once_for_many_viewers() {
    let rig = Rig::new("console.viewers").await;
    rig.declare_topology().await;
    rig.put_dead_letter(b"{}", dead_properties(Some("m-1"), "rejected", "no", &[])).await;
    let console = Console::start(&rig, None, &[]).await;
    console.shows("/failed", "1</span>").await;
    for _ in 0..10 {
        for path in ["/failed", "/failed?view=list", "/doubt", "/"] {
            assert!(console.get(path).await.status.is_success(), "{path}");
        }
    }
    let read = rig.amqp.take(&rig.dead_letter_queue()).await;
    let count = |name: &str| crate::support::amqp::number(&read, name).unwrap_or(0);
    assert!(count("x-delivery-count").max(count("x-acquired-count")) <= 1, "{:?}", read.properties);
}
