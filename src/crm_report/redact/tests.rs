use secrecy::SecretString;
use serde_json::json;

use super::*;
use crate::config::{Config, Sources};
use crate::crm_report::Wishes;
use crate::message::task::decode;

fn config() -> Config {
    let environment =
        [("WTW_CRM_SERVER", "crm.test"), ("WTW_CRM_OPERATION", "acme"), ("WTW_CRM_TOKENS", r#"s3cret/"tok\en"#)];
    let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
    let sources = Sources { environment, ..Sources::default() };
    Config::load(&sources, &["crm.tokens"]).unwrap().config
}

fn plan(config: &Config, record: &str) -> Plan {
    let message = json!({"name_module": "cases", "id_record": record, "wolkvox_owner": "ADMIN_@acme"}).to_string();
    let wishes = Wishes { search_for: std::time::Duration::ZERO, try_missing_field: false };
    let decoded = decode(message.as_bytes(), config.task.unknown_fields).unwrap();
    Plan::new(config, decoded, "ABC", jiff::Timestamp::UNIX_EPOCH, wishes).unwrap()
}

#[test]
fn secrets_go_in_every_spelling_and_whatever_is_asked_for() {
    let config = config();
    let plan = plan(&config, "64b1f0");
    let token: &SecretString = &config.crm.tokens[0];
    for full in [false, true] {
        let redactor = Redactor::new(&plan, &config.crm, full);
        for spelling in spellings(token) {
            let bodies = [
                format!("bad {spelling}!"),
                format!("{{\"msg\":\"{}\"}}", spelling.replace('\\', "\\\\").replace('"', "\\\"")),
                format!("<b>{spelling}</b>{{\"code\":200}}"),
            ];
            for body in bodies {
                let shown = redactor.body(body.as_bytes()).text;
                assert!(!shown.contains("s3cret") && shown.contains("[token]"), "{body}: {shown}");
            }
        }
        for (name, value, shown) in [
            ("set-cookie", "PHPSESSID=abc; path=/", "PHPSESSID=[removed]"),
            ("www-authenticate", "Basic realm=x", "[removed]"),
            ("x-api-key", "abc", "[removed]"),
            ("server", "nginx", "nginx"),
        ] {
            assert_eq!(redactor.header(name, value), shown, "{name}");
        }
    }
}

#[test]
fn personal_data_goes_unless_it_is_asked_for() {
    let config = config();
    let plan = plan(&config, "64b1f0");
    let body = json!({"msg": "OWNER ADMIN_@acme OF acme IS NOT IN 64b1f0, acmeland 64b1f07", "data": {"id": "acme"}});
    let redacted = Redactor::new(&plan, &config.crm, false).body(body.to_string().as_bytes()).text;
    let expected = json!({
        "msg": "OWNER [wolkvox_owner] OF [operation] IS NOT IN [id_record], acmeland 64b1f07", "data": {"id": "[operation]"},
    });
    assert_eq!(serde_json::from_str::<Value>(&redacted).unwrap(), expected);
    let full = Redactor::new(&plan, &config.crm, true).body(body.to_string().as_bytes()).text;
    assert_eq!(full, body.to_string());
}

#[test]
fn a_short_record_is_replaced_as_a_value_and_not_inside_numbers() {
    let config = config();
    let plan = plan(&config, "2");
    let body = r#"{"code":2,"msg":"2 records in 20","data":{"id_record":2,"record":"2"}}"#;
    let shown = Redactor::new(&plan, &config.crm, false).body(body.as_bytes()).text;
    let expected =
        json!({"code": 2, "msg": "2 records in 20", "data": {"id_record": "[id_record]", "record": "[id_record]"}});
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), expected);
}

#[test]
fn tasks_of_others_and_unknown_fields_are_left_out() {
    let config = config();
    let plan = plan(&config, "64b1f0");
    let own = json!({
        "wolkvox_id": "a", "name": plan.name, "wolkvox_fecha_creacion": "2026-11-29 10:00:00", "changed": "2026-11-29 10:00:00",
        "telefono": "3001234567", "movil": 3001234567_u64, "wolkvox_owner": "ADMIN_@acme", "done": false,
    });
    let body = json!({"code": "200", "data": [{"name": "Call Ana Gómez"}, own, {"name": "x"}]}).to_string();
    let shown = Redactor::new(&plan, &config.crm, false).body(body.as_bytes());
    let expected = json!({"code": "200", "data": [{
        "wolkvox_id": "a", "name": plan.name, "wolkvox_fecha_creacion": "2026-11-29 10:00:00", "changed": "2026-11-29 10:00:00",
        "telefono": "[text of 10 characters]", "movil": "[number of 10 digits]", "wolkvox_owner": "[wolkvox_owner]",
        "done": false,
    }]});
    assert_eq!((serde_json::from_str::<Value>(&shown.text).unwrap(), shown.left_out), (expected, 2));
}

#[test]
fn a_long_body_is_cut_and_says_so() {
    let config = config();
    let plan = plan(&config, "64b1f0");
    let shown = Redactor::new(&plan, &config.crm, false).body("é".repeat(MAX_BODY).as_bytes());
    assert_eq!((shown.text.len(), shown.is_whole), (MAX_BODY, false));
}
