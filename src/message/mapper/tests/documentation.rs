//! Checks docs/mapping.md: its filters return what the page says, and its rules and recipes work.

use super::*;

const PAGE: &str = include_str!("../../../../docs/mapping.md");
const SETTINGS: &str = "[crm]\ntimezone = \"America/Bogota\"\n[events]\nholidays = [\"2027-01-01\"]\n";

/// The page's code blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    PAGE.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

#[test]
fn filter_returns_what_the_page_says() {
    let body = blocks("json")[0];
    let mut seen = 0;
    let in_utc = SETTINGS.replace("America/Bogota", "UTC");
    for line in PAGE.lines() {
        let (line, settings) = match (line.strip_prefix("- `{{"), line.strip_prefix("- UTC: `{{")) {
            (Some(line), _) => (line, SETTINGS),
            (None, Some(line)) => (line, &*in_utc),
            (None, None) => continue,
        };
        let Some((template, rest)) = line.split_once("` → ") else { continue };
        let template = format!("{{{{{template}");
        let (kind, expected) = rest.split_once('`').unwrap_or_else(|| panic!("{line}"));
        let expected = expected.trim_end_matches('`');
        let text = format!("{settings}{}", rule("", &format!("description = {template:?}")));
        let loaded = Mapper::new(&config(&text).unwrap());
        match (kind.trim(), loaded) {
            ("problem", Err(problems)) => assert!(problems.to_string().contains(expected), "{template}: {problems}"),
            ("error", Ok(mapper)) => {
                let failure = map(&mapper, event(body)).unwrap_err();
                assert_eq!(failure.kind, Kind::MappingFailed);
                assert!(failure.message.contains(expected), "{template}: {}", failure.message);
            }
            ("", Ok(mapper)) => {
                let Ok(Mapped::Send { body, .. }) = map(&mapper, event(body)) else { panic!("{template}") };
                assert_eq!(fields_of(&body)["description"], expected, "{template}");
            }
            (kind, loaded) => panic!("{template} {kind}: {:?}", loaded.err()),
        }
        seen += 1;
    }
    assert!(seen >= 39, "{seen}");
    let (filters, tests) = crate::message::rules::names_of_filters_and_tests();
    for name in filters.iter().chain(&tests) {
        assert!(PAGE.contains(&format!("`{name}`")), "{name} is not on the page");
    }
}

/// The page's configurations with rules: the first one, the rule for task messages, and the recipes.
fn rules() -> Vec<&'static str> {
    let rules: Vec<&str> = blocks("toml").into_iter().filter(|block| block.contains("[[rules]]")).collect();
    assert_eq!(rules.len(), 12);
    rules
}

fn passes(text: &str) {
    let config = config(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    assert!(config.events.rules.iter().any(|rule| !rule.examples.is_empty()), "{text}");
    if let Err(problems) = Mapper::new(&config) {
        panic!("{text}\n{problems}");
    }
}

#[test]
fn rules_on_the_page_pass_their_examples_in_every_zone_that_it_promises() {
    for zone in
        ["UTC", "America/Tijuana", "America/Mexico_City", "America/Bogota", "America/Sao_Paulo", "Europe/Madrid"]
    {
        for text in rules() {
            let zone = format!("[crm]\ntimezone = {zone:?}\n");
            passes(&if text.contains("[crm]") { text.to_owned() } else { format!("{zone}{text}") });
        }
    }
}

#[test]
fn rules_on_the_page_pass_in_one_file_with_the_rule_for_task_messages_last() {
    let mut rules = rules();
    let task_message = rules.remove(1);
    assert!(task_message.contains("name = \"task-message\""), "{task_message}");
    rules.push(task_message);
    passes(&rules.join("\n"));
}

#[test]
fn failed_example_shows_the_difference() {
    let recipe = blocks("toml").into_iter().find(|block| block.contains("missed-call")).unwrap();
    for (right, wrong, said) in [
        ("priority = \"high\", wolkvox", "priority = \"low\", wolkvox", "expected \"low\"\n      got      \"high\""),
        ("skipped = true", "task = { name = \"x\" }", "a task is expected, but the rule skips"),
        ("skipped = true", "error = \"x\"", "an error is expected, but the rule works"),
        ("\"answered\": true", "\"answered\": false", "rule missed-call is above this one and matches first"),
        (
            "\"answered\": false, \"caller\"",
            "\"answered\": true, \"caller\"",
            "the rule does not match: body.answered == false is not true",
        ),
        ("task = { name", "task = { nam = \"x\", name", "task.nam is not a field of a task; did you mean name?"),
    ] {
        assert!(recipe.contains(right), "{right}");
        let problems =
            Mapper::new(&config(&recipe.replace(right, wrong)).unwrap()).err().unwrap_or_else(|| panic!("{wrong}"));
        assert!(problems.to_string().contains(said), "{problems}");
    }
}
