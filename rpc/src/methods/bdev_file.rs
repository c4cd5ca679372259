//! `bdev_aio_*` and `bdev_uring_*`: files and block devices. Both families make the same device, which does its I/O through the reactor's
//! ring; they differ in what they call it.

use std::sync::Arc;

use longshore_bdev::uring::{self, Family, Options};
use longshore_bdev::{BdevError, BdevNode, Registry as Bdevs};
use longshore_reactor::oneshot;
use serde_json::json;
use uuid::Uuid;

use crate::app::App;
use crate::error::{EEXIST, EINVAL, ENODEV, ENOENT, INTERNAL_ERROR, Reply, RpcError};
use crate::method::{Method, Registry, When};
use crate::methods::bdev_create::{deletion, recipe};
use crate::params;
use crate::recipes::{Kind, Recipe};

params! {
    struct AioCreate {
        /// Name.
        name: String,
        /// File or block device.
        filename: String,
        /// Bytes of a block; without it what suits the file.
        block_size: Option<u32>,
        /// Refuse to change it.
        readonly: bool = false,
        /// Offer unmap, by deallocating in the file.
        fallocate: bool = false,
        /// UUID; without it a random one.
        uuid: Option<Uuid>,
        /// Never block at submission; no effect, because the ring never does.
        nowait: bool = false,
    }
}

params! {
    struct UringCreate {
        /// File or block device.
        filename: String,
        /// Name.
        name: String,
        /// Bytes of a block; without it what suits the file.
        block_size: Option<u32>,
        /// UUID; without it a random one.
        uuid: Option<Uuid>,
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
        Method::new("bdev_aio_create", When::Runtime, aio_create)
            .doc("Makes a device of a file or a block device.")
            .changes()
            .result("name of the device")
            .error(-EEXIST, "File exists: the name is taken")
            .error(-ENOENT, "No such file or directory; likewise other errors of the system")
            .error(-EINVAL, "Invalid argument: `data` says which")
            .example(json!({"name": "aio0", "filename": "/var/lib/longshore/disk", "block_size": 512}), json!("aio0")),
    );
    registry.add(
        Method::new("bdev_uring_create", When::Runtime, uring_create)
            .doc("Makes a device of a file or a block device.")
            .changes()
            .result("name of the device")
            .error(INTERNAL_ERROR, "Unable to create URING bdev.")
            .example(json!({"name": "ur0", "filename": "/var/lib/longshore/disk", "block_size": 512}), json!("ur0")),
    );
    for (name, kind) in [("bdev_aio_rescan", Kind::Aio), ("bdev_uring_rescan", Kind::Uring)] {
        registry.add(
            Method::new(name, When::Runtime, move |app, p: Name| rescan(app, p, kind))
                .doc("Looks at the size of the file anew. Hosts are told if it has changed.")
                .changes()
                .error(-ENODEV, "No such device, or one of the other family"),
        );
    }
    registry.add(deletion("bdev_aio_delete", Kind::Aio));
    registry.add(deletion("bdev_uring_delete", Kind::Uring));
}

/// Runs what may block on a thread of its own: a file system that hangs must not stop RPC.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, BdevError> {
    let (send, receive) = oneshot::channel();
    let started = std::thread::Builder::new().name("rpc-open".into()).spawn(move || drop(send.send(f())));
    started.map_err(|error| BdevError::NoMemory(format!("cannot start a thread: {error}")))?;
    receive.await.map_err(|_| BdevError::Unsupported("opening the file panicked".into()))
}

async fn create(app: &App, recipe: Recipe, options: Options) -> Result<Arc<BdevNode>, BdevError> {
    let bdevs: Arc<Bdevs> = app.bdevs.clone();
    let node = blocking(move || uring::create(&bdevs, options)).await??;
    app.recipes.remember(recipe);
    Ok(node)
}

async fn aio_create(app: Arc<App>, p: AioCreate) -> Reply {
    let order = ["name", "block_size", "filename", "readonly", "fallocate", "uuid", "nowait"];
    let recipe = recipe(Kind::Aio, &p.name, p.uuid, &p, &order);
    let options = Options {
        block_size: p.block_size.unwrap_or(0),
        uuid: p.uuid,
        readonly: p.readonly,
        fallocate: p.fallocate,
        nowait: p.nowait,
        ..Options::new(p.name, p.filename, Family::Aio)
    };
    Ok(json!(create(&app, recipe, options).await?.name()))
}

async fn uring_create(app: Arc<App>, p: UringCreate) -> Reply {
    let recipe = recipe(Kind::Uring, &p.name, p.uuid, &p, &["name", "block_size", "filename", "uuid"]);
    let options = Options {
        block_size: p.block_size.unwrap_or(0),
        uuid: p.uuid,
        ..Options::new(p.name, p.filename, Family::Uring)
    };
    let made = create(&app, recipe, options).await;
    let node =
        made.map_err(|error| RpcError::new(INTERNAL_ERROR, "Unable to create URING bdev.").because(error.to_string()))?;
    Ok(json!(node.name()))
}

async fn rescan(app: Arc<App>, p: Name, kind: Kind) -> Reply {
    let name = app.bdevs.find(&p.name).map_or(p.name, |node| node.name().to_string());
    if app.recipes.find(&name).is_none_or(|recipe| recipe.kind != kind) {
        return Err(BdevError::NotFound(name).into());
    }
    let bdevs = app.bdevs.clone();
    blocking(move || uring::rescan(&bdevs, &name)).await??;
    Ok(json!(true))
}
