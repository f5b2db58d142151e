//! Numbers of events. Their spelling is kept. A calculation with integers is exact or an error.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A number, and how it is written.
#[derive(Clone, Debug)]
pub(super) struct Number {
    amount: Amount,
    /// The spelling in the event or the rule. `None` for an integer in its usual spelling, and for a calculated number.
    spelling: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug)]
enum Amount {
    Whole(i128),
    Real(f64),
}

/// Why numbers cannot be calculated with.
pub(super) const OUT_OF_RANGE: &str = "the result is too large, or a divisor is 0";

impl Number {
    /// A number as JSON or a template spells it.
    pub(super) fn spelled(text: &str) -> Option<Self> {
        let amount = match text.parse() {
            Ok(whole) => Amount::Whole(whole),
            Err(_) => Amount::Real(text.parse().ok()?),
        };
        let plain = Self { amount, spelling: None };
        Some(if plain.to_string() == text { plain } else { Self { spelling: Some(text.into()), ..plain } })
    }

    /// A number that was calculated.
    pub(super) fn real(number: f64) -> Result<Self, &'static str> {
        match number.is_finite() {
            true => Ok(Self { amount: Amount::Real(number), spelling: None }),
            false => Err(OUT_OF_RANGE),
        }
    }

    /// The nearest float; infinite if the number is larger than every float.
    pub(super) fn as_f64(&self) -> f64 {
        match self.amount {
            #[expect(clippy::cast_precision_loss, reason = "the nearest float is wanted")]
            Amount::Whole(number) => number as f64,
            Amount::Real(number) => number,
        }
    }

    /// The number, if it is an integer.
    pub(super) fn as_whole(&self) -> Option<i128> {
        match self.amount {
            Amount::Whole(number) => Some(number),
            Amount::Real(_) => None,
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.as_f64() == 0.0
    }

    /// The number in its usual spelling.
    pub(super) fn plain(&self) -> Self {
        Self { amount: self.amount, spelling: None }
    }

    /// The number without the digits after the point.
    pub(super) fn truncated(&self) -> Result<Self, &'static str> {
        /// Larger than what an integer holds.
        const TOO_LARGE: f64 = 1.7e38;
        match self.amount {
            Amount::Whole(_) => Ok(self.clone()),
            Amount::Real(number) if number.abs() < TOO_LARGE => {
                #[expect(clippy::cast_possible_truncation, reason = "in range")]
                let whole = number.trunc() as i128;
                Ok(Self::from(whole))
            }
            Amount::Real(_) => Err("the number is too large"),
        }
    }

    /// Rounded to `digits` digits after the point, as in Jinja: if two results are equally near, the even one is taken.
    pub(super) fn rounded(&self, digits: usize) -> Result<Self, &'static str> {
        match self.amount {
            Amount::Whole(_) => Ok(self.clone()),
            Amount::Real(number) => Self::real(format!("{number:.digits$}").parse().unwrap_or(number)),
        }
    }

    pub(super) fn absolute(&self) -> Result<Self, &'static str> {
        match self.amount {
            Amount::Whole(number) => number.checked_abs().map(Self::from).ok_or(OUT_OF_RANGE),
            Amount::Real(number) if number.is_sign_negative() => Self::real(-number),
            Amount::Real(_) => Ok(self.clone()),
        }
    }

    /// As a number with a point.
    pub(super) fn as_real(&self) -> Result<Self, &'static str> {
        match self.amount {
            Amount::Whole(_) => Self::real(self.as_f64()),
            Amount::Real(_) => Ok(self.clone()),
        }
    }

    pub(super) fn negated(&self) -> Result<Self, &'static str> {
        match self.amount {
            Amount::Whole(number) => number.checked_neg().map(Self::from).ok_or(OUT_OF_RANGE),
            Amount::Real(number) => Self::real(-number),
        }
    }

    /// The result of `+ - * / // %` for two numbers.
    pub(super) fn calculate(&self, operator: Arithmetic, other: &Self) -> Result<Self, &'static str> {
        if let (Amount::Whole(one), Amount::Whole(other)) = (self.amount, other.amount)
            && operator != Arithmetic::Divide
        {
            let whole = match operator {
                Arithmetic::Add => one.checked_add(other),
                Arithmetic::Subtract => one.checked_sub(other),
                Arithmetic::Multiply => one.checked_mul(other),
                Arithmetic::DivideWhole => floor_division(one, other),
                Arithmetic::Divide | Arithmetic::Remainder => {
                    floor_division(one, other).and_then(|whole| one.checked_sub(whole.checked_mul(other)?))
                }
            };
            return whole.map(Self::from).ok_or(OUT_OF_RANGE);
        }
        let (one, other) = (self.as_f64(), other.as_f64());
        Self::real(match operator {
            Arithmetic::Add => one + other,
            Arithmetic::Subtract => one - other,
            Arithmetic::Multiply => one * other,
            Arithmetic::Divide => one / other,
            Arithmetic::DivideWhole => (one / other).floor(),
            Arithmetic::Remainder => {
                let rest = one % other;
                if rest != 0.0 && (rest < 0.0) != (other < 0.0) { rest + other } else { rest }
            }
        })
    }

    /// Which of two numbers is larger. The order is total, which sorting needs.
    pub(super) fn compare(&self, other: &Self) -> Result<Ordering, &'static str> {
        Ok(match (self.amount, other.amount) {
            (Amount::Whole(one), Amount::Whole(other)) => one.cmp(&other),
            (Amount::Whole(one), Amount::Real(other)) => whole_and_real(one, other),
            (Amount::Real(one), Amount::Whole(other)) => whole_and_real(other, one).reverse(),
            (Amount::Real(one), Amount::Real(other)) => {
                // Neither is NaN, because no spelling means NaN.
                let order = one.partial_cmp(&other).unwrap_or(Ordering::Equal);
                if one.is_infinite() && order.is_eq() {
                    return Err("the numbers are too large to be compared");
                }
                order
            }
        })
    }

    /// A text that equal numbers share.
    pub(super) fn canonical(&self) -> String {
        match self.amount {
            Amount::Whole(number) => number.to_string(),
            Amount::Real(number) if number.is_infinite() => self.to_string(),
            Amount::Real(number) => match self.truncated() {
                Ok(whole) if number.fract() == 0.0 => whole.to_string(),
                Ok(_) | Err(_) => number.to_string(),
            },
        }
    }
}

