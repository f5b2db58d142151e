use proptest::prelude::*;
use serde_json::json;

use super::*;

fn judge(status: u16, body: impl AsRef<[u8]>) -> Classified {
    let reply = Reply { status, retry_after: None, body: body.as_ref().to_vec() };
    classify(&HttpResult::Reply(reply), Timestamp::UNIX_EPOCH)
}

/// What a body with this code and text comes to, in the vendor's shape.
fn check(code: i64, msg: &str, outcome: Outcome) {
    for (status, code_written) in
        [(u16::try_from(code).unwrap_or(200), json!(code)), (200, json!(code)), (500, json!(code.to_string()))]
    {
        for msg in [msg.to_owned(), msg.to_lowercase(), format!(" {msg}. ")] {
            let body = json!({"code": code_written, "error": "ERROR", "msg": msg});
            let classified = judge(status, body.to_string());
            assert_eq!(classified.outcome, outcome, "{body}");
            assert_eq!(classified.code, Some(code), "{body}");
            assert_eq!(classified.http_status, Some(status), "{body}");
            assert_eq!(classified.message.as_deref(), Some(msg.trim()), "{body}");
            assert!(classified.reason.contains(msg.trim()), "{body}");
        }
    }
}

#[test]
fn every_documented_code_and_text_has_its_outcome() {
    use Outcome::*;
    for (code, msg, outcome) in [
        (200, "Succesfully create record", Created),
        (200, "TOKEN LIMIT EXCEEDED", Created),
        (400, "THE API YOU WANT TO CONSULT DOES NOT EXIST", Misconfigured),
        (400, "SOME PARAMETERS ARE REQUIRED", Rejected),
        (400, "THE RECORD RAPID-1 DOES NOT EXIST IN CAPITALS", Rejected),
        (400, "THE API IS HAPPY", Rejected),
        (401, "PLEASE ENTER THE WOLKVOX-TOKEN", Unauthorized),
        (401, "anything", Unauthorized),
        (403, "PLEASE VALIDATE TOKEN", Unauthorized),
        (403, "TOKEN LIMIT EXCEEDED", QuotaExhausted),
        (403, "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN (2)", Throttled),
        (403, "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN (10)", Throttled),
        (403, "NOT ALLOWED FOR THIS MODULE", Unauthorized),
        (404, "NOT FOUND", Rejected),
        (404, "THE API YOU WANT TO CONSULT DOES NOT EXIST", Rejected),
        (405, "METHOD NOT ALLOWED", Rejected),
        (412, "PRECONDITION FAILED", Rejected),
        (413, "TOO LARGE", Rejected),
        (416, "RANGE NOT SATISFIABLE", Rejected),
        (417, "EXPECTATION FAILED", Rejected),
        (429, "TOO MANY REQUESTS", Throttled),
        (500, "INTERNAL ERROR", Unavailable),
        (503, "MAINTENANCE", Unavailable),
        (599, "x", Unavailable),
        (499, "x", Rejected),
        (600, "x", Rejected),
        (201, "CREATED?", Rejected),
        (302, "MOVED", Rejected),
        (0, "x", Rejected),
        (-200, "x", Rejected),
        (2_000, "x", Rejected),
    ] {
        check(code, msg, outcome);
    }
}

