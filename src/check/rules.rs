//! Checks the rules: whether they compile, whether their examples pass, and what an operator should look at.

use jiff::civil::Date;

use super::Findings;
use crate::clock::Clock;
use crate::config::{Binding, Broker, Config, ExchangeType, RuleAction, RuleText};
use crate::message::mapper::Mapper;
use crate::message::rules::pattern;

const CHECK: &str = "rules";

pub(super) fn check(config: &Config, findings: &mut Findings) {
    let rules = &config.events.rules;
    if rules.is_empty() {
        return;
    }
    let mut config = config.clone();
    // A missing key was already reported with the other keys.
    config.crm.operation.get_or_insert_with(String::new);
    match Mapper::new(&config) {
        Ok(_) => {
            let examples: usize = rules.iter().map(|rule| rule.examples.len()).sum();
            findings.ok(CHECK, format!("rules: {}, examples: {examples}, all as expected", rules.len()));
        }
        Err(problems) => {
            for problem in problems.iter() {
                findings.problem(CHECK, on_one_line(&problem.to_string()), "change the rule, or its example");
            }
        }
    }
    warnings(rules, findings);
    unreachable(&config.broker, rules, findings);
    if let Some(last) = config.events.holidays.last().filter(|last| **last < today(&config)) {
        let message = format!("the last of events.holidays is {last}, which has passed");
        let advice = "add the coming holidays: without them add_business_days counts them as business days";
        findings.warning(CHECK, message, advice);
    }
}

/// A failed example in one line, its differences too.
fn on_one_line(problem: &str) -> String {
    let joined = problem.replace("\n      expected ", ": expected ").replace("\n      got      ", ", got ");
    joined.replacen("\n    ", " ", 1).replace("\n    ", "; ")
}

fn today(config: &Config) -> Date {
    config.crm.timezone.to_datetime(Clock::system().now()).date()
}

/// Warns about rules for routing keys that no binding delivers. A message can also come through the default exchange, with
/// the queue's name as its routing key.
fn unreachable(broker: &Broker, rules: &[RuleText], findings: &mut Findings) {
    let by_key = |binding: &Binding| matches!(binding.exchange_type, Some(ExchangeType::Topic | ExchangeType::Direct));
    if broker.bindings.is_empty() || !broker.bindings.iter().all(by_key) {
        return;
    }
    let delivered = || broker.bindings.iter().map(|binding| &binding.routing_key).chain([&broker.queue]);
    let is_delivered = |key: &String| delivered().any(|other| pattern::overlap(key, other));
    for rule in rules {
        if let Some(key) = &rule.routing_key
            && !is_delivered(key)
        {
            let message = format!("rule {}: no binding delivers the routing key {key}", rule.name);
            findings.warning(CHECK, message, "change the rule's routing_key, or add it to [[broker.bindings]]");
        }
        for (n, example) in rule.examples.iter().enumerate() {
            let key = &example.routing_key;
            if example.exchange.is_empty() && !key.is_empty() && !is_delivered(key) {
                let message =
                    format!("rule {}, example {}: no binding delivers the routing key {key}", rule.name, n + 1);
                findings.warning(CHECK, message, "change [[broker.bindings]]: * is one word, # any number of words");
            }
        }
    }
}

fn warnings(rules: &[RuleText], findings: &mut Findings) {
    let catches_all = |rule: &RuleText| rule.when.is_none() && rule.routing_key.as_deref().is_none_or(|key| key == "#");
    let mut rest = rules.iter().skip_while(|rule| !catches_all(rule));
    if let (Some(rule), Some(below)) = (rest.next(), rest.next()) {
        let message =
            format!("rule {} matches every message, so that rule {} below it is never tried", rule.name, below.name);
        findings.warning(CHECK, message, "move it to the end, or give it a routing_key or when");
    }
    for rule in rules.iter().filter(|rule| rule.examples.is_empty()) {
        let expected = match rule.action {
            RuleAction::Task(_) => "the task that the rule must create from it",
            RuleAction::Skip => "skipped = true",
        };
        let advice = format!("add [[rules.examples]] after it: an event, and {expected}");
        findings.warning(CHECK, format!("rule {} has no example", rule.name), advice);
    }
}
