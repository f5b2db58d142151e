//! Rules by which the sandbox misbehaves.

use std::fmt;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use crate::duration;
use crate::suggest::suggest;

const KEYS: [&str; 5] = ["action", "times", "probability", "name_contains", "retry_after"];
const ACTIONS: [&str; 11] =
    ["status", "code", "api", "delay", "hang", "drop", "reset", "garbage", "bom", "warning", "string-code"];
/// The actions that take an argument, with their whole form.
const FORMS: [(&str, &str); 4] =
    [("status", "status:CODE"), ("code", "code:CODE:TEXT"), ("api", "api:CODE:TEXT"), ("delay", "delay:DURATION")];

/// What goes wrong with an insert.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Not created; an HTTP status with an HTML body.
    Status(StatusCode),
    /// Not created; HTTP 200 with this verdict.
    Code(u16, String),
    /// Not created; this HTTP status and verdict.
    Api(StatusCode, String),
    /// As usual, only later.
    Delay(Duration),
    /// Created, never answered.
    Hang,
    /// Not created, connection reset.
    Drop,
    /// Created, connection reset.
    Reset,
    /// Created, answered with what cannot be read.
    Garbage,
    /// Created, the JSON after a byte-order mark.
    Bom,
    /// Created, the JSON after a PHP warning.
    Warning,
    /// Created, the code as a string.
    StringCode,
}

impl Action {
    /// Its name among the counts of `GET /sandbox/stats`.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Status(_) => "fault:status",
            Self::Code(..) => "fault:code",
            Self::Api(..) => "fault:api",
            Self::Delay(_) => "fault:delay",
            Self::Hang => "fault:hang",
            Self::Drop => "fault:drop",
            Self::Reset => "fault:reset",
            Self::Garbage => "fault:garbage",
            Self::Bom => "fault:bom",
            Self::Warning => "fault:warning",
            Self::StringCode => "fault:string-code",
        }
    }

    fn is_answered(&self) -> bool {
        !matches!(self, Self::Hang | Self::Drop | Self::Reset)
    }
}

/// An action, and the wait that its answer asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    pub(super) action: Action,
    /// Seconds.
    pub(super) retry_after: Option<u64>,
}

/// When what goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    fault: Fault,
    /// How often it still applies; `None` for always.
    times: Option<u64>,
    probability: Option<f64>,
    name_contains: Option<String>,
}

/// Which rule is wrong and why, in one sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Reads a JSON array of rules.
///
/// # Errors
/// With the first rule that is wrong, counted from 1.
pub fn parse(json: &[u8]) -> Result<Vec<Rule>, Error> {
    let rules: Value =
        serde_json::from_slice(json).map_err(|error| Error(format!("the rules are not JSON: {error}")))?;
    let Value::Array(rules) = rules else {
        return Err(Error("the rules must be a JSON array of objects".to_owned()));
    };
    let rules = rules.iter().enumerate();
    rules.map(|(index, rule)| parse_rule(rule).map_err(|wrong| Error(format!("rule {}: {wrong}", index + 1)))).collect()
}

fn parse_rule(rule: &Value) -> Result<Rule, String> {
    let rule = rule.as_object().ok_or("must be an object such as {\"action\": \"hang\"}")?;
    if let Some(unknown) = rule.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(unknown_name("key", unknown, &KEYS));
    }
    let action = get(rule, "action", "a string", Value::as_str)?
        .ok_or_else(|| format!("\"action\" is missing; allowed are {}", ACTIONS.join(", ")))?;
    let fault = Fault {
        action: parse_action(action)?,
        retry_after: get(rule, "retry_after", "a whole number of seconds", Value::as_u64)?,
    };
    if fault.retry_after.is_some() && !fault.action.is_answered() {
        return Err(format!("\"retry_after\" needs an answer to go with, and \"{action}\" gives none"));
    }
    Ok(Rule {
        fault,
        times: get(rule, "times", "a whole number from 1", |value| value.as_u64().filter(|times| *times > 0))?,
        probability: get(rule, "probability", "a number from 0 to 1", |value| {
            value.as_f64().filter(|p| (0.0..=1.0).contains(p))
        })?,
        name_contains: get(rule, "name_contains", "a string", Value::as_str)?.map(str::to_owned),
    })
}

