//! `bdev_crypto_*`: devices whose data is encrypted on another one.

use std::sync::Arc;

use longshore_bdev::crypto::{self, Crypto, Options};
use longshore_bdev::{BdevNode, Vbdev};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::config::Entry;
use crate::decode::NotBuilt;
use crate::error::{EEXIST, EINVAL, ENODEV, EPERM, INVALID_PARAMS, Reply, RpcError};
use crate::method::{Method, Refusal, Registry, When};
use crate::params;

params! {
    struct Create {
        /// Name of the device beneath; it may come later.
        base_bdev_name: String,
        /// Name.
        name: String,
        /// Name of the key, which `accel_crypto_key_create` made.
        key_name: Option<String>,
        /// UUID; without it one derived from the device beneath.
        uuid: Option<Uuid>,
        /// Obsolete: make a key first.
        crypto_pmd: NotBuilt<String>,
        /// Obsolete: make a key first.
        key: NotBuilt<String>,
        /// Obsolete: make a key first.
        key2: NotBuilt<String>,
        /// Obsolete: make a key first.
        cipher: NotBuilt<String>,
    }
}

params! {
    struct Name {
        /// Name of the device.
        name: String,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::new("bdev_crypto_create", When::Runtime, create)
            .refusal(Refusal::CRYPTO)
            .changes()
            .doc(
                "Makes a device that encrypts what it writes to the one beneath, and decrypts what it reads. Blocks that were never written or \
                 are unmapped read undefined data through it; write zeroes writes encrypted zeroes.",
            )
            .result("name of the device")
            .error(INVALID_PARAMS, "Key was not found")
            .error(-EEXIST, "File exists")
            .error(-EPERM, "Operation not permitted: the device beneath is claimed")
            .error(-EINVAL, "Invalid argument: `data` says which; the device beneath has metadata, or blocks that the tweak mode does not take")
            .example(json!({"base_bdev_name": "Malloc0", "name": "Crypto0", "key_name": "key0"}), json!("Crypto0")),
    );
    registry.add(
        Method::new("bdev_crypto_delete", When::Runtime, delete)
            .refusal(Refusal::PARAMS)
            .changes()
            .doc("Deletes the device; its data stays on the one beneath, encrypted. It answers when nobody uses the device any more.")
            .error(-ENODEV, "No such device, or one of another kind"),
    );
}

async fn create(app: Arc<App>, p: Create) -> Reply {
    let key = p.key_name.as_deref().and_then(|name| app.accel.keys.get(name));
    let key = key.ok_or_else(|| {
        RpcError::new(INVALID_PARAMS, "Key was not found").because(match &p.key_name {
            Some(name) => format!("no key '{name}': make it with accel_crypto_key_create first"),
            None => "'key_name' is missing: make a key with accel_crypto_key_create first".into(),
        })
    })?;
    let options = Options { name: p.name.clone(), base: p.base_bdev_name, uuid: p.uuid, key, accel: app.accel.clone() };
    crypto::create(&app.bdevs, options)?;
    Ok(json!(p.name))
}

async fn delete(app: Arc<App>, p: Name) -> Reply {
    let name = app.bdevs.find(&p.name).map_or(p.name, |node| node.name().to_string());
    app.bdevs.unconfigure(crypto::MODULE, &name).await?;
    Ok(json!(true))
}

/// What `bdev_get_bdevs` says of such a device alone.
pub(super) fn driver_specific(node: &BdevNode) -> Option<Value> {
    let layer = node.device().as_any().downcast_ref::<Crypto>()?;
    Some(json!({"crypto": {
        "base_bdev_name": layer.base_name(), "name": node.name(), "key_name": layer.key_name(), "buffer_waits": layer.waits(),
    }}))
}

/// The call that makes it again, if it is one.
pub(super) fn dump(spec: &dyn Vbdev, uuid: impl Fn(Option<Uuid>) -> Option<String>) -> Option<Entry> {
    let o = spec.as_any().downcast_ref::<Options>()?;
    let mut params = json!({"base_bdev_name": o.base, "name": o.name, "key_name": o.key.name()});
    if let Some(uuid) = uuid(o.uuid) {
        params["uuid"] = json!(uuid);
    }
    Some(Entry::new("bdev_crypto_create", params))
}
