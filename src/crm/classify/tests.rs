//! Tests of the outcome of every answer that the CRM or a proxy can give.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::crm::verdict::MAX_TEXT;
use crate::json_object::Members;
use crate::message::failure::shorten;

fn classify_body(status: u16, body: impl AsRef<[u8]>) -> Classified {
    let reply = Reply { status, retry_after: None, is_cut: false, body: body.as_ref().to_vec() };
    classify(&HttpResult::Reply(reply), Timestamp::UNIX_EPOCH)
}

/// Classifies a body in the vendor's form with this code and text.
fn check(code: i64, msg: &str, outcome: Outcome) {
    for (status, code_written) in [
        (200, json!(code)),
        (200, json!(code.to_string())),
        // The code decides, whatever the status is. Only for code 200 an error status counts.
        (if code == 200 { 201 } else { 500 }, json!(code)),
    ] {
        for msg in [msg.to_owned(), msg.to_lowercase(), format!(" {msg}. ")] {
            let body = json!({"code": code_written, "error": "ERROR", "msg": msg});
            let classified = classify_body(status, body.to_string());
            assert_eq!(classified.outcome, outcome, "{body}");
            assert_eq!(classified.code, Some(code), "{body}");
            assert_eq!(classified.http_status, Some(status), "{body}");
            assert_eq!(classified.message.as_deref(), Some(msg.trim()), "{body}");
            assert!(classified.reason.contains(msg.trim()), "{body}");
        }
    }
}

#[test]
fn documented_codes_and_texts_have_their_outcome() {
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
        (403, "PLEASE  VALIDATE\nTOKEN", Unauthorized),
        (403, "NOT ALLOWED FOR THIS MODULE", Unavailable),
        (403, "THE TOKEN IS NOT KNOWN", Unavailable),
        (403, "SERVER IN MAINTENANCE", Unavailable),
        (403, "YOUR IP IS NOT ALLOWED", Unavailable),
        (100, "CONTINUE", Rejected),
        (404, "NOT FOUND", Rejected),
        (404, "THE API YOU WANT TO CONSULT DOES NOT EXIST", Rejected),
        (405, "METHOD NOT ALLOWED", Rejected),
        (412, "PRECONDITION FAILED", Rejected),
        (413, "TOO LARGE", Rejected),
        (416, "RANGE NOT SATISFIABLE", Rejected),
        (417, "EXPECTATION FAILED", Rejected),
        (429, "TOO MANY REQUESTS", Throttled),
        (500, "INTERNAL ERROR", Unknown),
        (502, "BAD GATEWAY", Unknown),
        (503, "MAINTENANCE", Unavailable),
        (504, "GATEWAY TIMEOUT", Unknown),
        (599, "x", Unknown),
        (499, "x", Rejected),
        (201, "CREATED?", Rejected),
        (302, "MOVED", Rejected),
    ] {
        check(code, msg, outcome);
    }
}

#[test]
fn status_decides_when_there_is_no_verdict() {
    for status in 100..=599 {
        let expected = match status {
            413 | 414 => Outcome::Rejected,
            429 => Outcome::Throttled,
            404 | 405 | 300..=399 => Outcome::Misconfigured,
            401 | 403 | 407 | 503 => Outcome::Unavailable,
            _ => Outcome::Unknown,
        };
        for body in ["", "<html><h1>Oops</h1></html>", "{}", r#"{"msg": "x"}"#, r#"{"code": 14, "message": "x"}"#] {
            let classified = classify_body(status, body);
            assert_eq!(classified.outcome, expected, "{status} {body}");
            assert_eq!(classified.http_status, Some(status));
            assert_eq!((classified.code, classified.message), (None, None));
            assert!(classified.reason.contains(&status.to_string()));
        }
        let contradicted = if status < 300 { Outcome::Created } else { Outcome::Unknown };
        assert_eq!(classify_body(status, OK).outcome, contradicted, "{status}");
    }
}

const OK: &str = r#"{"code": 200, "error": "null", "msg": "Succesfully create record", "data": {"wolkvox_id": "1"}}"#;

/// Bodies that are too large for a file in `tests/cases/answers`, which has all other cases.
#[test]
fn verdict_is_found_in_large_bodies() {
    let big = "x".repeat(10 << 20);
    for (body, code) in [
        (format!("{big}{OK}"), Some(200)),
        (format!("{OK}{big}"), None),
        (OK.replace("\"1\"", &format!("\"{big}\"")), Some(200)),
        (OK.replace("\"1\"", &"[".repeat(100_000)).replace("}}", &("]".repeat(100_000) + "}}")), Some(200)),
        (OK.replace("\"1\"", &"[".repeat(100_000)), None),
        ("{}".repeat(500_000) + OK, Some(200)),
        ("}".repeat(500_000) + OK, Some(200)),
        ("{".repeat(500_000) + OK, None),
        ("[".repeat(500_000) + OK, None),
    ] {
        assert_eq!(classify_body(200, &body).code, code, "{}", shorten(&body, 200));
    }
}

