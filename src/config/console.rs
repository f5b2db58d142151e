//! `[console]`: the console in the browser.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use url::Url;

use super::keys::Key;
use super::parse::{Parsed, Reader, Reported, flag, path, text};

/// `[console]`
#[derive(Clone, Debug)]
pub struct Console {
    /// The console's address.
    pub listen: SocketAddr,
    /// The admin addresses of the workers.
    pub workers: Vec<Url>,
    /// The file that holds actions, sessions and the check-off list.
    pub state: PathBuf,
    /// Argon2 hashes of the operators' passwords.
    pub password_file: Option<PathBuf>,
    /// Argon2 hashes of the viewers' passwords.
    pub viewer_password_file: Option<PathBuf>,
    /// The header in which a trusted proxy names the user.
    pub user_header: Option<String>,
    /// Whether actions are switched off.
    pub read_only: bool,
    /// Host names of the console besides the loopback names.
    pub allowed_hosts: Vec<String>,
    /// The start of every page's path; it ends with a slash.
    pub base_path: String,
    /// Proxies whose headers are trusted.
    pub trusted_proxies: Vec<IpAddr>,
}

pub(super) fn console(reader: &mut Reader<'_>) -> Result<Console, Reported> {
    let listen = reader.want("console.listen", socket);
    let workers = reader.each("console.workers", worker);
    let state = reader.want("console.state", path);
    let password_file = reader.read("console.password_file", path);
    let viewer_password_file = reader.read("console.viewer_password_file", path);
    let user_header = reader.read("console.user_header", header);
    let read_only = reader.want("console.read_only", flag);
    let allowed_hosts = reader.each("console.allowed_hosts", host);
    let base_path = reader.want("console.base_path", base_path);
    let trusted_proxies = reader.each("console.trusted_proxies", address);
    if let (Ok(Some(_)), Ok(proxies)) = (&user_header, &trusted_proxies)
        && proxies.is_empty()
    {
        reader.problem("console.user_header", "needs console.trusted_proxies: anybody could send that header");
    }
    if let (Ok(None), Ok(Some(_))) = (&password_file, &viewer_password_file) {
        reader.problem("console.viewer_password_file", "needs console.password_file, too: without it nobody can act");
    }
    Ok(Console {
        listen: listen?,
        workers: workers?,
        state: state?,
        password_file: password_file?,
        viewer_password_file: viewer_password_file?,
        user_header: user_header?,
        read_only: read_only?,
        allowed_hosts: allowed_hosts?,
        base_path: base_path?,
        trusted_proxies: trusted_proxies?,
    })
}

fn socket(_: &Key, text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "is not an IP address with a port".to_owned())
}

fn worker(_: &Key, text: &str) -> Parsed<Url> {
    let url = Url::parse(text).map_err(|_| "is not an address such as http://127.0.0.1:9464")?;
    match url.scheme() == "http" && url.host_str().is_some() && url.query().is_none() && url.username().is_empty() {
        true => Ok(url),
        false => {
            Err("is not an address such as http://127.0.0.1:9464: admin ports speak plain HTTP, without a login"
                .to_owned())
        }
    }
}

fn header(key: &Key, given: &str) -> Parsed<String> {
    let given = text(key, given)?;
    match given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        true => Ok(given.to_ascii_lowercase()),
        false => Err("is not the name of a header".to_owned()),
    }
}

fn host(key: &Key, given: &str) -> Parsed<String> {
    let given = text(key, given)?;
    match given.contains(['/', ' ', '*']) {
        true => Err("is not a host name, such as console.example.com (no scheme, no path, no wildcard)".to_owned()),
        false => Ok(given.to_ascii_lowercase()),
    }
}

fn base_path(key: &Key, given: &str) -> Parsed<String> {
    let given = text(key, given)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
    if !given.starts_with('/') || !given.chars().all(is_plain) || given.contains("//") {
        return Err("is not a path such as /wolkvox/".to_owned());
    }
    Ok(if given.ends_with('/') { given } else { format!("{given}/") })
}

fn address(_: &Key, text: &str) -> Parsed<IpAddr> {
    text.parse().map_err(|_| "is not an IP address".to_owned())
}
