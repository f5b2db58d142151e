//! Writes numbers with their nouns for people, such as `1 message` and `1,200 messages`.

/// A number and a noun: `1 message`, `1,200 messages`.
#[must_use]
pub fn counted(count: u64, noun: &str) -> String {
    let plural = match noun.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{noun}s"),
    };
    format!("{} {}", grouped(count), either(count, noun, &plural))
}

/// The words for one, or those for any other number.
#[must_use]
pub fn either<'a>(count: u64, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// The names as a choice for people: `high, normal or low`.
pub fn alternatives(names: &[&str]) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// A number with a comma after each thousand.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_uses_the_singular_for_one() {
        let texts = [0, 1, 2, 1_200_000].map(|count| counted(count, "message"));
        assert_eq!(texts, ["0 messages", "1 message", "2 messages", "1,200,000 messages"]);
        assert_eq!([1, 2].map(|count| counted(count, "entry")), ["1 entry", "2 entries"]);
        assert_eq!([0, 1, 2].map(|count| either(count, "it", "them")), ["them", "it", "them"]);
    }

    #[test]
    fn alternatives_have_an_or_before_the_last() {
        assert_eq!(alternatives(&["high", "normal", "low"]), "high, normal or low");
        assert_eq!(["a", "b"].map(|name| alternatives(&[name])).concat(), "ab");
    }
}
