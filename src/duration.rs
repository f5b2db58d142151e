//! Durations as people write them: a whole number with `ms`, `s`, `m`, `h` or `d`.

use std::time::Duration;

/// What [`parse`] accepts, for error messages.
pub const ALLOWED: &str = "a whole number with ms, s, m, h or d, such as 250ms or 5m";

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses a duration such as `250ms` or `5m`.
///
/// # Errors
/// None when the text is not a number with a known unit, or is too large for 64 bits of milliseconds.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let count: u64 = number.parse().ok()?;
    count.checked_mul(*millis).map(Duration::from_millis)
}

/// Formats a duration in its largest exact unit: sixty seconds are `1m`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    UNITS
        .iter()
        .find(|(_, unit)| millis % unit == 0)
        .map_or_else(|| format!("{millis}ms"), |(name, unit)| format!("{}{name}", millis / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_every_unit_and_nothing_else() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("5s", 5_000), ("1m", 60_000), ("2h", 7_200_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "-5s", "1.5s", "5 s", "5w", "5S", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn duration_is_written_in_its_largest_exact_unit() {
        for (text, written) in [("60s", "1m"), ("90s", "90s"), ("1440m", "1d"), ("1500ms", "1500ms"), ("0ms", "0s")] {
            assert_eq!(format(parse(text).unwrap()), written, "{text}");
        }
    }
}
