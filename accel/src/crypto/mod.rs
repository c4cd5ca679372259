//! Encryption of blocks: keys, tweaks, and AES-XTS (IEEE 1619).

mod crypt;
mod key;
mod keyring;
mod secret;
mod tweak;
mod xts;

pub use crypt::Crypt;
pub use key::{Key, KeyError, KeySpec, MAX_NAME};
pub use keyring::{Keyring, KeyringError, MAX_KEYS};
pub use secret::Secret;
pub use tweak::TweakMode;
pub use xts::{Cipher, MAX_UNIT, Xts};
