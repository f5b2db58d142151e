//! `when`: decides whether a rule matches a message, and which part of the expression decided it.

use super::context::Context;
use super::evaluate::{Evaluation, EvaluationError};
use super::template::Template;
use super::tree::{Expr, Node};
use super::value::Value;
use super::work::FailureReason;

/// The result of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConditionResult {
    /// The rule matches the message.
    True,
    /// The rule does not match. Holds the part of the expression that decided this.
    False(String),
}

/// Tries a condition on one message.
///
/// # Errors
/// A value that is compared is missing, or cannot be compared; or the result is neither true nor false.
pub(super) fn try_on(condition: &Template, context: &Context) -> Result<ConditionResult, FailureReason> {
    let Some(node) = condition.node() else {
        return Err("the condition is not an expression".into());
    };
    let mut decided = node;
    let result = decide(&mut condition.evaluation(context), node, &mut decided);
    let value = result.map_err(|error| condition.explain(&error))?;
    let part = condition.piece(decided.start, decided.end);
    match value {
        Value::Bool(true) => Ok(ConditionResult::True),
        Value::Bool(false) => Ok(ConditionResult::False(part.to_owned())),
        Value::Null => Err(FailureReason::Missing(format!("{part} is null"))),
        other => match condition.missing(&other) {
            Some(fail) => Err(fail),
            None => Err(format!("{part} is {}; true or false is needed", other.kind()).into()),
        },
    }
}

fn decide<'n>(
    evaluation: &mut Evaluation<'_>,
    node: &'n Node,
    decided: &mut &'n Node,
) -> Result<Value, EvaluationError> {
    match &node.expr {
        Expr::And(left, right) => {
            let value = decide(evaluation, left, decided)?;
            if value.is_true() { decide(evaluation, right, decided) } else { Ok(value) }
        }
        Expr::Or(left, right) => {
            let value = decide(evaluation, left, decided)?;
            if value.is_true() { Ok(value) } else { decide(evaluation, right, decided) }
        }
        Expr::Not(inner) => {
            let value = decide(evaluation, inner, decided)?;
            *decided = node;
            Ok(Value::from(!value.is_true()))
        }
        _ => {
            *decided = node;
            evaluation.value(node)
        }
    }
}
