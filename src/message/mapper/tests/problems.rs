//! Problems in rules that are found at start, with their place and the nearest known name.

use super::*;

fn problems(text: &str) -> String {
    let loaded = config(text).and_then(|config| Mapper::new(&config).map(|_| ()));
    loaded.err().map(|problems| problems.to_string()).unwrap_or_default()
}

#[test]
fn problem_in_a_template_is_found_at_start() {
    for (template, said) in [
        ("{{ bdy.x }}", "column 4: bdy is not a variable; did you mean body?"),
        ("{{ name }}", "use body.name for the event's, task.name for the task's"),
        ("{{ body.closed-at }}", "a key with a hyphen is written in brackets: ['closed-at']"),
        ("{{ body.x | uper }}", "uper is not a filter; did you mean upper?"),
        ("{{ body.x | tojson }}", "tojson is not a filter"),
        ("{{ body.x | pprint }}", "pprint is not a filter"),
        ("{{ debug() }}", "debug is not a function"),
        ("{{ upper(body.x) }}", "upper is a filter, not a function"),
        ("{{ 'a' if body.x is defned }}", "defned is not a test; did you mean defined?"),
        ("{{ body.x.strip() }}", "use the filter: | trim"),
        ("{{ body.x.frobnicate() }}", "the only one is get"),
        ("{% include 'x' %}", "the statement include is not available"),
        ("{% macro m() %}{% endmacro %}", "the statement macro is not available"),
        ("{% autoescape true %}x{% endautoescape %}", "autoescape is not available"),
        ("{{ body.x", "column"),
        ("{{ }}", "column"),
        ("{% for x in body recursive %}{{ loop(x) }}{% endfor %}", "loop is not a function"),
        ("{{ task.descrption }}", "uses task.descrption, which is not a field of this rule"),
        ("{{ task.namee }}", "did you mean task.name?"),
        ("{{ task }}", "task stands for other fields"),
        ("{{ task.description }}", "has fields that need each other: description"),
        ("{{ now | add('x') }}", "\"x\" is no span of time"),
        ("{{ now | add(5) }}", "add needs a text in quotes"),
        ("{{ now | at('25:00') }}", "\"25:00\" is no time of day"),
        ("{{ now | in_timezone('Mars') }}", "\"Mars\" is no time zone"),
        ("{{ now | datetime(timezone='Mars') }}", "\"Mars\" is no time zone"),
        ("{{ body.x | regex_replace('[', '') }}", "the pattern \"[\" is wrong"),
        ("{{ body.x | regex_replace(body.y, '') }}", "regex_replace needs its pattern in quotes"),
    ] {
        let found = problems(&rule("", &format!("description = {template:?}")));
        assert!(found.contains(said), "{template}: {found}");
    }
}

#[test]
fn problem_in_a_rule_is_found_at_start() {
    for (text, said) in [
        (rule("when = \"bdy.x == 1\"", ""), "rule r, when"),
        (rule("when = \"body.x = 1\"", ""), "column"),
        (rule("when = \"task.name == 'x'\"", ""), "cannot use task"),
        (rule("when = \"{{ body.x }}\"", ""), "column"),
        (rule("message_id = \"{{ now }}\"", ""), "cannot use now"),
        (rule("message_id = \"{{ task.name }}\"", ""), "cannot use task"),
        (rule("routing_key = \"ticket*\"", ""), "* and # stand for whole words"),
        (rule("routing_kye = \"x\"", ""), "routing_kye ("),
        (rule("", "nam = \"x\""), "is not a field of a task; did you mean name?"),
        (rule("", "priority = \"urgent\""), "high, normal or low is allowed"),
        (rule("", "remember = \"true\""), "true or false without quotes is allowed"),
        (rule("", "remember = \"{% if true %}true{% endif %}\""), "or one expression in braces"),
        (rule("", "name = true"), "is a switch; a text is allowed"),
        (rule("", "name = []"), "is a list"),
        (rule("", &format!("name = \"{}\"", "x".repeat(5000))), "a template has at most 4096"),
        ("[[rules]]\nname = \"r\"\n[rules.task]\nname = \"x\"".to_owned(), "rule r, field id_record"),
        ("[[rules]]\nname = \"r\"".to_owned(), "give the task's fields in [rules.task], or set action"),
        ("[[rules]]\naction = \"skip\"".to_owned(), "rule 1, name"),
        ("[[rules]]\nname = \"a b\"\naction = \"skip\"".to_owned(), "letters, digits"),
        ("[[rules]]\nname = \"r\"\naction = \"skp\"".to_owned(), "did you mean skip?"),
        (
            "[[rules]]\nname = \"r\"\naction = \"skip\"\n[[rules]]\nname = \"r\"\naction = \"skip\"".to_owned(),
            "an earlier rule",
        ),
        ("rules = 5".to_owned(), "a list of tables is allowed"),
        ("[[rule]]\nname = \"r\"".to_owned(), "did you mean [rules]?"),
        ("[events]\nunmatched = \"drop\"".to_owned(), "events.unmatched"),
        ("[events]\nholidays = [\"2027-02-30\"]".to_owned(), "is no date"),
        (format!("{}\n[[rules.examples]]\nevent = '{{}}'", rule("", "")), "must say what is expected"),
        (format!("{}\n[[rules.examples]]\nskipped = true", rule("", "")), "event"),
        (
            format!("{}\n[[rules.examples]]\nevent_file = \"/none\"\nskipped = true", rule("", "")),
            "there is no such file",
        ),
        (
            format!("{}\n[[rules.examples]]\nevnt = '{{}}'\nevent = '{{}}'\nskipped = true", rule("", "")),
            "did you mean event?",
        ),
        (
            format!("{}\n[[rules.examples]]\nevent = '{{}}'\nskipped = true\nnow = \"soon\"", rule("", "")),
            "a time with an offset",
        ),
    ] {
        let found = problems(&text);
        assert!(found.contains(said), "{text}\n{found}");
    }
}

#[test]
fn problems_are_reported_together() {
    let text = rule("when = \"bdy\"\nmessage_id = \"{{ now }}\"", "name = \"{{ x }}{{ y | uper }}\"\nnam = \"z\"");
    let found = problems(&text);
    assert_eq!(found.lines().count(), 1 + 6, "{found}");
}

#[test]
fn required_field_can_come_from_the_configuration() {
    let text = "[task]\nname_module = \"cases\"\nwolkvox_owner = \"o\"\n[[rules]]\nname = \"r\"\n[rules.task]\nname = \"n\"\n\
                id_record = 17\ncompletion_date = \"{{ now }}\"";
    assert_eq!(problems(text), "");
}