/// The key's value, if it is there.
fn get<'a, T>(
    rule: &'a Map<String, Value>,
    key: &str,
    allowed: &str,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<Option<T>, String> {
    match rule.get(key) {
        Some(value) => match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(format!("\"{key}\" is {value} and must be {allowed}")),
        },
        None => Ok(None),
    }
}

fn unknown_name(what: &str, name: &str, known: &[&str]) -> String {
    let hint =
        suggest(name, known.iter().copied()).map_or_else(String::new, |known| format!(", did you mean \"{known}\"?"));
    let allowed = known.join(", ");
    format!("unknown {what} \"{name}\"{hint} (allowed are {allowed})")
}

fn parse_action(text: &str) -> Result<Action, String> {
    let (word, argument) = match text.split_once(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (text, None),
    };
    let form = FORMS.iter().find(|(known, _)| *known == word);
    match (word, argument) {
        ("status", Some(code)) => Ok(Action::Status(status(code)?)),
        ("code", Some(verdict)) => {
            let (code, text) = refusal(verdict, "code:CODE:TEXT")?;
            Ok(Action::Code(code.as_u16(), text))
        }
        ("api", Some(verdict)) => {
            let (code, text) = refusal(verdict, "api:CODE:TEXT")?;
            Ok(Action::Api(code, text))
        }
        ("delay", Some(text)) => duration::parse(text)
            .map(Action::Delay)
            .ok_or_else(|| format!("the delay \"{text}\" must be {}", duration::ALLOWED)),
        ("hang", None) => Ok(Action::Hang),
        ("drop", None) => Ok(Action::Drop),
        ("reset", None) => Ok(Action::Reset),
        ("garbage", None) => Ok(Action::Garbage),
        ("bom", None) => Ok(Action::Bom),
        ("warning", None) => Ok(Action::Warning),
        ("string-code", None) => Ok(Action::StringCode),
        (word, _) if !ACTIONS.contains(&word) => Err(unknown_name("action", word, &ACTIONS)),
        (word, _) => Err(form.map_or_else(
            || format!("\"{word}\" takes nothing after it"),
            |(_, form)| format!("\"{word}\" must be written {form}"),
        )),
    }
}

/// A status that can end an answer.
fn status(code: &str) -> Result<StatusCode, String> {
    code.parse()
        .ok()
        .filter(|status: &StatusCode| (200..=599).contains(&status.as_u16()))
        .ok_or_else(|| format!("the code \"{code}\" must be a number from 200 to 599"))
}

/// `CODE:TEXT`.
fn refusal(verdict: &str, form: &str) -> Result<(StatusCode, String), String> {
    let (code, text) = verdict.split_once(':').ok_or_else(|| format!("a verdict must be written {form}"))?;
    match status(code)? {
        StatusCode::OK => Err("the verdict 200 means created, and this fault creates nothing".to_owned()),
        code => Ok((code, text.to_owned())),
    }
}

/// The rules in force.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<Rule>,
    seed: u64,
    random: fastrand::Rng,
}

impl Faults {
    pub(super) fn new(rules: Vec<Rule>, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { rules, seed, random }
    }

    /// Other rules, and the draws from the seed again.
    pub(super) fn replace(&mut self, rules: Vec<Rule>) {
        *self = Self::new(rules, self.seed);
    }

