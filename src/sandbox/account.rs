//! The ways in which a real account may differ from the vendor's pages. `crm-report` finds out which of them a real account has.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::recorded::calls;
use crate::duration;
use crate::suggest::suggest;

/// How `code` is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Codes {
    /// A number from insert.php and in refusals, a string from the other calls.
    #[default]
    Documented,
    /// Always a string.
    Strings,
    /// Always a number.
    Numbers,
}

/// The form of `wolkvox_id`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Ids {
    /// 24 hexadecimal digits, the first eight of them the time of creation.
    #[default]
    ObjectId,
    /// A UUID.
    Uuid,
    /// A number.
    Number,
    /// It is missing in the answer of insert.php.
    None,
}

/// How the account behaves. The default is what the vendor's pages say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Account {
    pub(super) codes: Codes,
    /// HTTP status 200 for errors too.
    pub(super) always_200: bool,
    pub(super) ids: Ids,
    /// The zone of times in answers, and of the quota's day.
    pub(super) zone: TimeZone,
    /// When the quota's day ends, as the time since midnight.
    pub(super) day_end: SignedDuration,
    /// How far its clock is ahead of the real time.
    pub(super) clock: SignedDuration,
    /// `é` comes back as `u00e9`.
    pub(super) altered_accents: bool,
    /// How old the counter of `tokenInformation.php` may be.
    pub(super) slow_counter: Duration,
    /// `tokenInformation.php` spends no call.
    pub(super) free_information: bool,
    /// How long after its creation a task is found.
    pub(super) slow_query: Duration,
    /// A task with missing fields is created.
    pub(super) lenient: bool,
    /// The connection is closed after each answer, which announces it.
    pub(super) close: bool,
    /// The connection is closed after each answer, which does not announce it.
    pub(super) silent_close: bool,
    /// The verdict on an unknown token, if it is not the vendor's.
    pub(super) bad_token: Option<(u16, String)>,
    /// The verdict on every search, if activities cannot be searched.
    pub(super) refused_search: Option<(u16, String)>,
    /// The shift of the dates of a task in searches; later is positive.
    pub(super) shifted_dates: SignedDuration,
    /// Each token is accepted.
    pub(super) any_token: bool,
    /// A token is accepted for each operation.
    pub(super) any_operation: bool,
    /// Recorded answers that are not replayed, because a rule that is not from the report decides the answer.
    pub(super) not_replayed: Vec<&'static str>,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            codes: Codes::default(),
            always_200: false,
            ids: Ids::default(),
            zone: TimeZone::UTC,
            day_end: SignedDuration::ZERO,
            clock: SignedDuration::ZERO,
            altered_accents: false,
            slow_counter: Duration::ZERO,
            free_information: false,
            slow_query: Duration::ZERO,
            lenient: false,
            close: false,
            silent_close: false,
            bad_token: None,
            refused_search: None,
            shifted_dates: SignedDuration::ZERO,
            any_token: false,
            any_operation: false,
            not_replayed: Vec::new(),
        }
    }
}

/// What can follow `account:` in a rule.
pub(super) const FORMS: [&str; 21] = [
    "string-codes",
    "number-codes",
    "status-200",
    "no-id",
    "uuid-id",
    "number-id",
    "zone:NAME",
    "day-ends:HH:MM",
    "clock:+DURATION or clock:-DURATION",
    "altered-accents",
    "slow-counter:DURATION",
    "free-information",
    "slow-query:DURATION",
    "lenient",
    "close",
    "silent-close",
    "any-token",
    "any-operation",
    "bad-token:CODE:TEXT",
    "refused-search:CODE:TEXT",
    "shifted-dates:+DURATION or shifted-dates:-DURATION",
];

impl Account {
    /// Applies what follows `account:` in a rule.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn apply(&mut self, text: &str) -> Result<(), String> {
        let (word, argument) = match text.split_once(':') {
            Some((word, argument)) => (word, Some(argument)),
            None => (text, None),
        };
        match (word, argument) {
            ("string-codes", None) => self.codes = Codes::Strings,
            ("number-codes", None) => self.codes = Codes::Numbers,
            ("status-200", None) => self.always_200 = true,
            ("no-id", None) => self.ids = Ids::None,
            ("uuid-id", None) => self.ids = Ids::Uuid,
            ("number-id", None) => self.ids = Ids::Number,
            ("altered-accents", None) => self.altered_accents = true,
            ("free-information", None) => self.free_information = true,
            ("lenient", None) => self.lenient = true,
            ("any-token", None) => self.any_token = true,
            ("any-operation", None) => self.any_operation = true,
            ("close", None) => self.close = true,
            ("silent-close", None) => self.silent_close = true,
            ("slow-counter", Some(text)) => self.slow_counter = wait(text)?,
            ("slow-query", Some(text)) => self.slow_query = wait(text)?,
            ("clock", Some(text)) => self.clock = signed(text)?,
            ("zone", Some(name)) => self.zone = zone(name)?,
            ("day-ends", Some(text)) => self.day_end = time_of_day(text)?,
            ("shifted-dates", Some(text)) => self.shifted_dates = signed(text)?,
            ("refused-search", Some(verdict)) => self.refused_search = Some(refusal(verdict)?),
            ("bad-token", Some(verdict)) => self.bad_token = Some(refusal(verdict)?),
            (word, _) => return Err(unknown(word)),
        }
        Ok(())
    }

    /// An id as this account writes it.
    pub(super) fn written_id(&self, id: &str) -> Value {
        let number = id.parse::<u64>().ok().filter(|_| self.ids == Ids::Number);
        number.map_or_else(|| Value::from(id), Value::from)
    }

    /// No longer replays the recorded answers that this behaviour decides.
    pub(super) fn stop_replaying(&mut self, behaviour: &str) {
        let answers: &[&'static str] = match behaviour.split(':').next().unwrap_or_default() {
            "string-codes" | "number-codes" | "status-200" => &calls::ALL,
            "no-id" | "uuid-id" | "number-id" => &[calls::CREATED],
            "lenient" => &[calls::MISSING_FIELD],
            "any-token" | "any-operation" | "bad-token" => &[calls::WRONG_TOKEN, calls::WRONG_OPERATION],
            _ => &[],
        };
        self.not_replayed.extend(answers);
    }
}

