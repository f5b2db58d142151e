//! AMQP's topic patterns: words between dots, `*` for one word, `#` for any number of them.

use std::collections::BTreeSet;

/// Whether a routing key matches a pattern.
pub(super) fn matches(pattern: &str, key: &str) -> bool {
    if !pattern.contains(['*', '#']) {
        return pattern == key;
    }
    let key = words(key);
    // Whether the pattern so far matches the first n words of the key.
    let mut reached = vec![false; key.len() + 1];
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    for part in words(pattern) {
        let mut next = vec![false; key.len() + 1];
        let mut any = false;
        for (at, slot) in next.iter_mut().enumerate() {
            let here = reached.get(at).copied().unwrap_or(false);
            let before = at.checked_sub(1);
            let word = before.and_then(|before| key.get(before));
            let came = before.and_then(|before| reached.get(before)).copied().unwrap_or(false);
            any |= here;
            *slot = match part {
                "#" => any,
                "*" => came,
                name => came && word.is_some_and(|word| *word == name),
            };
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

/// Whether some routing key matches both patterns.
pub(crate) fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (words(one), words(other));
    let (mut open, mut seen) = (vec![(0, 0)], BTreeSet::new());
    while let Some((i, j)) = open.pop() {
        if !seen.insert((i, j)) {
            continue;
        }
        // A # matches the other side's next word and goes on, or it ends here.
        match (one.get(i).copied(), other.get(j).copied()) {
            (None, None) => return true,
            (Some("#"), word) => open.extend([(i + 1, j)].into_iter().chain(word.map(|_| (i, j + 1)))),
            (word, Some("#")) => open.extend([(i, j + 1)].into_iter().chain(word.map(|_| (i + 1, j)))),
            (Some(word), Some(same)) if word == same || word == "*" || same == "*" => open.push((i + 1, j + 1)),
            _ => {}
        }
    }
    false
}

fn words(text: &str) -> Vec<&str> {
    if text.is_empty() { Vec::new() } else { text.split('.').collect() }
}

/// Checks a pattern. For RabbitMQ `*` and `#` inside a word are not wildcards.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    const MAX: usize = 255;
    if pattern.len() > MAX {
        return Err(format!("has {} bytes; a routing key has at most {MAX}", pattern.len()));
    }
    match words(pattern).into_iter().find(|word| word.len() > 1 && word.contains(['*', '#'])) {
        Some(word) => Err(format!("has the word {word:?}; * and # stand for whole words between dots")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_topic_exchange_does() {
        let table = [
            ("ticket.closed.#", "ticket.closed", true),
            ("ticket.closed.#", "ticket.closed.web.es", true),
            ("ticket.closed.#", "ticket.closedx", false),
            ("ticket.*", "ticket.closed", true),
            ("ticket.*", "ticket", false),
            ("ticket.*", "ticket.closed.web", false),
            ("#", "", true),
            ("#", "a.b", true),
            ("*", "", false),
            ("#.web", "web", true),
            ("#.web", "a.b.web", true),
            ("a.#.b.#.c", "a.b.c", true),
            ("a.#.b.#.c", "a.x.y.b.z.c", true),
            ("a.#.b.#.c", "a.x.c", false),
            ("#.#", "", true),
            ("ticket", "Ticket", false),
            ("", "", true),
            ("", "a", false),
            ("a..b", "a..b", true),
        ];
        for (pattern, key, expected) in table {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
            assert_eq!(overlap(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn two_patterns_overlap_when_one_key_matches_both() {
        let many = "#.a.".repeat(60);
        for (one, other, expected) in [
            ("z.#", "a.b", false),
            ("a.*", "*.b", true),
            ("a.*", "*.b.c", false),
            ("a.#", "#.b", true),
            ("#.a.#", "b.*", true),
            ("#.a.b", "a.*.c", false),
            ("*.*", "a.#", true),
            ("*", "#.a.b", false),
            (&format!("{many}#"), &format!("{many}b"), true),
            (&format!("{many}c"), &format!("{many}b"), false),
        ] {
            assert_eq!((overlap(one, other), overlap(other, one)), (expected, expected), "{one} {other}");
        }
    }
}
