//! `accel_crypto_key_*`: keys that devices encrypt with. Nothing here says what a key is: not answers, errors, logs or dumps.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_accel::crypto::{Key, KeyError, KeySpec, KeyringError, TweakMode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::app::App;
use crate::config::Entry;
use crate::decode::SecretText;
use crate::error::{EBUSY, EEXIST, EINVAL, ENOMEM, EOPNOTSUPP, INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::{choices, params};

choices! {
    /// How data is encrypted.
    enum Cipher { Xts = "AES_XTS", Cbc = "AES_CBC" }
}

choices! {
    /// How tweaks follow from block numbers.
    enum Tweak {
        SimpleLba = "SIMPLE_LBA",
        JoinNegLbaWithLba = "JOIN_NEG_LBA_WITH_LBA",
        Incr512FullLba = "INCR_512_FULL_LBA",
        Incr512UpperLba = "INCR_512_UPPER_LBA",
    }
}

params! {
    struct KeyCreate {
        /// Name.
        name: String,
        /// Cipher; only AES_XTS is built.
        cipher: Cipher,
        /// Key of the data, 32 or 64 hexadecimal digits.
        key: Option<SecretText>,
        /// Key of the tweaks, as long as `key` and another one.
        key2: Option<SecretText>,
        /// How tweaks follow from block numbers. `SIMPLE_LBA` is what Linux calls plain64.
        tweak_mode: Tweak = Tweak::SimpleLba,
        /// Instead of `key` and `key2`: a file that only its owner can read, with the 32 or 64 bytes of both as they are, as `cryptsetup --key-file` takes
        /// it. Saved configurations hold its name; keys that came without a file are not saved.
        key_file: Option<String>,
    }
}

params! {
    struct KeyName {
        /// Name of the key.
        key_name: String,
    }
}

params! {
    struct KeysGet {
        /// Name of one key; without it, all.
        key_name: Option<String>,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("accel_crypto_key_create", When::Any, create)
            .refusal(Refusal::PARSE_OBJECT)
            .changes()
            .doc(
                "Makes a key for encrypting devices. What it is made of is not told by any method, logged or saved: give it again at each start, before \
                 the initialisation if a configuration needs it, or use `key_file`.",
            )
            .error(INVALID_PARAMS, "failed to create DEK, rc N: N is a negative errno, `data` says what is wrong")
            .example(
                json!({
                    "name": "key0", "cipher": "AES_XTS", "key": "00112233445566778899001122334455",
                    "key2": "11223344556677889900112233445500",
                }),
                json!(true),
            ),
    );
    registry.add(
        Method::new("accel_crypto_key_destroy", When::Runtime, destroy)
            .refusal(Refusal::PARSE_OBJECT)
            .changes()
            .doc("Destroys a key that no device uses. Its memory is wiped.")
            .error(INVALID_PARAMS, "No key object found")
            .error(INVALID_PARAMS, "Failed to destroy key, rc -16: devices use it"),
    );
    registry.add(
        Method::new("accel_crypto_keys_get", When::Runtime, get)
            .refusal(Refusal::PARSE_OBJECT)
            .doc("The keys, without what they are made of: SPDK shows `key` and `key2` here, this does not.")
            .result("array of {name, cipher, key_bits, tweak_mode, key_file?}")
            .error(INVALID_PARAMS, "key was not found"),
    );
}

/// What a client is told when a key is not made.
fn refused(errno: i32, why: impl std::fmt::Display) -> RpcError {
    RpcError::new(INVALID_PARAMS, format!("failed to create DEK, rc -{errno}")).because(why.to_string())
}

fn tweak(mode: Tweak) -> TweakMode {
    match mode {
        Tweak::SimpleLba => TweakMode::SimpleLba,
        Tweak::JoinNegLbaWithLba => TweakMode::JoinNegLbaWithLba,
        Tweak::Incr512FullLba => TweakMode::Incr512FullLba,
        Tweak::Incr512UpperLba => TweakMode::Incr512UpperLba,
    }
}

async fn create(app: Arc<App>, p: KeyCreate) -> Reply {
    if p.cipher != Cipher::Xts {
        return Err(refused(EOPNOTSUPP, format_args!("cipher {} is not built: use AES_XTS", p.cipher.as_str())));
    }
    let material = match (&p.key, &p.key2, &p.key_file) {
        (Some(key), Some(key2), None) => KeySpec::material_from_hex(&key.0, &key2.0).map_err(|e| refused(EINVAL, e))?,
        (None, None, Some(path)) => read_file(Path::new(path)).map_err(|why| refused(EINVAL, why))?,
        _ => return Err(refused(EINVAL, "AES_XTS needs both 'key' and 'key2', or 'key_file' alone")),
    };
    let file = p.key_file.map(PathBuf::from);
    let key = Key::new(KeySpec { name: p.name, tweak: tweak(p.tweak_mode), material, file });
    let key = key.map_err(|e| refused(if matches!(e, KeyError::Refused(_)) { ENOMEM } else { EINVAL }, e))?;
    app.accel.keys.add(key).map_err(|e| refused(if e == KeyringError::Exists { EEXIST } else { ENOMEM }, e))?;
    Ok(json!(true))
}

/// Both keys from a file of so many bytes.
fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let explain = |why: &dyn std::fmt::Display| format!("key_file {}: {why}", path.display());
    // A FIFO in its place must not hold up RPC.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path).map_err(|e| explain(&e))?;
    let meta = file.metadata().map_err(|e| explain(&e))?;
    let mode = meta.permissions().mode() & 0o7777;
    if !meta.is_file() || !matches!(meta.len(), 32 | 64) {
        return Err(explain(&"it is not a file of 32 bytes (AES-128) or 64 bytes (AES-256)"));
    }
    if mode & 0o077 != 0 {
        return Err(explain(&format_args!("others may open it (mode {mode:04o}); chmod 600 and choose a new key")));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(65));
    file.take(65).read_to_end(&mut bytes).map_err(|e| explain(&e))?;
    Ok(bytes)
}

