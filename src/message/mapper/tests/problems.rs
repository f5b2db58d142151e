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
        ("{{ debug() }}", "debug is not available: there are filters, but no functions"),
        ("{{ upper(body.x) }}", "upper is a filter, not a function"),
        ("{{ 'a' if body.x is defned }}", "defned is not a test; did you mean defined?"),
        ("{{ body.x.strip() }}", "use the filter: | trim"),
        ("{{ body.x.frobnicate() }}", "the only one is get"),
        ("{% include 'x' %}", "the statement include is not available"),
        ("{% macro m() %}{% endmacro %}", "the statement macro is not available"),
        ("{% autoescape true %}x{% endautoescape %}", "autoescape is not available"),
        ("{{ body.x", "column"),
        ("{{ }}", "column"),
        ("{% for x in body recursive %}{{ loop(x) }}{% endfor %}", "loop is not available"),
        ("{{ body.x }", "column 11: unexpected `}`, expected }}"),
        ("{% if body.x %}x", "the text ends here; {% endif %} or {% endfor %} is missing"),
        ("{{ task.descrption }}", "uses task.descrption, which is not a field of this rule"),
        ("{{ task.namee }}", "did you mean task.name?"),
        ("{{ task }}", "task needs the name of another field"),
        ("{{ task.description }}", "has fields that refer to each other in a circle: description"),
        ("{{ now | add('x') }}", "\"x\" is not a span of time"),
        ("{{ now | add(5) }}", "span is a number; a text in quotes is needed"),
        ("{{ now | at('25:00') }}", "\"25:00\" is not a time of day"),
        ("{{ now | in_timezone('Mars') }}", "\"Mars\" is not a time zone"),
        ("{{ now | datetime(timezone='Mars') }}", "\"Mars\" is not a time zone"),
        ("{{ body.x | add }}", "add needs span"),
        ("{{ body.x | add('1d', '2d') }}", "add has too many arguments; it takes span"),
        ("{{ body.x | sort(true, reverse=false) }}", "sort has reverse twice"),
        ("{{ body.x | upper('x') }}", "upper has too many arguments; it takes nothing"),
        ("{{ body.x | datetime(timezon='UTC') }}", "did you mean timezone?"),
        ("{{ body.x | datetime(*body.y) }}", "arguments are written one by one"),
        ("{{ body.x | datetime(unit='h') }}", "\"h\" is not known; s or ms is allowed"),
        ("{{ body.x | truncate(0) }}", "length must be a whole number from 1 to"),
        ("{{ body.x | truncate(-1) }}", "length must be a whole number from 1 to"),
        ("{{ body.x | truncate('x') }}", "length is a text; a whole number is needed"),
        ("{{ body.x | add_business_days(1.5) }}", "days must be a whole number from -3650 to 3650"),
        ("{{ body.x | round(99) }}", "precision must be a whole number from 0 to 15"),
        ("{{ body.x | sort(attribute=body.y) }}", "sort needs the name of a member in quotes"),
        ("{{ body.x | map(attribute=body.y) }}", "map needs the name of a member in quotes"),
        ("{{ body.x | map() }}", "map needs attribute"),
        ("{{ body.x | sort(reverse='yes') }}", "reverse is a text; true or false is needed"),
        ("{{ body.x is divisibleby(0) }}", "number must be a whole number from 1 to"),
        ("{{ body.x is startingwith(5) }}", "text is a number; a text in quotes is needed"),
        ("{{ 1 // 0 }}", "the result is too large, or a divisor is 0"),
        ("{{ '2027-02-30' | datetime }}", "the day or time does not exist"),
        ("{{ [1, 2] }}", "a list is not a text"),
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
        (rule("when = \"{{ body.x }}\"", ""), "without braces: write body.x"),
        (rule("message_id = \"{{ now }}\"", ""), "cannot use now"),
        (rule("message_id = \"{{ task.name }}\"", ""), "cannot use task"),
        (rule("message_id = \"{{ reference }}\"", ""), "cannot use reference: it is made from the id"),
        (rule("message_id = \"ticket\"", ""), "is the same for every message"),
        (rule("when = \"reference == 'x'\"", ""), "cannot use reference"),
        (rule("when = \"1\"", ""), "1 is a number; true or false is needed"),
        (rule("when = \"1 < 'x'\"", ""), "a number cannot be compared with a text"),
        (rule("routing_key = \"ticket*\"", ""), "* and # stand for whole words"),
        (rule("routing_kye = \"x\"", ""), "routing_kye ("),
        (rule("", "nam = \"x\""), "is not a field of a task; did you mean name?"),
        (rule("", "remember = \"true\""), "true or false without quotes is allowed"),
        (rule("", "remember = \"{% if true %}true{% endif %}\""), "or one expression in braces"),
        (rule("", "name = true"), "is a boolean; a text is allowed"),
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
        (skips(201), "are 201 rules; at most 200"),
        ("rules = 5".to_owned(), "a list of tables is allowed"),
        ("[[rule]]\nname = \"r\"".to_owned(), "did you mean [[rules]]?"),
        ("[events]\nunmatched = \"drop\"".to_owned(), "events.unmatched"),
        ("[events]\nholidays = [\"2027-02-30\"]".to_owned(), "is not a date"),
        (format!("{}\n[[rules.examples]]\nevent = '{{}}'", rule("", "")), "must say what is expected; one of task"),
        (
            format!("{}\n[[rules.examples]]\nevent = '{{}}'\nskipped = true\nerror = 'x'", rule("", "")),
            "skipped and error are given; one of task",
        ),
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
fn event_of_an_example_can_be_empty() {
    let text = |event: &str| format!("{}\n[[rules.examples]]\n{event}\ntask = {{ name = \"n\" }}", rule("", ""));
    assert_eq!(problems(&text("event = ''")), "");
    assert!(problems(&text("event = ''\nevent_file = '/none'")).contains("cannot be given with event"));
}

