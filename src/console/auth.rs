//! Logins: password files with Argon2 hashes, and a delay that grows after each wrong password.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Argon2, Params};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Console, files};
use crate::observe::ledger_page::hex;
use crate::sync::lock;

/// The longest password that is checked, in bytes.
const MAX_PASSWORD_BYTES: usize = 1_024;
/// First and longest wait after wrong passwords.
const LOGIN_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The most addresses whose wrong passwords are remembered.
const MAX_ADDRESSES: usize = 10_000;
/// The most memory that one hash may ask for, in KiB, so that a password file cannot make a login use all memory.
const MAX_HASH_MEMORY_KIB: u32 = 1 << 18;

/// What a visitor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything.
    Operator,
    /// See everything but bodies, change nothing.
    Viewer,
}

/// The `login` of a session in a console without passwords.
pub(crate) const LOCAL: &str = "local";
/// The `login` of a session whose user a trusted proxy named.
pub(crate) const PROXY: &str = "proxy";

/// The result of checking a name and a password.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LoginResult {
    /// They are right. Holds the `login` of the new session.
    Right(String),
    Wrong,
    /// They were not checked: the address must wait for so long.
    Wait(Duration),
}

/// A line of a password file.
struct Login {
    /// The only name that may use this password; none for any name.
    name: Option<String>,
    hash: SecretString,
    role: Role,
}

impl Login {
    /// A digest that identifies this line, in hexadecimal.
    fn digest(&self) -> String {
        let hash = Sha256::new().chain_update(self.hash.expose_secret());
        hex(&hash.chain_update(self.name.as_deref().unwrap_or_default()).finalize())
    }
}

/// The passwords, and the addresses that sent wrong ones.
pub(crate) struct Auth {
    logins: Vec<Login>,
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
    /// One password check at a time: each takes memory and a processor.
    checking: Semaphore,
}

impl Auth {
    /// Reads the password files, until `stop`.
    ///
    /// # Errors
    /// A file that cannot be read, or has a line that is no hash.
    pub(crate) fn new(config: &Console, stop: &CancellationToken) -> Result<Self, String> {
        let mut logins = Vec::new();
        let files = [
            ("password_file", &config.password_file, Role::Operator),
            ("viewer_password_file", &config.viewer_password_file, Role::Viewer),
        ];
        for (key, path, role) in files {
            if let Some(path) = path {
                logins
                    .extend(read(path, role, stop).map_err(|why| format!("console.{key}: {}: {why}", path.display()))?);
            }
        }
        Ok(Self { logins, failures: Mutex::default(), checking: Semaphore::new(1) })
    }

    /// Whether visitors must log in.
    pub(crate) fn is_needed(&self) -> bool {
        !self.logins.is_empty()
    }

    /// How long an address must wait before it may try again.
    pub(crate) fn wait(&self, address: IpAddr) -> Option<Duration> {
        let failures = lock(&self.failures);
        let (count, at) = failures.get(&network(address))?;
        delay(*count).checked_sub(at.elapsed()).filter(|left| !left.is_zero())
    }

    /// The role of a session with this `login`. None if the session is no longer valid: its password or its user was removed from
    /// the files, or passwords are needed now.
    pub(crate) fn role(&self, login: &str) -> Option<Role> {
        match login {
            LOCAL => (!self.is_needed()).then_some(Role::Operator),
            // Its name comes with every request.
            PROXY => None,
            _ => self.logins.iter().find(|known| same(&known.digest(), login)).map(|known| known.role),
        }
    }

    /// Checks a name and a password. After wrong ones the address has to wait.
    pub(crate) async fn check(&self, address: IpAddr, name: &str, password: &SecretString) -> LoginResult {
        let turn = self.checking.acquire().await;
        // Another request from there may have been wrong while this one waited for its turn.
        if let Some(wait) = self.wait(address) {
            return LoginResult::Wait(wait);
        }
        let (address, mut right) = (network(address), None);
        if turn.is_ok() && password.expose_secret().len() <= MAX_PASSWORD_BYTES {
            tokio::task::block_in_place(|| {
                for login in self.logins.iter().filter(|login| login.name.as_deref().is_none_or(|only| only == name)) {
                    if right.is_none() && verify(&login.hash, password) {
                        right = Some(login.digest());
                    }
                }
            });
        }
        let mut failures = lock(&self.failures);
        if right.is_some() {
            failures.remove(&address);
        } else {
            if failures.len() >= MAX_ADDRESSES {
                failures.retain(|_, (count, at)| at.elapsed() < delay(*count));
            }
            if failures.len() < MAX_ADDRESSES || failures.contains_key(&address) {
                let failure = failures.entry(address).or_insert((0, Instant::now()));
                *failure = (failure.0.saturating_add(1), Instant::now());
            }
        }
        right.map_or(LoginResult::Wrong, LoginResult::Right)
    }
}

/// What must wait after a wrong password: an IPv4 address, or a whole IPv6 network, because one client can use all addresses
/// of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// The wait after this many wrong passwords in a row.
fn delay(count: u32) -> Duration {
    LOGIN_WAITS.0.saturating_mul(1 << count.saturating_sub(1).min(16)).min(LOGIN_WAITS.1)
}