/// The quotient, rounded down; none if the divisor is 0 or the quotient is out of range.
fn floor_division(one: i128, other: i128) -> Option<i128> {
    let whole = one.checked_div(other)?;
    let is_above = one % other != 0 && (one < 0) != (other < 0);
    whole.checked_sub(i128::from(is_above))
}

/// The order of a whole number and a float, exactly.
fn whole_and_real(one: i128, other: f64) -> Ordering {
    /// The first number above all whole ones.
    const END: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;
    if !(-END..END).contains(&other) {
        return if other > 0.0 { Ordering::Less } else { Ordering::Greater };
    }
    #[expect(clippy::cast_possible_truncation, reason = "in range")]
    let whole = other.trunc() as i128;
    one.cmp(&whole).then(0.0_f64.partial_cmp(&other.fract()).unwrap_or(Ordering::Equal))
}

/// An operator on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    DivideWhole,
    Remainder,
}

impl From<i128> for Number {
    fn from(number: i128) -> Self {
        Self { amount: Amount::Whole(number), spelling: None }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// From this number on a float has no fraction, and not all of its digits are exact.
        const ROUND: f64 = 1e16;
        match (&self.spelling, self.amount) {
            (Some(text), _) => f.write_str(text),
            (None, Amount::Whole(number)) => write!(f, "{number}"),
            (None, Amount::Real(number)) if number.abs() >= ROUND => write!(f, "{number:e}"),
            (None, Amount::Real(number)) => write!(f, "{number:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_printed_as_it_was_spelled() {
        for text in [
            "0",
            "-0",
            "-0.0",
            "17",
            "17.10",
            "1e3",
            "1E+3",
            "1e400",
            "5e-324",
            "18446744073709551616",
            "123456789012345678901234567890",
            "1234567890123456789012345678901234567890",
            "-9223372036854775809",
        ] {
            assert_eq!(Number::spelled(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn calculated_numbers_are_exact_or_refused() {
        use Arithmetic::{Add, Divide, DivideWhole, Multiply, Remainder, Subtract};
        for (one, operator, other, expected) in [
            ("9223372036854775807", Add, "1", Ok("9223372036854775808")),
            ("1", Subtract, "2", Ok("-1")),
            ("0.5", Multiply, "4", Ok("2.0")),
            ("4", Divide, "2", Ok("2.0")),
            ("-7", DivideWhole, "2", Ok("-4")),
            ("-7", Remainder, "2", Ok("1")),
            ("1", DivideWhole, "0", Err(OUT_OF_RANGE)),
            ("1", Divide, "0", Err(OUT_OF_RANGE)),
            ("1e308", Multiply, "10", Err(OUT_OF_RANGE)),
            ("1e400", Subtract, "1", Err(OUT_OF_RANGE)),
            ("170141183460469231731687303715884105727", Add, "1", Err(OUT_OF_RANGE)),
        ] {
            let [one, other] = [one, other].map(|text| Number::spelled(text).unwrap());
            let got = one.calculate(operator, &other).map(|number| number.to_string());
            assert_eq!(got.as_deref().map_err(|why| *why), expected, "{one} {operator:?} {other}");
        }
    }
}