#[test]
fn crm_text_is_read_from_msg_or_error() {
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
        assert_eq!(classify_body(400, &body).message.as_deref(), message, "{body}");
    }
    let latin1 = classify_body(400, b"{\"code\": 403, \"msg\": \"L\xcdMITE: token limit\"}");
    assert_eq!(latin1.outcome, Outcome::QuotaExhausted);
    assert_eq!(latin1.message.as_deref(), Some("L\u{fffd}MITE: token limit"));
}

#[test]
fn missing_answer_is_unavailable_or_unknown_by_whether_it_was_sent() {
    let why = "connection refused".to_owned();
    for (answer, outcome) in [
        (HttpResult::NotSent(why.clone()), Outcome::Unavailable),
        (HttpResult::NoAnswer(why.clone()), Outcome::Unknown),
    ] {
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
            let reply = Reply {
                status,
                retry_after: Some(text.to_owned()),
                is_cut: false,
                body: OK.replace("200", "403").into_bytes(),
            };
            let asked = classify(&HttpResult::Reply(reply), now).retry_after;
            assert_eq!(asked, seconds.map(Duration::from_secs), "{text}");
        }
    }
    assert_eq!(classify_body(429, "").retry_after, None);
}

#[test]
fn token_that_the_crm_repeats_is_hidden() {
    let secret = "s3cret-token-0123456789";
    for msg in [
        format!("TOKEN {secret} IS NOT {secret}"),
        format!("{}{secret}", "x".repeat(MAX_TEXT - secret.len())),
        format!("{}{secret}", "x".repeat(MAX_TEXT - 10)),
        format!("{}{secret}", "x".repeat(MAX_TEXT - 4)),
        format!("{}{secret}{secret}", "x".repeat(MAX_TEXT - 30)),
    ] {
        let mut classified = classify_body(403, json!({"code": 403, "msg": msg}).to_string());
        classified.hide(secret);
        for text in [&classified.reason, classified.message.as_ref().unwrap()] {
            assert!(!text.contains("s3"), "{text}");
            assert!(!text.contains("s…"), "{text}");
            assert!(text.contains('['), "{text}");
        }
    }
    let mut harmless = classify_body(400, r#"{"code": 400, "msg": "why"}"#);
    let before = harmless.clone();
    harmless.hide(secret);
    assert_eq!(harmless, before);
}

/// Answers built from pieces in any order.
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
            "{\"code\":200,\"msg\":1}",
            "\"msg\":",
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

/// Whether the text ends in a complete JSON object whose own code is 200.
fn ends_in_code_200(text: &str) -> bool {
    text.match_indices('{').any(|(from, _)| {
        text.get(from..)
            .and_then(|piece| serde_json::from_str::<Members<'_>>(piece).ok())
            .and_then(|object| serde_json::from_str(object.get("code")?.get()).ok())
            .is_some_and(|code: Value| numeric(&code) == Some(200))
    })
}

proptest! {
    #[test]
    fn classify_accepts_any_answer(body in bodies(), status in any::<u16>()) {
        let classified = classify_body(status, &body);
        if classified.outcome == Outcome::Created {
            prop_assert!(status < 300 && ends_in_code_200(&String::from_utf8_lossy(&body)));
            prop_assert_eq!(classified.code, Some(200));
        }
        prop_assert!(!classified.reason.is_empty());
    }

    #[test]
    fn verdict_that_is_cut_off_is_not_created(
        msg in "\\PC{0,20}", nested in any::<bool>(), at in any::<prop::sample::Index>(), before in "[^{}\\[\\]<\\x00]{0,20}",
    ) {
        let data = if nested { json!({"code": 200}) } else { json!({"wolkvox_id": msg}) };
        let whole = json!({"data": data, "msg": msg, "code": 200}).to_string();
        let end = whole.floor_char_boundary(at.index(whole.len()));
        let cut = format!("{before}{}", &whole[..end]);
        prop_assert_eq!(classify_body(200, &cut).outcome, Outcome::Unknown);
        prop_assert_eq!(classify_body(200, format!("{before}{whole}")).outcome, Outcome::Created);
    }

    #[test]
    fn any_retry_after_header_is_parsed_without_a_panic(text in "\\PC{0,40}") {
        let _ = parse_retry_after(&text, Timestamp::MIN);
    }
}

#[test]
fn quota_reset_is_read_in_every_documented_form() {
    let information = |code: &str, data: &str| {
        let body = format!(r#"{{"code": {code}, "error": "null", "msg": "…", "data": {data}}}"#).into_bytes();
        HttpResult::Reply(Reply { status: 200, retry_after: None, is_cut: false, body })
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