async fn destroy(app: Arc<App>, p: KeyName) -> Reply {
    match app.accel.keys.destroy(&p.key_name) {
        Ok(()) => Ok(json!(true)),
        Err(e @ KeyringError::InUse) => {
            Err(RpcError::new(INVALID_PARAMS, format!("Failed to destroy key, rc -{EBUSY}")).because(e.to_string()))
        }
        Err(_) => Err(RpcError::new(INVALID_PARAMS, "No key object found")),
    }
}

fn shown(key: &Key) -> Value {
    let mut out = json!({
        "name": key.name(), "cipher": Cipher::Xts.as_str(), "key_bits": key.bits(), "tweak_mode": key.tweak().name(),
    });
    if let Some(file) = key.file() {
        out["key_file"] = json!(file);
    }
    out
}

async fn get(app: Arc<App>, p: KeysGet) -> Reply {
    let Some(name) = p.key_name else { return Ok(app.accel.keys.list().iter().map(|key| shown(key)).collect()) };
    let key = app.accel.keys.get(&name).ok_or_else(|| RpcError::new(INVALID_PARAMS, "key was not found"))?;
    Ok(json!([shown(&key)]))
}

/// The calls that make the keys again that can be had from files.
pub(super) fn dump(app: &App) -> Vec<Entry> {
    let keys = app.accel.keys.list();
    let with_file = keys.iter().filter_map(|key| Some((key, key.file()?)));
    let call = |(key, file): (&Arc<Key>, &Path)| {
        Entry::new(
            "accel_crypto_key_create",
            json!({"name": key.name(), "cipher": "AES_XTS", "tweak_mode": key.tweak().name(), "key_file": file}),
        )
    };
    with_file.map(call).collect()
}