#[test]
fn event_of_another_type_is_one_problem_and_is_not_called_missing() {
    for (key, said) in [("event = { number = 17 }", "is a table;"), ("event_file = 5", "event_file (")] {
        let found = problems(&format!("{}\n[[rules.examples]]\n{key}\nskipped = true", rule("", "")));
        assert!(found.contains(said) && found.contains("a text in quotes is allowed"), "{found}");
        assert!(found.lines().count() == 1 + 1 && !found.contains("is missing"), "{found}");
    }
}

#[test]
fn problems_are_reported_together() {
    let text = rule("when = \"bdy\"\nmessage_id = \"{{ now }}\"", "name = \"{{ x }}{{ y | uper }}\"\nnam = \"z\"");
    let found = problems(&text);
    assert_eq!(found.lines().count(), 1 + 6, "{found}");
}

#[test]
fn key_with_several_hyphens_is_one_problem() {
    let found = problems(&rule("", "description = \"{{ headers.x-request-id }}\""));
    assert!(found.contains("a key with a hyphen is written in brackets: ['x-request-id']"), "{found}");
    assert_eq!(found.lines().count(), 1 + 1, "{found}");
}

#[test]
fn circle_names_only_its_own_fields() {
    let fields =
        "name = \"{{ task.status }}\"\nstatus = \"{{ task.description }}\"\ndescription = \"{{ task.status }}\"";
    let found = problems(&rule("", fields));
    assert!(found.contains("refer to each other in a circle: description, status"), "{found}");
}

#[test]
fn field_that_is_the_same_for_every_message_is_checked_at_start() {
    for (text, said) in [
        (rule("", "priority = \"urgent\""), "field priority ("),
        (rule("", "priority = \"{{ 'urgent' }}\""), "is \"urgent\"; high, normal or low is allowed"),
        (rule("", "priority = 5"), "is \"5\"; high, normal or low is allowed"),
        (rule("", "completion_date = \"soon\""), "is \"soon\", which is not a known form of a date"),
        (rule("", "completion_date = \"2027-02-30 10:00:00\""), "does not exist"),
        (rule("", "name = \" \""), "field name ("),
        (rule("", "remember = true"), "field reminder_date ("),
        (rule("", "remember = true\nreminder_date = \"2027-03-02 10:00:00\""), "it must not be after completion_date"),
    ] {
        let found = problems(&text);
        assert!(found.contains(said), "{text}\n{found}");
    }
}

