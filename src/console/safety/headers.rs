//! Reads request headers that a browser or a proxy sends.

use axum::http::HeaderMap;

/// The first line of a header.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The last item of a header's list: the one that the trusted proxy added. The client can forge those before it.
pub(super) fn last_item<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    last(headers, name)?.rsplit(',').next().map(str::trim)
}

/// The last line of a header: the one that the trusted proxy added.
pub(super) fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(name).iter().next_back()?.to_str().ok()
}

/// The user whom a trusted proxy names in a header.
pub(super) fn user<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get_all(name).iter().next_back()?;
    std::str::from_utf8(value.as_bytes()).ok().filter(|user| !user.is_empty())
}
