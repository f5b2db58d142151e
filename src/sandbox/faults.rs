//! The rules with which a test makes the sandbox misbehave.

mod action;

use std::fmt;

use serde_json::{Map, Value};

use super::account::Account;
use crate::suggest::suggest;

pub(super) use action::Action;

const KEYS: [&str; 5] = ["action", "times", "probability", "name_contains", "retry_after"];
/// The prefix of actions that change the whole account instead of one insert.
const ACCOUNT: &str = "account:";

/// An action, and the wait that its answer asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    pub(super) action: Action,
    /// Seconds.
    pub(super) retry_after: Option<u64>,
}

/// A rule as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    kind: Kind,
    /// Whether it is from a report. Then recorded answers stay in use. Any other rule replaces the recorded answers that it
    /// decides.
    is_of_report: bool,
}

impl Rule {
    fn new(kind: Kind) -> Self {
        Self { kind, is_of_report: false }
    }

    /// Marks the rule as one from a report.
    pub(super) fn of_report(self) -> Self {
        Self { is_of_report: true, ..self }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// Something that goes wrong with an insert.
    Insert(InsertRule),
    /// How the whole account behaves: what follows `account:`.
    Account(String),
}

/// A fault of inserts, and when it applies.
#[derive(Clone, Debug, PartialEq)]
struct InsertRule {
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
        .ok_or_else(|| format!("\"action\" is missing; allowed are {}", allowed_actions()))?;
    if let Some(behaviour) = action.strip_prefix(ACCOUNT) {
        Account::default().apply(behaviour)?;
        return match rule.keys().find(|key| *key != "action") {
            Some(other) => Err(format!("\"{action}\" always applies and takes no \"{other}\"")),
            None => Ok(Rule::new(Kind::Account(behaviour.to_owned()))),
        };
    }
    let fault = Fault {
        action: Action::parse(action)?,
        retry_after: get(rule, "retry_after", "a whole number of seconds", Value::as_u64)?,
    };
    if fault.retry_after.is_some() && !fault.action.has_headers() {
        return Err(format!("\"retry_after\" needs an answer with headers, and \"{action}\" gives none"));
    }
    Ok(Rule::new(Kind::Insert(InsertRule {
        fault,
        times: get(rule, "times", "a whole number from 1", |value| value.as_u64().filter(|times| *times > 0))?,
        probability: get(rule, "probability", "a number from 0 to 1", |value| {
            value.as_f64().filter(|p| (0.0..=1.0).contains(p))
        })?,
        name_contains: get(rule, "name_contains", "a string", Value::as_str)?.map(str::to_owned),
    })))
}

fn allowed_actions() -> String {
    let words = action::ACTIONS.iter().map(|(word, _)| *word);
    words.chain(["account"]).collect::<Vec<_>>().join(", ")
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

/// The rules in force.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<InsertRule>,
    seed: u64,
    random: fastrand::Rng,
}

impl Faults {
    /// The rules about inserts, and the account as the others describe it. Draws from the seed.
    pub(super) fn new(rules: Vec<Rule>, seed: u64) -> (Self, Account) {
        let mut account = Account::default();
        let mut inserts = Vec::new();
        // Where two rules contradict each other the first counts, so it is applied last.
        for Rule { kind, is_of_report } in rules.into_iter().rev() {
            match kind {
                Kind::Insert(rule) => inserts.push(rule),
                Kind::Account(behaviour) => {
                    // This cannot fail: it was applied once when the rule was read.
                    account.apply(&behaviour).unwrap_or_default();
                    if !is_of_report {
                        account.stop_replaying(&behaviour);
                    }
                }
            }
        }
        inserts.reverse();
        let random = fastrand::Rng::with_seed(seed);
        (Self { rules: inserts, seed, random }, account)
    }

    /// Replaces all rules, and starts the draws from the seed again.
    pub(super) fn replace(&mut self, rules: Vec<Rule>) -> Account {
        let (faults, account) = Self::new(rules, self.seed);
        *self = faults;
        account
    }

    /// The fault of the first rule that matches a task of this name. A random number is drawn only if everything else
    /// matches.
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

    /// Wrong rules, and the beginning of the error about each.
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
        (r#"[{"action":"raw:AA==","retry_after":1}]"#, "rule 1: \"retry_after\" needs an answer"),
        (r#"[{"action":"raw:*"}]"#, "rule 1: what follows \"raw:\" must be base64"),
        (r#"[{"action":"acount:lenient"}]"#, "rule 1: unknown action \"acount\", did you mean \"account\"?"),
        (r#"[{"action":"account:lenint"}]"#, "rule 1: unknown account behaviour \"lenint\", did you mean"),
        (
            r#"[{"action":"account:close","times":1}]"#,
            "rule 1: \"account:close\" always applies and takes no \"times\"",
        ),
    ];

    #[test]
    fn wrong_rule_is_refused_with_the_reason() {
        for (rules, said) in WRONG {
            let error = parse(rules.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(said), "{rules}: {error}");
        }
    }

    fn faults(rules: &str, seed: u64) -> Faults {
        Faults::new(parse(rules.as_bytes()).unwrap(), seed).0
    }

    #[test]
    fn sandbox_page_names_every_action() {
        let page = include_str!("../../docs/sandbox.md");
        let actions = action::ACTIONS.map(|(word, form)| if form.is_empty() { word } else { form }.to_owned());
        let accounts = super::super::account::FORMS.iter().flat_map(|form| form.split(" or "));
        for action in actions.into_iter().chain(accounts.map(|form| format!("{ACCOUNT}{form}"))) {
            assert!(page.contains(&format!("`{action}`")), "{action} is not in docs/sandbox.md");
        }
    }

    #[test]
    fn account_rules_all_apply_besides_the_first_matching_insert_rule() {
        let rules = r#"[{"action":"account:lenient"},{"action":"bom"},{"action":"account:close"}]"#;
        let (mut faults, account) = Faults::new(parse(rules.as_bytes()).unwrap(), 1);
        assert_eq!(faults.choose("x").map(|fault| fault.action), Some(Action::Bom));
        assert!(account.lenient && account.close);
        assert_eq!(faults.replace(Vec::new()), Account::default());
    }

    #[test]
    fn first_matching_rule_applies_as_often_as_it_says() {
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
    fn rules_draw_the_same_numbers_from_the_same_seed() {
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
