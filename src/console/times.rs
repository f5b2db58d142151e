//! Times on pages: how long ago, the account's wall clock, and UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A point in time on a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct When {
    /// `3 min ago`
    pub(crate) relative: String,
    /// The account's wall clock, with its zone.
    pub(crate) local: String,
    /// UTC, for the title.
    pub(crate) utc: String,
}

impl When {
    pub(crate) fn new(at: Timestamp, now: Timestamp, zone: &TimeZone) -> Self {
        let name = zone.iana_name().unwrap_or("UTC");
        let local = zone.to_datetime(at);
        let form = if local.date() == zone.to_datetime(now).date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M" };
        Self { relative: relative(at, now), local: format!("{} {name}", local.strftime(form)), utc: format!("{at:.0}") }
    }

    pub(crate) fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Self {
        match text.parse() {
            Ok(at) => Self::new(at, now, zone),
            Err(_) => Self { relative: "at an unknown time".to_owned(), local: text.to_owned(), utc: String::new() },
        }
    }

    /// The time of the next probe. A probe needs a message, so one that is due is sent with the next message.
    pub(crate) fn of_probe(self, now: Timestamp) -> Self {
        let is_due = self.utc.parse::<Timestamp>().is_ok_and(|at| at <= now);
        let relative = if is_due { "with the next message".to_owned() } else { self.relative };
        Self { relative, ..self }
    }

    pub(crate) fn maybe(at: Option<Timestamp>, now: Timestamp, zone: &TimeZone) -> Option<Self> {
        at.map(|at| Self::new(at, now, zone))
    }
}

/// The distance between a time and `now`, in one unit.
fn relative(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - at.as_second();
    let (count, unit) = match seconds.abs() {
        0..=89 => (seconds.abs(), "s"),
        90..=5_399 => ((seconds.abs() + 30) / 60, "min"),
        5_400..=129_599 => ((seconds.abs() + 1_800) / 3_600, "h"),
        _ => ((seconds.abs() + 43_200) / 86_400, "days"),
    };
    if seconds >= 0 { format!("{count} {unit} ago") } else { format!("in {count} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shown_in_the_accounts_zone_and_relative() {
        let now: Timestamp = "2026-03-01T15:00:00Z".parse().unwrap();
        let zone = TimeZone::get("America/Bogota").unwrap();
        for (at, relative, local) in [
            ("2026-03-01T14:59:48Z", "12 s ago", "09:59:48 America/Bogota"),
            ("2026-03-01T14:20:00Z", "40 min ago", "09:20:00 America/Bogota"),
            ("2026-02-28T14:00:00Z", "25 h ago", "2026-02-28 09:00 America/Bogota"),
            ("2026-02-01T15:00:00Z", "28 days ago", "2026-02-01 10:00 America/Bogota"),
            ("2026-03-01T15:10:00Z", "in 10 min", "10:10:00 America/Bogota"),
        ] {
            let when = When::new(at.parse().unwrap(), now, &zone);
            assert_eq!((when.relative.as_str(), when.local.as_str(), when.utc.as_str()), (relative, local, at));
            let due = when.of_probe(now).relative;
            assert_eq!(due, if relative.ends_with("ago") { "with the next message" } else { relative });
        }
    }
}
