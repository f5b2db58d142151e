//! Filters and operators return what Jinja's documentation says, wherever docs/mapping.md does not say otherwise.

use super::*;

const EVENT: &str = r#"{"yes": true, "half": 2.5, "minus": -7, "equal": [1, 1.0, 2, 1e0], "letters": ["b", "A", "a"], "gap": [1, null, null],
    "name": "it's a_b-c d.e (f", "whole": 9007199254740993, "objects": [{}], "most": 1e400, "least": -1e400}"#;

/// Templates with their text, or a part of the error.
const TEMPLATES: &[(&str, Result<&str, &str>)] = &[
    ("{{ body.yes | int }} {{ body.yes | float }}", Ok("1 1.0")),
    ("{{ '.5' | float }} {{ '+1.50' | float }} {{ '17.10' | float }} {{ '-.5' | int }}", Ok("0.5 1.5 17.10 0")),
    ("{{ body.half | round }} {{ 3.5 | round }} {{ -2.5 | round }} {{ 2.675 | round(2) }}", Ok("2.0 4.0 -2.0 2.67")),
    ("{{ 1.5e300 | round(15) }} {{ -0.0 | abs }} {{ -1.5 | abs }}", Ok("1.5e300 0.0 1.5")),
    ("{{ 7 // -2 }} {{ 7 % -2 }} {{ body.minus // 2 }} {{ body.minus % 2 }} {{ -6 // 2 }}", Ok("-4 -1 -4 1 -3")),
    ("{{ 7.5 // -2 }} {{ 7.5 % -2 }} {{ -7.5 % 2 }} {{ 6.0 % -2 }}", Ok("-4.0 -0.5 0.5 0.0")),
    ("{{ body.equal | unique | join(' ') }}", Ok("1 2")),
    ("{{ body.gap | unique | length }} {{ [body.half, '2.5'] | unique | length }}", Ok("2 2")),
    ("{{ body.letters | min }} {{ ['B', 'a'] | min }} {{ ['b', 'A'] | max }} {{ ['a', 'A'] | max }}", Ok("A a b a")),
    ("{{ body.letters | sort(reverse=true) | join }} {{ body.letters | sort | join }}", Ok("bAa Aab")),
    ("{{ body.name | title }}", Ok("It's A_b-C D.e (F")),
    ("{{ none in body.gap }} {{ 5 in body.gap }} {{ none in body.letters }}", Ok("true false false")),
    ("{{ body.whole == 9007199254740992.0 }} {{ body.whole > 9007199254740992.0 }}", Ok("false true")),
    ("{{ 1 == 1.0 }} {{ 1 < 1.5 }} {{ -1 > -1.5 }} {{ 2.0 >= 2 }}", Ok("true true true true")),
    ("{{ 1 < body.most }} {{ 1 > body.least }} {{ body.least < body.most }} {{ 1e39 > 1 }}", Ok("true true true true")),
    ("{{ body.most == body.most }}", Err("the numbers are too large to be compared")),
    ("{{ body.yes in [1, 2] }}", Err("body.yes (a boolean) cannot be compared with the entries of [1, 2] (a number)")),
    ("{{ body.yes in body.objects }}", Err("cannot be compared with the entries of body.objects (an object)")),
];

#[test]
fn template_returns_what_jinja_returns() {
    for (template, expected) in TEMPLATES {
        match (field(template, event(EVENT)), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, *expected, "{template}"),
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{template}: {got}"),
            (got, _) => panic!("{template}: {got:?}"),
        }
    }
}

/// Rust's sort panics where it finds that an order is not total.
#[test]
fn list_without_an_order_is_refused_and_never_crashes() {
    let large = ["9007199254740992", "9007199254740993", "9007199254740992.0", "9007199254740994.0", "1e400", "-1e400"];
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 40).unwrap()
    };
    for _ in 0..40 {
        let mixed: Vec<String> = (0..30)
            .map(|_| [next() % 50, next() % 50])
            .map(|[one, other]| if one % 2 == 0 { other.to_string() } else { format!("\"{other}\"") })
            .collect();
        let large: Vec<&str> = (0..30).map(|_| large[next() % large.len()]).collect();
        for (list, said) in
            [(mixed.join(","), "which cannot be compared"), (large.join(","), "too large to be compared")]
        {
            let got = field("{{ body.list | sort | length }}", event(&format!("{{\"list\": [{list}]}}")));
            assert!(got.as_ref().is_err_and(|got| got.contains(said)), "{list}: {got:?}");
        }
    }
}
