//! Small charts as inline SVG, without a script and without styles in attributes.

use std::fmt::Write as _;

const WIDTH: u64 = 360;
const HEIGHT: u64 = 60;
pub(crate) const MINUTES: usize = 60;

/// A bar for each of the last sixty minutes, and a text for screen readers. The newest value is the last one. Both texts
/// must be this program's own: they are not escaped.
pub(crate) fn bars(title: &str, class: &str, values: &[Option<u64>]) -> String {
    let most = values.iter().flatten().copied().max().unwrap_or(0);
    let total: u64 = values.iter().flatten().sum();
    let mut svg = format!(
        "<svg class=\"chart {class}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}: {total} in the last hour, \
         at most {most} in a minute\"><title>{title}: at most {most} in a minute</title>"
    );
    let step = WIDTH / MINUTES as u64;
    let missing = MINUTES.saturating_sub(values.len());
    for (n, value) in values.iter().enumerate().filter_map(|(n, value)| Some((n + missing, (*value)?))) {
        if value == 0 || most == 0 {
            continue;
        }
        let height = (value * (HEIGHT - 2)).div_ceil(most).max(1);
        // Writing to a `String` cannot fail.
        let _ = write!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{height}\"/>",
            n as u64 * step,
            HEIGHT - height,
            step - 1
        );
    }
    let _ = write!(svg, "<line x1=\"0\" y1=\"{0}\" x2=\"{WIDTH}\" y2=\"{0}\"/></svg>", HEIGHT - 1);
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chart_has_a_bar_for_each_minute_with_a_value() {
        let chart = bars("Created", "good", &[Some(0), None, Some(1), Some(50)]);
        assert_eq!(chart.matches("<rect").count(), 2);
        assert!(chart.contains("Created: 51 in the last hour") && chart.contains("x=\"354\""), "{chart}");
        assert_eq!(bars("Created", "good", &[]).matches("<rect").count(), 0);
    }
}
