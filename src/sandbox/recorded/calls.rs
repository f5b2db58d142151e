//! The keys of `sandbox.answers` in a report: each names the calls that its answer belongs to.

/// Each call: the account refused the first one, and so no other was sent.
pub(in crate::sandbox) const EVERYTHING: &str = "everything";
/// An insert that creates the task.
pub(in crate::sandbox) const CREATED: &str = "created";
/// An insert that does not create the task.
pub(in crate::sandbox) const REFUSED: &str = "refused";
/// An insert that lacks a field.
pub(in crate::sandbox) const MISSING_FIELD: &str = "missing_field";
/// A call with a token that is not known.
pub(in crate::sandbox) const WRONG_TOKEN: &str = "wrong_token";
/// A call for an operation that is not the token's.
pub(in crate::sandbox) const WRONG_OPERATION: &str = "wrong_operation";
/// `tokenInformation.php`.
pub(in crate::sandbox) const COUNTER: &str = "counter";
/// Every call of `query.php`.
pub(in crate::sandbox) const SEARCH: &str = "search";
/// `query.php` that finds a task.
pub(in crate::sandbox) const FOUND: &str = "found";
/// `query.php` that finds no task.
pub(in crate::sandbox) const NOT_FOUND: &str = "not_found";
/// Every call of `queryDates.php`.
pub(in crate::sandbox) const SEARCH_BY_DATES: &str = "search_by_dates";
/// `queryDates.php` that finds a task.
pub(in crate::sandbox) const FOUND_BY_DATES: &str = "found_by_dates";
/// All of them.
pub(in crate::sandbox) const ALL: [&str; 12] = [
    EVERYTHING,
    CREATED,
    REFUSED,
    MISSING_FIELD,
    WRONG_TOKEN,
    WRONG_OPERATION,
    COUNTER,
    SEARCH,
    FOUND,
    NOT_FOUND,
    SEARCH_BY_DATES,
    FOUND_BY_DATES,
];