fn unknown(word: &str) -> String {
    let words = || FORMS.iter().map(|form| form.split(':').next().unwrap_or(form));
    match FORMS.iter().find(|form| form.split(':').next() == Some(word)) {
        Some(form) => format!("\"account:{word}\" must be written account:{form}"),
        None => {
            let hint = suggest(word, words()).map_or_else(String::new, |near| format!(", did you mean \"{near}\"?"));
            format!("unknown account behaviour \"{word}\"{hint} (allowed are {})", FORMS.join(", "))
        }
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("the duration \"{text}\" must be {}", duration::ALLOWED))
}

fn signed(text: &str) -> Result<SignedDuration, String> {
    /// The largest shift: no clock is wrong by more. A time that is shifted by this much is still a valid time.
    const MAX_SHIFT: Duration = Duration::from_secs(400 * 24 * 3600);
    let (behind, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let ahead = wait(rest)?.min(MAX_SHIFT);
    let ahead = SignedDuration::try_from(ahead).map_err(|error| error.to_string())?;
    Ok(if behind { -ahead } else { ahead })
}

fn zone(name: &str) -> Result<TimeZone, String> {
    if let Some(offset) = name.strip_prefix("UTC").filter(|offset| !offset.is_empty()) {
        return self::offset(offset).ok_or_else(|| format!("the offset \"{name}\" must be written UTC-05:00"));
    }
    TimeZone::get(name)
        .map_err(|_| format!("the zone \"{name}\" must be an IANA name such as America/Bogota, or UTC-05:00"))
}

/// `HH:MM`, as the time since midnight.
fn time_of_day(text: &str) -> Result<SignedDuration, String> {
    match (text.len(), text.parse::<Time>()) {
        (5, Ok(time)) => Ok(time.duration_since(Time::midnight())),
        _ => Err(format!("the time \"{text}\" must be written HH:MM, from 00:00 to 23:59")),
    }
}

/// `±HH:MM`.
fn offset(text: &str) -> Option<TimeZone> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let in_range = (0..=23).contains(&hours) && (0..=59).contains(&minutes);
    let seconds = in_range.then_some(sign * (hours * 3600 + minutes * 60))?;
    jiff::tz::Offset::from_seconds(seconds).ok().map(TimeZone::fixed)
}

fn refusal(verdict: &str) -> Result<(u16, String), String> {
    let written = "the verdict must be written CODE:TEXT, with a code from 300 to 599";
    let (code, text) = verdict.split_once(':').ok_or(written)?;
    let code: u16 = code.parse().map_err(|_| written)?;
    (300..=599).contains(&code).then(|| (code, text.to_owned())).ok_or_else(|| written.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_applied_and_changes_something() {
        for form in FORMS {
            let example = form
                .split(" or ")
                .next()
                .unwrap()
                .replace("NAME", "UTC-05:00")
                .replace("HH:MM", "07:00")
                .replace("DURATION", "90s")
                .replace("CODE:TEXT", "401:NO");
            let mut account = Account::default();
            assert_eq!(account.apply(&example), Ok(()), "{example}");
            assert_ne!(account, Account::default(), "{example}");
        }
    }

    #[test]
    fn account_refuses_settings_that_it_does_not_know() {
        for (text, said) in [
            ("string-code", "unknown account behaviour \"string-code\", did you mean \"string-codes\"?"),
            ("zone", "\"account:zone\" must be written account:zone:NAME"),
            ("lenient:1", "\"account:lenient\" must be written account:lenient"),
            ("zone:Mars", "the zone \"Mars\" must be"),
            ("day-ends:7", "the time \"7\" must be written HH:MM"),
            ("day-ends:24:00", "the time \"24:00\" must be written HH:MM"),
            ("zone:UTC-5", "the offset \"UTC-5\" must be"),
            ("clock:5", "the duration \"5\" must be"),
            ("bad-token:200:OK", "the verdict must be"),
            ("bad-token:401", "the verdict must be"),
        ] {
            let error = Account::default().apply(text).unwrap_err();
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
