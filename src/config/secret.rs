//! A secret that can be replaced while it is in use.

use std::sync::{Arc, PoisonError, RwLock};

use secrecy::SecretString;

/// A secret whose clones are replaced together, so that the next connection uses the new one.
#[derive(Clone, Debug)]
pub struct SharedSecret(Arc<RwLock<SecretString>>);

impl SharedSecret {
    /// The current secret.
    #[must_use]
    pub fn get(&self) -> SecretString {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the secret in every clone.
    pub fn replace(&self, secret: SecretString) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = secret;
    }
}

impl From<SecretString> for SharedSecret {
    fn from(secret: SecretString) -> Self {
        Self(Arc::new(RwLock::new(secret)))
    }
}
