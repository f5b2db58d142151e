//! Finds the proxy for the CRM in the usual environment variables: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`.

use std::fmt;

use hyper_util::client::proxy::matcher::Matcher;
use secrecy::SecretString;
use url::Url;

use super::address::is_loopback;
use super::problem::Problem;
use super::raw::Sources;

/// The schemes of a proxy. With `socks5h` the proxy resolves names, with `socks5` this machine does.
const SCHEMES: [&str; 4] = ["http", "https", "socks5", "socks5h"];
const ALLOWED: &str = "http://host:port, https://…, socks5://… or socks5h://…, with user:password@ before the \
                       host if the proxy needs a login";

/// A proxy between the worker and the CRM.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The whole address, with user and password.
    pub url: SecretString,
    /// Scheme, host and port.
    shown: String,
    /// The environment variable that it came from.
    variable: &'static str,
}

impl Proxy {
    /// The proxy for a server, if there is one. A server on loopback has none, because a proxy cannot reach it.
    ///
    /// # Errors
    /// The variable is not a valid address. The worker must not send requests around a proxy that it cannot read.
    pub(super) fn find(sources: &Sources, server: &Url) -> Result<Option<Self>, Problem> {
        let variables = match server.scheme() {
            "http" => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
            _ => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        };
        let named = variables.into_iter().find_map(|name| Some((name, sources.variable(name)?)));
        let Some((variable, value)) = named.filter(|_| !is_loopback(server) && !is_exempt(sources, server)) else {
            return Ok(None);
        };
        // The address may hold a password, so it is not shown.
        let fail = |message: &str| Problem::new(variable, "environment", message).allowed(ALLOWED);
        let text = value.to_str().ok_or_else(|| fail("is not UTF-8"))?.trim();
        if text.starts_with(['"', '\'']) || text.ends_with(['"', '\'']) {
            return Err(fail("is in quotation marks, which are part of the value; leave them out"));
        }
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url = Url::parse(&text).map_err(|error| fail(&format!("is not the address of a proxy: {error}")))?;
        if !SCHEMES.contains(&url.scheme()) {
            return Err(fail(&format!("has the scheme {}, which is not supported", url.scheme())));
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(fail("names no host"));
        };
        let port = url.port_or_known_default().unwrap_or(1080);
        let shown = format!("{}://{host}:{port}", url.scheme());
        Ok(Some(Self { url: SecretString::from(text), shown, variable }))
    }

    /// The host, so that a report can hide it.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        Url::parse(&self.shown).ok()?.host_str().map(str::to_owned)
    }

    /// Whether the connection to the proxy itself is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.shown.starts_with("https:")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {} (from {})", self.shown, self.variable)
    }
}

/// Whether `NO_PROXY` names the server.
fn is_exempt(sources: &Sources, server: &Url) -> bool {
    let list = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| sources.variable(name));
    let list = list.map(|list| list.to_string_lossy().into_owned()).unwrap_or_default();
    let matcher = Matcher::builder().all("http://proxy").no(list).build();
    server.as_str().parse().is_ok_and(|server| matcher.intercept(&server).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(server: &str, environment: &[(&str, &str)]) -> Result<Option<String>, String> {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let sources = Sources { environment, ..Sources::default() };
        let found = Proxy::find(&sources, &server.parse().unwrap());
        found.map(|proxy| proxy.map(|proxy| proxy.to_string())).map_err(|problem| problem.to_string())
    }

    #[test]
    fn proxy_variable_of_the_scheme_wins_over_all_proxy() {
        let all = ("ALL_PROXY", "socks5h://all");
        for (server, environment, shown) in [
            ("https://crm.test", &[][..], None),
            ("https://crm.test", &[all], Some("the proxy socks5h://all:1080 (from ALL_PROXY)")),
            (
                "https://crm.test",
                &[all, ("HTTPS_PROXY", "http://u:secret@one:3128")],
                Some("the proxy http://one:3128 (from HTTPS_PROXY)"),
            ),
            ("https://crm.test", &[("https_proxy", "one:3128")], Some("the proxy http://one:3128 (from https_proxy)")),
            ("https://crm.test", &[("https_proxy", "one")], Some("the proxy http://one:80 (from https_proxy)")),
            (
                "https://crm.test",
                &[("HTTPS_PROXY", "https://[::1]/")],
                Some("the proxy https://[::1]:443 (from HTTPS_PROXY)"),
            ),
            ("https://crm.test", &[("HTTP_PROXY", "not a proxy")], None),
            ("http://crm.test", &[("HTTP_PROXY", "http://one")], Some("the proxy http://one:80 (from HTTP_PROXY)")),
            ("http://crm.test", &[("HTTP_PROXY", ""), all], Some("the proxy socks5h://all:1080 (from ALL_PROXY)")),
            ("https://crm.test", &[all, ("NO_PROXY", "other.test, .crm.test")], None),
            ("https://a.crm.test", &[all, ("no_proxy", "crm.test")], None),
            ("https://crm.test", &[all, ("NO_PROXY", "*")], None),
            ("https://10.1.2.3", &[all, ("NO_PROXY", "10.0.0.0/8")], None),
            (
                "https://notcrm.test",
                &[all, ("NO_PROXY", "crm.test")],
                Some("the proxy socks5h://all:1080 (from ALL_PROXY)"),
            ),
            ("http://127.0.0.1:8089", &[all], None),
            ("http://localhost:8089", &[all], None),
            ("http://[::1]:8089", &[all], None),
        ] {
            assert_eq!(found(server, environment), Ok(shown.map(str::to_owned)), "{server} {environment:?}");
        }
    }

    #[test]
    fn invalid_proxy_variable_is_refused_without_quoting_its_value() {
        for value in [
            "not a url",
            "\"http://proxy:3128\"",
            "http://[::1",
            "http://",
            "foo://secret:9",
            "ftp://secret",
            "socks://secret",
            "http://secret:99999",
            "://secret",
        ] {
            let refused = found("https://crm.test", &[("HTTPS_PROXY", value)]).expect_err(value);
            assert!(refused.starts_with("HTTPS_PROXY (environment): "), "{refused}");
            assert!(refused.contains("allowed: http://host:port") && !refused.contains("secret"), "{refused}");
        }
    }
}