fn verify(hash: &SecretString, password: &SecretString) -> bool {
    PasswordHash::new(hash.expose_secret())
        .is_ok_and(|hash| Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash).is_ok())
}

fn read(path: &Path, role: Role, stop: &CancellationToken) -> Result<Vec<Login>, String> {
    let text = files::read(path, files::MAX_SECRET_BYTES, stop)?;
    files::check_mark(&text)?;
    let mut logins = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
        let (name, hash) = match line.trim().split_once(':') {
            Some((name, hash)) => (Some(name.to_owned()), hash),
            None => (None, line.trim()),
        };
        let is_good = PasswordHash::new(hash).is_ok_and(|parsed| {
            let memory = Params::try_from(&parsed).map(|params| params.m_cost());
            parsed.algorithm.as_str().starts_with("argon2") && memory.is_ok_and(|memory| memory <= MAX_HASH_MEMORY_KIB)
        });
        if !is_good {
            return Err(format!("line {} is not an Argon2 hash; \"console --hash-password\" makes one", n + 1));
        }
        logins.push(Login { name, hash: SecretString::from(hash), role });
    }
    if logins.is_empty() {
        return Err("is empty; \"console --hash-password\" makes a line".to_owned());
    }
    Ok(logins)
}

/// Hashes a password in the form that a password file holds.
///
/// # Errors
/// There is no random number, or the hash cannot be computed.
pub(crate) fn hash_password(password: &SecretString) -> Result<String, String> {
    let salt = SaltString::encode_b64(&random()?).map_err(|error| error.to_string())?;
    let hash = Argon2::default().hash_password(password.expose_secret().as_bytes(), &salt);
    hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

/// A random secret in hexadecimal.
///
/// # Errors
/// The operating system provides no random numbers.
pub(crate) fn secret() -> Result<String, String> {
    random().map(|bytes| hex(&bytes))
}

fn random() -> Result<[u8; 16], String> {
    let mut bytes = [0; 16];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| "the operating system gives no random numbers".to_owned())
}

/// Compares two secrets in a time that does not depend on where they differ.
pub(crate) fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn auth(lines: &str) -> Result<Auth, String> {
        let path = std::env::temp_dir().join(format!("passwords-{}", uuid::Uuid::now_v7()));
        std::fs::write(&path, lines).unwrap();
        let environment = vec![("WTW_CONSOLE_PASSWORD_FILE".into(), path.clone().into())];
        let config = Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config;
        let auth = Auth::new(&config.console, &CancellationToken::new());
        std::fs::remove_file(path).unwrap();
        auth
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wrong_password_delays_the_next_login() {
        let hash = hash_password(&"secret".into()).unwrap();
        let auth = auth(&format!("# operators\nana:{hash}\n")).unwrap();
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let LoginResult::Right(login) = auth.check(here, "ana", &"secret".into()).await else { panic!("it is right") };
        assert_eq!((auth.role(&login), auth.role(LOCAL), auth.role(PROXY)), (Some(Role::Operator), None, None));
        assert_eq!(auth.wait(here), None);
        let one = async |n: usize| auth.check(here, ["ana", "eve"][n % 2], &"Secret".into()).await;
        let all = futures_util::future::join_all((0..10).map(one)).await;
        assert_eq!(all.iter().filter(|checked| **checked == LoginResult::Wrong).count(), 1, "{all:?}");
        assert!(matches!(all.last(), Some(LoginResult::Wait(_))), "ten at a time: {all:?}");
        assert!(auth.wait(here).is_some(), "{:?}", auth.wait(here));
        assert_eq!(auth.wait(there), None, "another address does not wait");
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert_eq!(auth.check(one, "ana", &"Secret".into()).await, LoginResult::Wrong);
        assert!(auth.wait(same).is_some() && auth.wait(other).is_none(), "an IPv6 network waits as one");
        assert_eq!([1, 2, 5, 100].map(|count| delay(count).as_secs()), [1, 2, 16, 300]);
    }

    #[test]
    fn password_file_with_a_bad_line_is_refused_without_quoting_it() {
        for (lines, why) in [
            ("", "is empty"),
            ("hunter2", "line 1 is not an Argon2 hash"),
            ("\n$2y$05$abc", "line 2"),
            ("\u{feff}ana:hunter2", "begins with a byte-order mark"),
        ] {
            let refused = auth(lines).err().unwrap();
            assert!(refused.contains(why) && !refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn password_file_that_never_ends_is_refused() {
        let environment = vec![("WTW_CONSOLE_PASSWORD_FILE".into(), "/dev/zero".into())];
        let config = Config::load(&Sources { environment, ..Sources::default() }, &[]).unwrap().config;
        let refused = Auth::new(&config.console, &CancellationToken::new()).err().unwrap();
        assert_eq!(refused, "console.password_file: /dev/zero: is larger than 64 KiB");
        let stopped = CancellationToken::new();
        stopped.cancel();
        let refused = Auth::new(&config.console, &stopped).err().unwrap();
        assert_eq!(refused, "console.password_file: /dev/zero: was not read: interrupted");
    }

    #[test]
    fn secrets_are_equal_only_when_all_characters_are() {
        assert!(same("abc", "abc") && !same("abc", "abd") && !same("abc", "ab"));
        assert_ne!(secret().unwrap(), secret().unwrap());
    }
}
