//! Finds the known name that is most similar to a mistyped one, for error messages.

/// The known name that is most similar to `name`, or the only one that ends with it (`owner` for `wolkvox_owner`). None
/// when no name is similar.
#[must_use]
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// A lower Jaro-Winkler similarity is a guess.
    const ALIKE: f64 = 0.8;
    let name = name.to_lowercase();
    let known: Vec<&str> = known.into_iter().collect();
    let alike = known.iter().map(|candidate| (strsim::jaro_winkler(&name, candidate), *candidate));
    let most = alike.filter(|(likeness, _)| *likeness >= ALIKE).max_by(|(a, _), (b, _)| a.total_cmp(b));
    most.map(|(_, candidate)| candidate).or_else(|| {
        let is_end = |candidate: &&&str| candidate.rsplit('_').next() == Some(&name);
        let mut ends = known.iter().filter(is_end);
        ends.next().filter(|_| ends.next().is_none()).copied()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_suggested_only_for_a_near_miss() {
        let known = ["completion_date", "name", "name_module", "priority"];
        assert_eq!(suggest("complete_date", known), Some("completion_date"));
        assert_eq!(suggest("Priorty", known), Some("priority"));
        assert_eq!(suggest("zzz", known), None);
        assert_eq!(suggest("module", known), Some("name_module"));
        assert_eq!(suggest("date", ["completion_date", "reminder_date"]), None, "which of the two?");
    }
}