#[test]
fn only_a_403_of_unknown_text_asks_about_the_token() {
    for (code, msg, asks) in [
        (403, "PLEASE VALIDATE TOKEN", false),
        (403, "please Validate Token", false),
        (403, "TOKEN LIMIT EXCEEDED", false),
        (403, "SIMULTANEOUS", false),
        (403, "NOT ALLOWED FOR THIS MODULE", true),
        (403, "", true),
        (401, "NOT ALLOWED", false),
        (400, "NOT ALLOWED", false),
    ] {
        let body = json!({"code": code, "error": "FORBIDDEN", "msg": msg});
        assert_eq!(judge(200, body.to_string()).verify_token, asks, "{body}");
    }
    assert!(judge(403, r#"{"code": 403}"#).verify_token);
    assert!(!judge(403, "<html>").verify_token);
}

#[test]
fn without_a_code_the_status_decides() {
    for status in 100..=599 {
        let expected = match status {
            413 | 414 => Outcome::Rejected,
            429 => Outcome::Throttled,
            404 | 405 | 300..=399 => Outcome::Misconfigured,
            401 | 403 | 503 => Outcome::Unavailable,
            _ => Outcome::Unknown,
        };
        for body in ["", "<html><h1>Oops</h1></html>", "{}", r#"{"msg": "x"}"#] {
            let classified = judge(status, body);
            assert_eq!(classified.outcome, expected, "{status} {body}");
            assert_eq!(classified.http_status, Some(status));
            assert_eq!((classified.code, classified.message), (None, None));
            assert!(classified.reason.contains(&status.to_string()));
            assert_eq!(judge(status, r#"{"code": 200}"#).outcome, Outcome::Created);
        }
    }
}

const OK: &str = r#"{"code": 200, "error": "null", "msg": "Succesfully create record", "data": {"wolkvox_id": "1"}}"#;

#[test]
fn a_verdict_is_found_in_what_a_php_service_writes() {
    let big = "x".repeat(10 << 20);
    for (body, code) in [
        (OK.to_owned(), Some(200)),
        (OK.replace("200", "\"200\""), Some(200)),
        (OK.replace("200", "\" 200 \""), Some(200)),
        (OK.replace("200", "200.0"), Some(200)),
        (format!("\u{feff}{OK}"), Some(200)),
        (format!("<br />\n<b>Warning</b>: Undefined index: {{x}} in <b>/srv/a.php</b><br />\n{OK}"), Some(200)),
        (format!("<style>body {{ margin: 0 }}</style>{{}}\n{OK}"), Some(200)),
        (format!("{OK}<br />\n<b>Notice</b>: {{\"code\": 500}}"), Some(200)),
        (format!("{{\"debug\": true}}{OK}"), Some(200)),
        (format!("{OK}{big}"), Some(200)),
        (format!("{big}{OK}"), Some(200)),
        (OK.replace("\"1\"", &format!("\"{big}\"")), Some(200)),
        (OK.replace("\"1\"", &"[".repeat(100_000)).replace("}}", &("]".repeat(100_000) + "}}")), Some(200)),
        (OK.replace("Succesfully", "\\ud83d"), Some(200)),
        (OK.replace("\"1\"", "1e999"), Some(200)),
        (OK.replace("wolkvox_id", "code"), Some(200)),
        (r#"{"code": 200, "data": {"code": 500}}"#.to_owned(), Some(200)),
        (r#"{"data": {"code": 200}, "code": 500}"#.to_owned(), Some(500)),
        (r#"[{"code": 400}]"#.to_owned(), Some(400)),
    ] {
        let shown = shorten(&body, 200);
        assert_eq!(judge(200, &body).code, code, "{shown}");
        assert_eq!(judge(500, &body).code, code, "{shown}");
    }
}

#[test]
fn what_is_no_verdict_creates_nothing() {
    let broken = format!("{{\"error\": oops, \"data\": {OK}}}");
    for body in [
        "",
        " ",
        "null",
        "200",
        "[200]",
        "\u{feff}",
        "<html><body>200 OK</body></html>",
        "{\"code\": 200",
        "{\"code\": 200,",
        "{\"code\": 20",
        "{\"data\": {\"code\": 200}, \"error\": \"nu",
        "{\"data\": {\"code\": 200}",
        "{\"data\": [{\"code\": 200}",
        "{\"data\": {\"code\": 200}}",
        "{\"data\": {\"code\": 200}, oops}",
        "{ \"a\": oops, \"data\": {\"code\": 200}}",
        "{ a: {\"code\": 200}}",
        "function f() { return {\"code\": 200}; }",
        "{'code': 200}",
        "{\"Code\": 200}",
        "{\"status\": 200}",
        "{\"code\": null}",
        "{\"code\": true}",
        "{\"code\": [200]}",
        "{\"code\": {\"code\": 200}}",
        "{\"code\": 200.5}",
        "{\"code\": 1e400}",
        "{\"code\": 99999999999999999999}",
        "{\"code\": \"\"}",
        "{\"code\": \"two hundred\"}",
        "{\"code\": \"200 OK\"}",
        "{\"code\": \"0xC8\"}",
        "\"{\\\"code\\\": 200}\"",
        &broken,
    ] {
        let classified = judge(200, body);
        assert_eq!(classified.outcome, Outcome::Unknown, "{body}");
        assert_eq!(classified.code, None, "{body}");
    }
}

#[test]
fn what_was_said_is_quoted_as_far_as_it_can_be_read() {
    let long = "ñ".repeat(2_000);
    for (body, message) in [
        (json!({"code": 400, "error": "BAD REQUEST", "msg": "why"}).to_string(), Some("why")),
        (json!({"code": 400, "error": "BAD REQUEST", "msg": ""}).to_string(), Some("BAD REQUEST")),
        (json!({"code": 400, "error": "null", "msg": "null"}).to_string(), None),
        (json!({"code": 400, "error": ["x"], "msg": null}).to_string(), None),
        (json!({"code": 400}).to_string(), None),
        ("{\"code\": 400, \"msg\": \"a\\ud83d\"}".to_owned(), Some("a\\ud83d")),
        (json!({"code": 400, "msg": long}).to_string(), Some(&*shorten(&long, MAX_TEXT))),
    ] {
        assert_eq!(judge(400, &body).message.as_deref(), message, "{body}");
    }
    let latin1 = judge(400, b"{\"code\": 403, \"msg\": \"L\xcdMITE: token limit\"}");
    assert_eq!(latin1.outcome, Outcome::QuotaExhausted);
    assert_eq!(latin1.message.as_deref(), Some("L\u{fffd}MITE: token limit"));
}

#[test]
fn without_an_answer_it_matters_whether_the_request_left() {
    let why = "connection refused".to_owned();
    for (answer, outcome) in
        [(HttpResult::NotSent(why.clone()), Outcome::Unavailable), (HttpResult::NoAnswer(why.clone()), Outcome::Unknown)]
    {
        let classified = classify(&answer, Timestamp::UNIX_EPOCH);
        assert_eq!(classified.outcome, outcome);
        assert!(classified.reason.ends_with(&why));
        assert_eq!((classified.http_status, classified.code), (None, None));
    }
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now: Timestamp = "1994-11-06T08:49:07Z".parse().unwrap();
    for (text, seconds) in [
        ("0", Some(0)),
        ("120", Some(120)),
        (" 7 ", Some(7)),
        ("18446744073709551615", Some(u64::MAX)),
        ("99999999999999999999999", Some(u64::MAX)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
        ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
        ("Sun, 06 Nov 1983 08:49:37 GMT", Some(0)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Mon, 06 Nov 1994 08:49:37 GMT", None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("+5", None),
        ("1.5", None),
        ("5s", None),
        ("٣", None),
        ("1994-11-06T08:49:37Z", None),
    ] {
        for status in [200, 429, 503] {
            let reply =
                Reply { status, retry_after: Some(text.to_owned()), body: OK.replace("200", "403").into_bytes() };
            let asked = classify(&HttpResult::Reply(reply), now).retry_after;
            assert_eq!(asked, seconds.map(Duration::from_secs), "{text}");
        }
    }
    assert_eq!(judge(429, "").retry_after, None);
}

#[test]
fn a_token_that_the_crm_repeats_is_hidden() {
    let secret = "s3cret-token-0123456789";
    for msg in [
        format!("TOKEN {secret} IS NOT {secret}"),
        format!("{}{secret}", "x".repeat(MAX_TEXT - secret.len())),
        format!("{}{secret}", "x".repeat(MAX_TEXT - 10)),
        format!("{}{secret}", "x".repeat(MAX_TEXT - 4)),
        format!("{}{secret}{secret}", "x".repeat(MAX_TEXT - 30)),
    ] {
        let mut classified = judge(403, json!({"code": 403, "msg": msg}).to_string());
        classified.hide(secret);
        for text in [&classified.reason, classified.message.as_ref().unwrap()] {
            assert!(!text.contains("s3"), "{text}");
            assert!(!text.contains("s…"), "{text}");
            assert!(text.contains('['), "{text}");
        }
    }
    let mut harmless = judge(400, r#"{"code": 400, "msg": "why"}"#);
    let before = harmless.clone();
    harmless.hide(secret);
    assert_eq!(harmless, before);
}

#[test]
fn token_information_accepts_or_not_or_says_nothing() {
    for (body, accepted) in [
        (r#"{"code": "200", "error": "null", "data": {"token_limit": 4800}}"#, Some(true)),
        (r#"{"code": 401}"#, Some(false)),
        (r#"{"code": "403", "msg": "PLEASE VALIDATE TOKEN"}"#, Some(false)),
        (r#"{"code": 500}"#, None),
        ("<html>", None),
        ("", None),
    ] {
        let reply = Reply { status: 200, retry_after: None, body: body.into() };
        assert_eq!(token_accepted(&HttpResult::Reply(reply)), accepted, "{body}");
    }
    assert_eq!(token_accepted(&HttpResult::NoAnswer(String::new())), None);
}

/// Pieces of answers, put together in any order.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            "\"",
            ",",
            ":",
            "\"code\"",
            "200",
            "\"200\"",
            "{\"code\":200}",
            "{\"code\":500,",
            "\"data\":",
            "null",
            "<b>",
            "\\",
            " ",
            "\u{feff}",
            "{\"a\":",
            "1e999",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Whether some stretch of the text is a whole JSON object with the code 200 of its own.
fn holds_code_200(text: &str) -> bool {
    text.match_indices('{').any(|(from, _)| {
        text.match_indices('}').any(|(to, _)| {
            text.get(from..=to)
                .and_then(|piece| serde_json::from_str::<Members<'_>>(piece).ok())
                .and_then(|object| serde_json::from_str(object.get("code")?.get()).ok())
                .is_some_and(|code: Value| numeric(&code) == Some(200))
        })
    })
}

proptest! {
    #[test]
    fn whatever_comes_back_is_judged(body in bodies(), status in any::<u16>()) {
        let classified = judge(status, &body);
        if classified.outcome == Outcome::Created {
            prop_assert!(holds_code_200(&String::from_utf8_lossy(&body)));
            prop_assert_eq!(classified.code, Some(200));
        }
        prop_assert!(!classified.reason.is_empty());
    }

    #[test]
    fn a_verdict_that_is_cut_off_creates_nothing(
        msg in "\\PC{0,20}", nested in any::<bool>(), at in any::<prop::sample::Index>(), before in "[^{}]{0,20}",
    ) {
        let data = if nested { json!({"code": 200}) } else { json!({"wolkvox_id": msg}) };
        let whole = json!({"data": data, "msg": msg, "code": 200}).to_string();
        let end = whole.floor_char_boundary(at.index(whole.len()));
        let cut = format!("{before}{}", &whole[..end]);
        prop_assert_eq!(judge(200, &cut).outcome, Outcome::Unknown);
        prop_assert_eq!(judge(200, format!("{before}{whole}")).outcome, Outcome::Created);
    }

    #[test]
    fn no_retry_after_panics(text in "\\PC{0,40}") {
        let _ = parse_retry_after(&text, Timestamp::MIN);
    }
}

#[test]
fn the_quotas_reset_is_read_in_the_forms_that_it_may_have() {
    let information = |code: &str, data: &str| {
        let body = format!(r#"{{"code": {code}, "error": "null", "msg": "…", "data": {data}}}"#).into_bytes();
        HttpResult::Reply(Reply { status: 200, retry_after: None, body })
    };
    for (data, seconds) in [
        (r#"{"token_limit": 4800, "hours_to_restart": 3}"#, Some(10_800)),
        (r#"{"hours_to_rest": "1.5"}"#, Some(5_400)),
        (r#"{"hours_to_reset_": "02:30"}"#, Some(9_000)),
        (r#"{"hours_to_restore": "00:00:05"}"#, Some(5)),
        (r#"{"hours_to_restart": 24}"#, Some(86_400)),
        (r#"{"hours_to_restart": 25}"#, None),
        (r#"{"hours_to_restart": 0}"#, None),
        (r#"{"hours_to_restart": "00:00:00"}"#, None),
        (r#"{"hours_to_restart": 1e-12}"#, None),
        (r#"{"hours_to_restart": -1}"#, None),
        (r#"{"hours_to_restart": "soon"}"#, None),
        (r#"{"hours_to_restart": null}"#, None),
        (r#"{"hours_to_restart": "1:2:3:4"}"#, None),
        (r#"{"hours": 3}"#, None),
        ("null", None),
    ] {
        assert_eq!(quota_reset(&information("\"200\"", data)), seconds.map(Duration::from_secs), "{data}");
    }
    assert_eq!(quota_reset(&information("403", r#"{"hours_to_restart": 3}"#)), None);
    assert_eq!(quota_reset(&HttpResult::NoAnswer(String::new())), None);
}