    /// The fault of the first rule that matches a task of this name. A draw is spent only where all else matches.
    pub(super) fn choose(&mut self, name: &str) -> Option<Fault> {
        let random = &mut self.random;
        let rule = self.rules.iter_mut().find(|rule| {
            rule.times != Some(0)
                && (rule.name_contains.as_deref()).is_none_or(|part| name.contains(part))
                && rule.probability.is_none_or(|p| random.f64() < p)
        })?;
        rule.times = rule.times.map(|times| times - 1);
        Some(rule.fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(text: &str) -> Result<Action, String> {
        parse_action(text)
    }

    #[test]
    fn reads_every_action() {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        for (text, expected) in [
            ("status:503", Action::Status(unavailable)),
            ("code:417:NO: REALLY", Action::Code(417, "NO: REALLY".into())),
            ("api:403:", Action::Api(StatusCode::FORBIDDEN, String::new())),
            ("delay:250ms", Action::Delay(Duration::from_millis(250))),
            ("hang", Action::Hang),
            ("drop", Action::Drop),
            ("reset", Action::Reset),
            ("garbage", Action::Garbage),
            ("bom", Action::Bom),
            ("warning", Action::Warning),
            ("string-code", Action::StringCode),
        ] {
            assert_eq!(action(text), Ok(expected.clone()), "{text}");
            let word = text.split(':').next().unwrap();
            assert_eq!(expected.outcome(), format!("fault:{word}"));
            assert!(ACTIONS.contains(&word));
        }
    }

    /// Rules, and how what is said of them begins.
    const WRONG: &[(&str, &str)] = &[
        ("nonsense", "the rules are not JSON: "),
        ("{}", "the rules must be a JSON array"),
        ("[1]", "rule 1: must be an object"),
        (r#"[{"action":"hang"},{}]"#, "rule 2: \"action\" is missing; allowed are status, "),
        (r#"[{"actoin":"hang"}]"#, "rule 1: unknown key \"actoin\", did you mean \"action\"?"),
        (r#"[{"action":7}]"#, "rule 1: \"action\" is 7 and must be a string"),
        (r#"[{"action":"hung"}]"#, "rule 1: unknown action \"hung\", did you mean \"hang\"?"),
        (r#"[{"action":"hang:5s"}]"#, "rule 1: \"hang\" takes nothing after it"),
        (r#"[{"action":"status"}]"#, "rule 1: \"status\" must be written status:CODE"),
        (r#"[{"action":"status:99"}]"#, "rule 1: the code \"99\" must be a number from 200"),
        (r#"[{"action":"status:x"}]"#, "rule 1: the code \"x\" must be a number from 200"),
        (r#"[{"action":"code:400"}]"#, "rule 1: a verdict must be written code:CODE:TEXT"),
        (r#"[{"action":"api:200:OK"}]"#, "rule 1: the verdict 200 means created"),
        (r#"[{"action":"delay:5"}]"#, "rule 1: the delay \"5\" must be a whole number with ms"),
        (r#"[{"action":"bom","times":0}]"#, "rule 1: \"times\" is 0 and must be"),
        (r#"[{"action":"bom","times":1.5}]"#, "rule 1: \"times\" is 1.5 and must be"),
        (r#"[{"action":"bom","probability":1.1}]"#, "rule 1: \"probability\" is 1.1"),
        (r#"[{"action":"bom","name_contains":1}]"#, "rule 1: \"name_contains\" is 1"),
        (r#"[{"action":"bom","retry_after":-1}]"#, "rule 1: \"retry_after\" is -1"),
        (r#"[{"action":"drop","retry_after":1}]"#, "rule 1: \"retry_after\" needs an answer"),
    ];

    #[test]
    fn says_what_is_wrong_with_a_rule() {
        for (rules, said) in WRONG {
            let error = parse(rules.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(said), "{rules}: {error}");
        }
    }

    fn faults(rules: &str, seed: u64) -> Faults {
        Faults::new(parse(rules.as_bytes()).unwrap(), seed)
    }

    #[test]
    fn takes_the_first_that_matches_as_often_as_it_says() {
        let mut faults = faults(
            r#"[{"action":"hang","name_contains":"x","times":2},
                {"action":"drop","probability":0},
                {"action":"bom","probability":1,"retry_after":3}]"#,
            1,
        );
        let mut words = |names: [&str; 4]| names.map(|name| faults.choose(name).map(|fault| fault.action.outcome()));
        let (hang, bom) = (Some("fault:hang"), Some("fault:bom"));
        assert_eq!(words(["a", "axa", "x", "x"]), [bom, hang, hang, bom]);
        assert_eq!(faults.choose("a").unwrap().retry_after, Some(3));
    }

    #[test]
    fn draws_the_same_from_the_same_seed() {
        let half = r#"[{"action":"bom","probability":0.5}]"#;
        let draw = |faults: &mut Faults| -> Vec<bool> { (0..64).map(|_| faults.choose("").is_some()).collect() };
        let mut seven = faults(half, 7);
        let first = draw(&mut seven);
        assert!(first.contains(&true) && first.contains(&false));
        assert_eq!(draw(&mut faults(half, 7)), first);
        assert_ne!(draw(&mut faults(half, 8)), first);
        assert_ne!(draw(&mut seven), first);
        seven.replace(parse(half.as_bytes()).unwrap());
        assert_eq!(draw(&mut seven), first);
    }
}
