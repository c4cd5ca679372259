//! The keys that there are, by name.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::key::Key;

/// Keys at most.
pub const MAX_KEYS: usize = 4096;

/// Why the keyring does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyringError {
    /// There is a key of that name.
    Exists,
    /// There are as many as there may be.
    Full,
    /// There is none of that name.
    NotFound,
    /// Devices use it.
    InUse,
}

impl fmt::Display for KeyringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyringError::Exists => f.write_str("there is a key of that name"),
            KeyringError::Full => write!(f, "there are {MAX_KEYS} keys, more are not kept: destroy some"),
            KeyringError::NotFound => f.write_str("there is no key of that name"),
            KeyringError::InUse => f.write_str("block devices use the key: delete them first"),
        }
    }
}

impl std::error::Error for KeyringError {}

/// Keys by name.
#[derive(Default)]
pub struct Keyring(Mutex<Vec<Arc<Key>>>);

impl Keyring {
    fn keys(&self) -> MutexGuard<'_, Vec<Arc<Key>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key.
    ///
    /// # Errors
    /// Its name is taken, or there are too many.
    pub fn add(&self, key: Key) -> Result<Arc<Key>, KeyringError> {
        let mut keys = self.keys();
        if keys.iter().any(|k| k.name() == key.name()) {
            return Err(KeyringError::Exists);
        }
        if keys.len() >= MAX_KEYS {
            return Err(KeyringError::Full);
        }
        let key = Arc::new(key);
        keys.push(key.clone());
        Ok(key)
    }

    /// The key of that name. Whoever holds it keeps it from being destroyed.
    pub fn get(&self, name: &str) -> Option<Arc<Key>> {
        self.keys().iter().find(|k| k.name() == name).cloned()
    }

    /// All keys, the oldest first.
    pub fn list(&self) -> Vec<Arc<Key>> {
        self.keys().clone()
    }

    /// Destroys a key that nobody uses: its material is wiped before this returns.
    ///
    /// # Errors
    /// There is none, or it is in use.
    pub fn destroy(&self, name: &str) -> Result<(), KeyringError> {
        let mut keys = self.keys();
        let at = keys.iter().position(|k| k.name() == name).ok_or(KeyringError::NotFound)?;
        if Arc::strong_count(&keys[at]) > 1 {
            return Err(KeyringError::InUse);
        }
        keys.remove(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::{KeySpec, TweakMode};
    use super::*;

    fn key(name: &str) -> Key {
        let material = Zeroizing::new((0..32).collect());
        Key::new(KeySpec { name: name.into(), tweak: TweakMode::default(), material, file: None }).unwrap()
    }

    #[test]
    fn a_key_in_use_is_not_destroyed() {
        let ring = Keyring::default();
        ring.add(key("a")).unwrap();
        assert_eq!(ring.add(key("a")).unwrap_err(), KeyringError::Exists);
        let used = ring.get("a").unwrap();
        assert_eq!(ring.destroy("a"), Err(KeyringError::InUse));
        drop(used);
        assert_eq!(ring.destroy("a"), Ok(()));
        assert_eq!(ring.destroy("a"), Err(KeyringError::NotFound));
        assert!(ring.get("a").is_none() && ring.list().is_empty());
    }
}
