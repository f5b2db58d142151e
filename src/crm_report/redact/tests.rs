//! Tests of what a report shows of answers and headers, and what it hides.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::{Config, Sources};
use crate::crm_report::ReportOptions;
use crate::message::task::decode;

const OPERATION: &str = "qx";
const OWNER: &str = "ADMIN_@qx";

fn config() -> Config {
    let environment =
        [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", OPERATION), ("WTW_CRM_TOKENS", "s3cret,second")];
    let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
    let sources = Sources { environment, ..Sources::default() };
    Config::load(&sources, &["crm.tokens"]).unwrap().config
}

fn plan(config: &Config, record: &str) -> ReportPlan {
    let message = json!({"name_module": "Ventas", "id_record": record, "wolkvox_owner": OWNER}).to_string();
    let options = ReportOptions { search_for: std::time::Duration::ZERO, try_missing_field: false };
    let decoded = decode(message.as_bytes(), config.task.unknown_fields).unwrap();
    ReportPlan::new(config, decoded, "ABC", "id-1", jiff::Timestamp::UNIX_EPOCH, options).unwrap()
}

/// Gives a redactor of the test's account to `test`.
fn with_redactor<T>(record: &str, full: bool, test: impl FnOnce(&Redactor<'_>, &ReportPlan) -> T) -> T {
    let config = config();
    let plan = plan(&config, record);
    let run = Run::default();
    let secrets = Secrets::new(&config.crm, &run);
    test(&Redactor::new(&plan, &config.crm, &run, &secrets, full), &plan)
}

fn body(record: &str, body: &str) -> String {
    with_redactor(record, false, |redactor, _| redactor.body(body.as_bytes(), true).text)
}

#[test]
fn headers_are_shown_where_they_are_known_and_never_secret() {
    for (name, value, shown, full) in [
        ("set-cookie", "PHPSESSID=abc; path=/", REMOVED, REMOVED),
        ("www-authenticate", "Basic realm=x", REMOVED, REMOVED),
        ("x-api-key", "abc", REMOVED, REMOVED),
        ("x-debug", "PHPSESSID=abc", "[text of 13 characters]", "PHPSESSID=[removed]"),
        ("x-request", "s3cret", "[text of 6 characters]", "[token]"),
        ("x-client-ip", "10.1.2.3", "[text of 8 characters]", "10.1.2.3"),
        ("server", "nginx (qx) S3CRET", "nginx ([operation]) [token]", "nginx (qx) [token]"),
        ("content-length", "1234", "1234", "1234"),
        ("date", "Sun, 29 Nov 2026 17:59:00 GMT", "Sun, 29 Nov 2026 17:59:00 GMT", "Sun, 29 Nov 2026 17:59:00 GMT"),
        ("content-type", "text/html; charset=UTF-8", "text/html; charset=UTF-8", "text/html; charset=UTF-8"),
    ] {
        let of = |full| with_redactor("64b1f0", full, |redactor, _| redactor.header(name, value)[1].clone());
        assert_eq!((of(false).as_str(), of(true).as_str()), (shown, full), "{name}: {value}");
    }
}

#[test]
fn words_of_the_vendors_pages_are_shown() {
    for text in [
        "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN",
        "PLEASE VALIDATE TOKEN",
        "SOME PARAMETERS ARE REQUIRED",
        "THE API YOU WANT TO CONSULT DOES NOT EXIST",
        "TOKEN LIMIT EXCEEDED",
        "Succesfully create record",
        "1 records were are found",
    ] {
        assert_eq!(with_redactor("64b1f0", false, |redactor, _| redactor.text(text)), text);
    }
}

#[test]
fn header_names_are_shown_by_their_known_words() {
    for (name, shown) in [
        ("set-cookie", "set-cookie"),
        ("x-request-id", "x-request-id"),
        ("x-acme-gómez", "x-[4 characters]-[5 characters]"),
        ("x-s3cret", "x-[6 characters]"),
    ] {
        assert_eq!(with_redactor("64b1f0", false, |redactor, _| redactor.header(name, "")[0].clone()), shown);
    }
}

#[test]
fn redactor_keeps_words_of_refusals_and_shows_only_the_length_of_others() {
    for (text, shown) in [
        ("PLEASE VALIDATE TOKEN", "PLEASE VALIDATE TOKEN"),
        (
            "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN (2)",
            "EXCEEDS THE LIMIT OF SIMULTANEOUS REQUESTS PER TOKEN (2)",
        ),
        ("OWNER ADMIN_@QX OF QX IS NOT IN 64b1f0", "OWNER [wolkvox_owner] OF [operation] IS NOT IN [id_record]"),
        ("qxland 64b1f07 Ana", "[6 characters] [7 characters] [3 characters]"),
        ("call 300 123 4567 or +57", "[4 characters] [10 digits] or +57"),
        ("MODULE Ventas", "MODULE [name_module]"),
        ("<b>Warning</b> on line <b>42</b>", "<b>Warning</b> on line <b>42</b>"),
        (
            "the proxy http://10.1.2.3:3128 (from HTTP_PROXY): operation timed out",
            "the proxy http://[9 digits] (from HTTP_PROXY): operation timed out",
        ),
        (
            "failed to lookup address information: Name or service not known",
            "failed to lookup address information: Name or service not known",
        ),
        ("el campo no existe: teléfono", "el campo no existe: [8 characters]"),
        ("s\0e\0c", "[5 characters]"),
        ("a\u{e0061}b \u{202e}", "[3 characters] [1 characters]"),
    ] {
        assert_eq!(with_redactor("64b1f0", false, |redactor, _| redactor.text(text)), shown, "{text}");
        let full = with_redactor("64b1f0", true, |redactor, _| redactor.text(text));
        assert_eq!(full, text);
    }
}

#[test]
fn short_record_is_replaced_as_a_value_and_as_a_number() {
    let shown = body("2", r#"{"code":200,"msg":"2 records in 20","data":{"id_record":2,"record":"2"}}"#);
    let expected = json!({
        "code": 200, "msg": "[id_record] records in 20", "data": {"id_record": "[number of 1 characters]", "record": "[id_record]"},
    });
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), expected);
}

#[test]
fn redactor_shows_only_the_test_task_in_a_search_of_any_form() {
    let (name, description) =
        with_redactor("64b1f0", false, |_, plan| (plan.name.clone(), plan.field("description").unwrap().to_owned()));
    let own = json!({
        "wolkvox_id": "a", "name": name, "wolkvox_fecha_creacion": "2026-11-29 10:00:00", "changed": "2026-11-29 10:00:00",
        "telefono": "3001234567", "movil": 3001234567_u64, "wolkvox_owner": OWNER, "done": false, "description": description,
        "session_id": "x", "name_module": "Ventas",
    });
    let shown = json!({
        "wolkvox_id": "[text of 1 characters]", "name": name, "wolkvox_fecha_creacion": "2026-11-29 10:00:00",
        "[name 1 of 7 characters]": "2026-11-29 10:00:00", "[name 8 of 8 characters]": "[text of 10 characters]",
        "[name 3 of 4 characters]": false, "[name 4 of 5 characters]": "[number of 10 characters]",
        "wolkvox_owner": "[wolkvox_owner]", "description": description, "session_id": REMOVED, "name_module": "[name_module]",
    });
    for (given, expected, others) in [
        (json!({"data": [{"name": "Call Ana Gómez"}, own, {"name": "x"}]}), json!({"data": [shown]}), 2),
        (json!({"data": {"rows": [{"n": "Ana"}, own]}}), json!({"data": {"rows": [shown]}}), 1),
        (
            json!({"data": {"64b1f0": {"name": "Ana", "at": "2026-11-29 10:00:00"}, "Ana Gómez": own}}),
            json!({"data": {
                "[name 1 of 6 characters]": {"name": "[text of 3 characters]", "at": "[text of 19 characters]"},
                "[name 2 of 9 characters]": shown,
            }}),
            0,
        ),
        (json!({"data": ["Ana", ["Ben"]]}), json!({"data": ["[text of 3 characters]", ["[text of 3 characters]"]]}), 0),
        (json!([{"name": "Ana"}, own]), json!([shown]), 1),
    ] {
        let redacted = with_redactor("64b1f0", false, |redactor, _| redactor.body(given.to_string().as_bytes(), true));
        assert_eq!(serde_json::from_str::<Value>(&redacted.text).unwrap(), expected, "{given}");
        assert_eq!(redacted.left_out, others, "{given}");
    }
}

#[test]
fn repeated_members_cut_json_and_pages_show_no_value() {
    for (given, shown) in [
        (r#"{"code": 200, "msg": "Ana", "msg": "ok"}"#, r#"{"code":200,"msg":"ok"}"#),
        (r#"{"code": 200, "msg": "An"#, "[text of 24 characters]"),
        (
            r#"{"a": "Ana"} <b>Notice</b> {"code": 200}"#,
            r#"{"[1 characters]": "[3 characters]"} <b>Notice</b> {"code":200}"#,
        ),
        ("\u{feff}{\"code\": 200}", "\u{feff}{\"code\":200}"),
        ("<h1>403 Forbidden</h1> for 10.11.12.13", "<h1>403 Forbidden</h1> for [8 digits]"),
    ] {
        assert_eq!(body("64b1f0", given), shown);
    }
}

#[test]
fn request_shows_the_form_of_the_task_and_no_own_value() {
    let config = config();
    let plan = plan(&config, "64b1f0");
    let shown = with_redactor("64b1f0", false, |redactor, _| redactor.request(plan.insert().body().unwrap()));
    for part in ["[operation]", "[id_record]", "[wolkvox_owner]", "[name_module]", "áéíóú", &plan.name] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert!(!shown.contains("\"qx\"") && !shown.contains("Ventas"), "{shown}");
}

#[test]
fn long_body_is_cut_and_says_so() {
    let shown = with_redactor("64b1f0", true, |redactor, _| redactor.body("é".repeat(MAX_BODY).as_bytes(), false));
    assert_eq!((shown.text.len(), shown.is_whole), (MAX_BODY, false));
}

/// The ways in which an answer may write a value.
fn spelling() -> impl Strategy<Value = fn(&str) -> String> {
    let ways: [fn(&str) -> String; 6] = [
        str::to_owned,
        str::to_uppercase,
        |text| text.bytes().map(|byte| format!("%{byte:02x}")).collect(),
        |text| STANDARD.encode(text),
        |text| format!("&#{};{}", u32::from(text.chars().next().unwrap()), text.get(1..).unwrap()),
        |text| text.bytes().map(|byte| format!("\\u{byte:04x}")).collect(),
    ];
    prop::sample::select(ways.to_vec())
}

proptest! {
    /// Wherever a personal value stands in an answer, and however it is written: it is not in the report.
    #[test]
    fn no_personal_value_is_left_in_an_answer(
        value in prop::sample::select(vec!["s3cret", "second", "Gómez-Ana", "zx81zx", "3001234567", OPERATION]),
        way in spelling(),
        place in 0..8_usize,
        is_search in any::<bool>(),
    ) {
        let value = if value == "zx81zx" { value.to_owned() } else { way(value) };
        let json = match place {
            0 => json!({"code": 200, "msg": format!("NO RECORD {value} HERE")}).to_string(),
            1 => json!({"code": 200, "data": {value.clone(): {"id": value}}}).to_string(),
            2 => json!({"data": [{"name": value}], "error": value}).to_string(),
            3 => json!([[value], {"rows": value}]).to_string(),
            4 => format!("<p>{value}</p>"),
            5 => format!("{{\"code\": \"{value}"),
            6 => format!("Notice: {value} {{\"code\": 200}}"),
            _ => json!({"description": format!("{value} x"), "code": value, "token_limit": value}).to_string(),
        };
        let shown = with_redactor("zx81zx", false, |redactor, _| redactor.body(json.as_bytes(), is_search).text);
        prop_assert!(!shown.to_lowercase().contains(&value.to_lowercase()), "{json}: {shown}");
    }
}

/// The id of the insert's answer is enough: the record may have no name, or have it in an object within it.
#[test]
fn test_task_is_recognised_by_its_id_and_when_nested() {
    let name = with_redactor("64b1f0", false, |_, plan| plan.name.clone());
    let (date, id) = ("2026-11-29 10:00:00", 6_593_042);
    for (own, shown) in [
        (json!({"wolkvox_id": id, "due": date}), json!({"wolkvox_id": id, "[name 1 of 3 characters]": date})),
        (
            json!({"wolkvox_fecha_creacion": date, "fields": {"name": name}, "parent": {"name": "Ana", "due": date}}),
            json!({"wolkvox_fecha_creacion": date, "fields": {"name": name}, "[name 2 of 6 characters]": {
                "name": "[text of 3 characters]", "[name 1 of 3 characters]": "[text of 19 characters]",
            }}),
        ),
        (json!({"name": name.to_uppercase()}), json!({"name": name.to_uppercase()})),
    ] {
        let given = json!({"data": [{"name": "Ana", "wolkvox_id": 7}, own]}).to_string();
        let redacted = with_redactor("64b1f0", false, |redactor, plan| {
            let own = TestTask::new([plan.name.clone()], [id.to_string()]);
            let redactor = Redactor {
                own,
                ids: vec![id.to_string()],
                words: Words::new(Vec::new(), std::iter::empty()),
                ..*redactor
            };
            redactor.body(given.as_bytes(), true)
        });
        assert_eq!(serde_json::from_str::<Value>(&redacted.text).unwrap(), json!({"data": [shown]}), "{given}");
        assert_eq!(redacted.left_out, 1);
    }
}
