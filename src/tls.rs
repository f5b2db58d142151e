//! Reads the certificate files of the configuration, and explains certificate errors in words.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::Path;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};

use crate::config::files::read_bytes;

/// The largest file with certificates or a key, in bytes (4 MiB). A machine's own bundle has a quarter of a MiB.
const MAX_FILE: u64 = 4 << 20;

/// Reads a file with certificates or a key that a configuration key names.
///
/// # Errors
/// The configuration key, the file and what is wrong with it.
pub(crate) fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    read_bytes(path, MAX_FILE).map_err(|problem| format!("{key} ({}): {problem}", path.display()))
}

/// Reads the certificates of a PEM file that a key names.
///
/// # Errors
/// The key, the file and what is wrong with it.
pub(crate) fn read_certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |problem: &dyn Display| format!("{key} ({}): {problem}", path.display());
    let pem = read(key, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|_| fail(&"is not a readable PEM file"))?;
    if certificates.is_empty() {
        return Err(fail(&"has no certificate; one begins with -----BEGIN CERTIFICATE-----"));
    }
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store
            .add(certificate.clone())
            .map_err(|error| fail(&format!("has a certificate that cannot be read: {error}")))?;
    }
    Ok(certificates)
}

/// Checks that a client's certificate and key can be read and belong together.
///
/// # Errors
/// The key, the file and what is wrong with it.
pub(crate) fn check_identity((cert_key, cert): (&str, &Path), (key_key, key): (&str, &Path)) -> Result<(), String> {
    let certificates = read_certificates(cert_key, cert)?;
    let fail = |problem: &dyn Display| format!("{key_key} ({}): {problem}", key.display());
    let pem = read(key_key, key)?;
    if String::from_utf8_lossy(&pem).contains("ENCRYPTED") {
        return Err(fail(&"is encrypted; write it without a password: openssl pkey -in FILE -out NEW-FILE"));
    }
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| fail(&"has no readable private key"))?;
    let private = rustls::crypto::ring::sign::any_supported_type(&private);
    let private = private.map_err(|_| fail(&"has a key of a kind that is not supported"))?;
    match CertifiedKey::new(certificates, private).keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(fail(&format!("is not the key of the first certificate in {cert_key} ({})", cert.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Explains a failed TLS handshake if a certificate is the reason. `ca_key` is the key for further root certificates.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others are rare, and described by the library")]
pub(crate) fn explain(error: &(dyn Error + 'static), ca_key: &str) -> Option<String> {
    let found = find(error)?;
    Some(match found {
        rustls::Error::InvalidCertificate(certificate) => refused(certificate, ca_key),
        rustls::Error::General(said) if said.contains("No CA certificates") => {
            format!("this machine has no root certificates; install ca-certificates, or name a PEM file in {ca_key}")
        }
        rustls::Error::AlertReceived(alert) => format!("the server ended the TLS handshake: {alert:?}"),
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS".to_owned(),
        _ => return None,
    })
}

const NOT_FOR_SERVERS: &str = "the server's certificate is not one for servers: its extendedKeyUsage lacks serverAuth";

#[expect(clippy::wildcard_enum_match_arm, reason = "all others are rare, and named by the library")]
fn refused(error: &CertificateError, ca_key: &str) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            format!("the server's certificate was issued by an authority that neither this machine nor {ca_key} knows")
        }
        CertificateError::BadSignature | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            format!(
                "the authority in {ca_key} has the right name, but did not sign the server's certificate; is the file outdated?"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; is this machine's clock right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server's certificate is for another name: {error}")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the server uses the certificate of an authority (CA:TRUE) as its own. TLS does not allow that, even if the \
             certificate is in {ca_key}; make it with basicConstraints=CA:FALSE"
                .replace("{ca_key}", ca_key)
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => NOT_FOR_SERVERS.to_owned(),
        CertificateError::Other(other) if format!("{other:?}").contains("EkuError") => NOT_FOR_SERVERS.to_owned(),
        other => format!("the server's certificate is refused: {other}"),
    }
}

/// The TLS library's error among the causes of another error.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // `source` leaves out the error inside an I/O error.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    #[test]
    fn endless_file_is_refused() {
        let endless = Path::new("/dev/zero");
        let refused = read_certificates("crm.ca_file", endless).unwrap_err();
        assert_eq!(refused, "crm.ca_file (/dev/zero): is larger than 4096 KiB");
    }

    #[test]
    fn certificate_that_is_not_for_servers_is_named() {
        let other = CertificateError::Other(OtherError(Arc::new(io::Error::other("EkuError"))));
        for error in [CertificateError::InvalidPurpose, other] {
            assert!(refused(&error, "crm.ca_file").contains("extendedKeyUsage"), "{error}");
        }
    }
}
