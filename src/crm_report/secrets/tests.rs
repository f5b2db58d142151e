//! Tests that secrets are removed in every encoding.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::config::{Config, Sources};

fn secrets(tokens: &str, proxy: &str) -> Secrets {
    let environment = [
        ("WTW_CRM_SERVER", "http://crm.test"),
        ("WTW_CRM_OPERATION", "acme"),
        ("WTW_CRM_TOKENS", tokens),
        ("HTTP_PROXY", proxy),
    ];
    let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
    let sources = Sources { environment, ..Sources::default() };
    Secrets::new(&Config::load(&sources, &["crm.tokens"]).unwrap().config.crm, &Run::default())
}

#[test]
fn token_is_removed_in_every_case_and_encoding() {
    let token = r#"s3cret/"tok\en"#;
    let secrets = secrets(token, "");
    let percent: String = token.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let twice = percent.replace('%', "%25");
    let escaped: String = token.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let html: String = token.bytes().map(|byte| format!("&#{byte};")).collect();
    let hex: String = token.bytes().map(|byte| format!("{byte:02x}")).collect();
    let json = json!(token).to_string();
    let json_in_json = json!(json).to_string();
    for spelling in [token, &token.to_uppercase(), &percent, &twice, &escaped, &html, &hex, &json, &json_in_json] {
        let shown = secrets.scrub(&format!("before {spelling} after"));
        assert!(shown.contains("[token]") && shown.ends_with(" after"), "{spelling}: {shown}");
        assert!(!shown.to_lowercase().contains("s3cret"), "{spelling}: {shown}");
    }
    for before in ["", "a", "ab", "user:"] {
        for behind in ["", "z", "zz"] {
            let encoded = STANDARD.encode(format!("{before}{token}{behind}"));
            let shown = secrets.scrub(&encoded);
            assert!(shown.contains("[token]") && shown.len() < 20, "{before}{behind}: {shown}");
        }
    }
}

#[test]
fn each_token_is_removed_also_where_one_begins_another() {
    let secrets = secrets("alpha,alpha-long-2,beta", "");
    assert_eq!(secrets.scrub("alpha-long-2 alpha BETA"), "[token] [token] [token]");
}

#[test]
fn proxy_user_and_password_are_removed() {
    let secrets = secrets("alpha", "http://ben%40acme:pass%2Fword@127.0.0.1:3128");
    assert_eq!(secrets.scrub("ben@acme pass/word"), "[removed] [removed]");
}

#[test]
fn members_with_a_secret_name_are_removed_at_any_depth() {
    let secrets = secrets("alpha", "");
    let value = json!({
        "data": [{"Token": "x", "api_key": {"a": 1}, "deep": {"SET-COOKIE": ["y"], "Authorization": 7}}],
        "token_limit": 4800, "msg": "alpha",
    });
    let expected = json!({
        "data": [{"Token": REMOVED, "api_key": REMOVED, "deep": {"SET-COOKIE": REMOVED, "Authorization": REMOVED}}],
        "token_limit": 4800, "msg": "[token]",
    });
    assert_eq!(secrets.scrub_json(value), expected);
}

#[test]
fn values_behind_a_secret_name_are_removed_from_text() {
    let secrets = secrets("alpha", "");
    for (text, shown) in [
        ("PHPSESSID=abc; path=/", "PHPSESSID=[removed]; path=/"),
        (r#"{"password" : "p w", "a": 1}"#, r#"{"password" : "[removed]", "a": 1}"#),
        (r#"{\"access_token\":\"x\"}"#, r#"{\"access_token\":\"[removed]\"}"#),
        ("Authorization: Bearer abc\r\nx", "Authorization: [removed]\r\nx"),
        (r#""tokens": ["abc"]"#, r#""tokens": ["[removed]"]"#),
        (r#""token_limit": 4800"#, r#""token_limit": 4800"#),
        ("PLEASE VALIDATE TOKEN", "PLEASE VALIDATE TOKEN"),
        ("token: alpha", "token: [token]"),
    ] {
        assert_eq!(secrets.scrub(text), shown);
    }
}