#[test]
fn several_tasks_from_one_event_are_refused_in_words() {
    for (text, said) in [
        (
            "[[rules]]\nname = \"r\"\n[[rules.task]]\nname = \"a\"\n[[rules.task]]\nname = \"b\"".to_owned(),
            "rule r, task",
        ),
        ("[[rules]]\nname = \"r\"\n[[rules.task]]\nname = \"a\"".to_owned(), "one event creates at most one task"),
        ("[[rules]]\nname = \"r\"\ntasks = [{ name = \"a\" }]".to_owned(), "one event creates at most one task"),
        (rule("tasks = []", ""), "rule r, tasks"),
    ] {
        let found = problems(&text);
        assert!(found.contains(said), "{text}\n{found}");
        assert_eq!(found.lines().count(), 1 + 1, "{text}\n{found}");
    }
}

/// So many rules.
fn skips(count: usize) -> String {
    (0..count).map(|n| format!("[[rules]]\nname = \"r{n}\"\naction = \"skip\"\n")).collect()
}

#[test]
fn two_hundred_rules_are_allowed() {
    assert_eq!(problems(&skips(200)), "");
}

#[test]
fn required_field_can_come_from_the_configuration() {
    let text = "[task]\nname_module = \"cases\"\nwolkvox_owner = \"o\"\n[[rules]]\nname = \"r\"\n[rules.task]\nname = \"n\"\n\
                id_record = 17\ncompletion_date = \"{{ now }}\"";
    assert_eq!(problems(text), "");
}

#[test]
fn syntax_of_other_languages_is_refused_with_the_right_syntax() {
    let words = "write and, or, not in lower case";
    for (expression, said) in [
        ("body.a = 1", "compare with =="),
        ("body.a === 1", "write == or !="),
        ("body.a !== 1", "write == or !="),
        ("body.a == 1 AND body.b", words),
        ("body.a OR body.b", words),
        ("NOT body.a", words),
        ("body.a and NOT body.b", words),
        ("body.a && body.b", "write and"),
        ("body.a || body.b", "write or"),
        ("!body.a", "write not"),
        ("body.a ? 'x' : 'y'", "write x if … else y"),
        ("body.t starts with 'a'", "a test comes after is: x is startingwith 'a'"),
        ("{{ body.csat <= 2 }}", "is an expression without braces: write body.csat <= 2"),
        ("event.ok", "published_at, now, ce; the event itself is body"),
        ("customer.name == 'x'", "for the event's own write body.customer"),
        ("body.año", "brackets: body['…']"),
        ("body.a ==", "column 8: the text ends too early, expected expression\n"),
        ("body.a =< 2", "write <="),
        ("body.a => 2", "write >="),
        ("body.a <> 2", "write !="),
        ("body.t =~ 'a'", "write 'a' in x"),
        ("body.a between 1", "write x >= 1 and x <= 2"),
        ("$.a == 1", "the event itself is body"),
        ("body.t == “a”", "write straight quotes"),
        ("if body.a", "write only the condition"),
        ("body.a == null", "null is not a variable; write: is defined"),
        ("body.t | strip == 'a'", "strip is not a filter; write | trim"),
        ("now() > body.at", "now is a variable, not a function"),
        ("body.@type == 'x'", "brackets: body['…']"),
        ("body.a @", "column 8: unexpected character\n"),
    ] {
        let found = problems(&rule(&format!("when = {expression:?}"), ""));
        assert!(format!("{found}\n").contains(said), "{expression}: {found}");
    }
    for (template, said) in [
        ("{{ body.a", "the text ends here; }} is missing"),
        ("{ body.a }", "in two braces, without $"),
        ("for ${body.a}", "column 6: write a variable in two braces, without $"),
        ("{{ now | format('DD/MM/YYYY') }}", "is a form without %"),
        ("{{ customer.name }}", "ce, task; for the event's own write body.customer"),
        ("{{ body.a = 1 }}", "compare with =="),
    ] {
        let found = problems(&rule("", &format!("description = {template:?}")));
        assert!(found.contains(said), "{template}: {found}");
    }
}
