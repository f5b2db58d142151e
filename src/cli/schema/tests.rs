//! Tests that the JSON Schema and the decoder agree on which messages are valid.

use jsonschema::Validator;
use proptest::prelude::*;

use super::*;
use crate::message::payload::tests::dates::{BLANKS, NO_DATES, NO_FORMS};
use crate::message::payload::tests::{
    has_the_vendors_form, least, map, mapping, messages, refused, with, wrong_fields,
};

fn validator() -> Validator {
    jsonschema::validator_for(&schema()).unwrap()
}

#[test]
fn schema_is_a_valid_json_schema() {
    assert!(jsonschema::meta::is_valid(&schema()));
    let properties = schema()["properties"].as_object().unwrap().clone();
    let mut names: Vec<&String> = properties.keys().collect();
    let mut known = crate::message::task::FIELDS;
    names.sort_unstable();
    known.sort_unstable();
    assert_eq!(names, known);
}

#[test]
fn schema_refuses_what_the_worker_refuses_where_it_can() {
    let validator = validator();
    for case in refused() {
        // A parser refuses a body that it cannot read.
        let Ok(message) = serde_json::from_str::<Value>(&case.text()) else {
            continue;
        };
        assert_eq!(validator.is_valid(&message), case.beyond_schema.is_some(), "{}", case.case);
    }
    for (field, value) in wrong_fields() {
        assert!(!validator.is_valid(&with(&json!({field: value}))), "{field} {value}");
    }
    for field in REQUIRED {
        let mut missing = least();
        missing.remove(field);
        assert!(!validator.is_valid(&Value::Object(missing)), "{field}");
        assert!(!validator.is_valid(&with(&json!({field: null}))), "{field}");
    }
}

#[test]
fn date_pattern_accepts_valid_forms_only() {
    let validator = validator();
    let accepts = |text: &str| validator.is_valid(&with(&json!({"completion_date": text})));
    for text in NO_FORMS.into_iter().chain(BLANKS) {
        assert!(!accepts(text), "{text}");
    }
    // The pattern refuses a month, an hour or a second out of range. It does not know how many days a month has.
    let beyond: Vec<&str> = NO_DATES.into_iter().filter(|text| accepts(text)).collect();
    assert_eq!(
        beyond,
        [
            "2026-02-29 00:00:00",
            "2026-02-30 00:00:00",
            "1900-02-29 00:00:00",
            "2026-04-31 00:00:00",
            "2026-02-30T00:00:00Z",
            "2026-02-30T00:00:00",
            "2026-02-30T00:00:00.5-05",
        ]
    );
}

#[test]
fn schema_accepts_optional_fields_as_null_or_absent() {
    let validator = validator();
    assert!(validator.is_valid(&Value::Object(least())));
    for field in ["description", "status", "priority", "remember", "reminder_date"] {
        assert!(validator.is_valid(&with(&json!({field: null}))), "{field}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn message_that_the_schema_accepts_can_be_mapped(text in messages()) {
        let Ok(message) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        let mapped = map(&mapping("UTC"), message.to_string().as_bytes());
        match (validator().is_valid(&message), mapped) {
            (true, Ok(fields)) => has_the_vendors_form(&fields),
            (true, Err(failure)) => {
                let beyond = ["a date or time that does not exist", "a date out of range", "must not be after completion_date", "-0.0; a string or an integer"];
                prop_assert!(beyond.iter().any(|words| failure.message.contains(words)), "{}", failure);
                // In JSON Schema 1.0 is an integer.
                let fields = ["completion_date: ", "reminder_date: ", "id_record: "];
                prop_assert!(fields.iter().any(|field| failure.message.starts_with(field)), "{}", failure);
            }
            (false, Ok(_)) => prop_assert!(false, "{text} maps"),
            (false, Err(_)) => {}
        }
    }
}
