//! The nearest known name to one that was mistyped.

/// The known name that is most like `name`, unless none is alike.
#[must_use]
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this Jaro-Winkler likeness a suggestion would be a guess.
    const ALIKE: f64 = 0.8;
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&name.to_lowercase(), candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_near_misses_only() {
        let known = ["completion_date", "name", "name_module", "priority"];
        assert_eq!(suggest("complete_date", known), Some("completion_date"));
        assert_eq!(suggest("Priorty", known), Some("priority"));
        assert_eq!(suggest("zzz", known), None);
    }
}
