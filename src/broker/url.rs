//! What an address in `broker.urls` says: host, virtual host and user, and the defaults of its parameters.

use secrecy::ExposeSecret;
use url::Url;

use crate::config::BrokerUrl;

/// Seconds between heartbeats; a dead peer is noticed after twice as long.
const HEARTBEAT_SECONDS: usize = 8;
/// The largest frame, in bytes: RabbitMQ's default. lapin has two buffers of 32 frames. If it knows their size before it connects,
/// they use no memory until they are needed.
pub(super) const FRAME_BYTES: usize = 131_072;

/// The address with a heartbeat and a frame size, unless it names its own.
pub(super) fn with_defaults(url: &BrokerUrl) -> String {
    let secret = url.secret.expose_secret();
    let Ok(mut address) = Url::parse(secret) else { return secret.to_owned() };
    for (name, default) in [("heartbeat", HEARTBEAT_SECONDS), ("frame_max", FRAME_BYTES)] {
        if !address.query_pairs().any(|(key, _)| key == name) {
            address.query_pairs_mut().append_pair(name, &default.to_string());
        }
    }
    address.into()
}

/// The virtual host that an address names.
#[must_use]
pub fn vhost(url: &BrokerUrl) -> String {
    let parsed: Result<lapin::uri::AMQPUri, _> = url.secret.expose_secret().parse();
    parsed.map_or_else(|_| "/".to_owned(), |uri| uri.vhost)
}

/// Host and port of an address, as a resolver takes them.
#[must_use]
pub fn authority(url: &BrokerUrl) -> Option<(String, u16)> {
    let url = Url::parse(url.secret.expose_secret()).ok()?;
    let usual = if url.scheme() == "amqps" { 5671 } else { 5672 };
    Some((url.host_str()?.to_owned(), url.port().unwrap_or(usual)))
}

/// The user that an address logs in as: `guest` if it names none, empty if the address cannot be read.
#[must_use]
pub fn user(url: &BrokerUrl) -> String {
    let parsed: Result<lapin::uri::AMQPUri, _> = url.secret.expose_secret().parse();
    parsed.map_or_else(|_| String::new(), |uri| uri.authority.userinfo.username)
}
