//! `bdev_*_create`, `_delete`, `_resize`: the modules.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use longshore_bdev::malloc::Malloc;
use longshore_bdev::null::Null;
use longshore_bdev::{BdevError, Geometry};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::decode::{NotBuilt, Params};
use crate::error::{EEXIST, EINVAL, ENODEV, Reply, RpcError};
use crate::method::{Method, Registry, When};
use crate::methods::bdev::find;
use crate::params;
use crate::recipes::{Kind, Recipe};

params! {
    struct MallocCreate {
        /// Name; without it Malloc0, Malloc1, ... in the order of such calls.
        name: Option<String>,
        /// Blocks.
        num_blocks: u64,
        /// Bytes of data in a block, a multiple of 512.
        block_size: u32,
        /// Bytes that count as written at once, a multiple of 512.
        physical_block_size: Option<u32>,
        /// UUID; without it a random one.
        uuid: Option<Uuid>,
        /// Requests that cross a multiple of so many blocks are split; 0: none.
        optimal_io_boundary: u32 = 0,
        /// Bytes of metadata of a block: 0, 8, 16, 32, 64 or 128.
        md_size: u32 = 0,
        /// Metadata lies behind the data of each block.
        md_interleave: bool = false,
        /// Protection information; not built: only 0 is accepted.
        dif_type: NotBuilt<i32>,
        /// Where protection information lies in the metadata.
        dif_is_head_of_md: bool = false,
        /// Format of protection information.
        dif_pi_format: u32 = 0,
        /// NUMA node of the memory; -1: any.
        numa_id: i32 = -1,
    }
}

params! {
    struct NullCreate {
        /// Name.
        name: String,
        /// Blocks.
        num_blocks: u64,
        /// Bytes of a block, metadata included.
        block_size: u32,
        /// Bytes that count as written at once, a multiple of 512.
        physical_block_size: Option<u32>,
        /// Bytes of metadata at the end of each block.
        md_size: u32 = 0,
        /// Protection information; not built: only 0 is accepted.
        dif_type: NotBuilt<i32>,
        /// Where protection information lies in the metadata.
        dif_is_head_of_md: bool = false,
        /// Format of protection information.
        dif_pi_format: u32 = 0,
        /// UUID; without it a random one.
        uuid: Option<Uuid>,
        /// Preferred granularity of writes, blocks.
        preferred_write_granularity: u32 = 0,
        /// Preferred alignment of writes, blocks.
        preferred_write_alignment: u32 = 0,
        /// Optimal size of writes, blocks.
        optimal_write_size: u32 = 0,
        /// Preferred granularity of unmaps, blocks.
        preferred_unmap_granularity: u32 = 0,
        /// Preferred alignment of unmaps, blocks.
        preferred_unmap_alignment: u32 = 0,
    }
}

params! {
    struct Delete {
        /// Name of the device.
        name: String,
    }
}

params! {
    struct NullResize {
        /// Name of the device.
        name: String,
        /// New size, MiB; not smaller than the present one.
        new_size: u64,
    }
}

pub(super) fn declare(registry: &mut Registry) {
    let create = |method: Method| {
        method
            .changes()
            .result("name of the device")
            .error(-EEXIST, "File exists")
            .error(-EINVAL, "Invalid argument: `data` says which")
    };
    registry.add(
        create(Method::new("bdev_malloc_create", When::Runtime, malloc_create))
            .doc("Makes a device in memory.")
            .example(json!({"name": "Malloc0", "num_blocks": 131072, "block_size": 512}), json!("Malloc0")),
    );
    registry.add(
        create(Method::new("bdev_null_create", When::Runtime, null_create))
            .doc("Makes a device that takes every write and reads nothing.")
            .example(json!({"name": "Null0", "num_blocks": 131072, "block_size": 512}), json!("Null0")),
    );
    registry.add(
        Method::new("bdev_null_resize", When::Runtime, null_resize)
            .doc("Grows a null device. Hosts are told.")
            .changes()
            .error(-ENODEV, "No such device")
            .error(-EINVAL, "Invalid argument")
            .example(json!({"name": "Null0", "new_size": 128}), json!(true)),
    );
    for (name, kind) in [("bdev_malloc_delete", Kind::Malloc), ("bdev_null_delete", Kind::Null)] {
        registry.add(deletion(name, kind));
    }
}

/// A method that deletes one kind of device.
pub(super) fn deletion(name: &'static str, kind: Kind) -> Method {
    Method::new(name, When::Runtime, move |app, p: Delete| delete(app, kind, p.name))
        .doc("Deletes the device. It answers when nobody uses the device any more: layers on it and namespaces go first.")
        .changes()
        .error(-ENODEV, "No such device, or one of another kind")
}

async fn delete(app: Arc<App>, kind: Kind, name: String) -> Reply {
    let name = app.bdevs.find(&name).map_or(name, |node| node.name().to_string());
    match app.recipes.find(&name) {
        Some(recipe) if recipe.kind == kind => {}
        _ => return Err(BdevError::NotFound(name).into()),
    }
    app.bdevs.unregister(&name).await?;
    app.recipes.forget(&name);
    Ok(json!(true))
}

/// The recipe's form of decoded parameters: in the order of the dump, with a place for the UUID.
pub(super) fn recipe(kind: Kind, name: &str, uuid: Option<Uuid>, params: &impl Params, order: &[&str]) -> Recipe {
    let values = params.to_value();
    let value_of = |key: &str| match key {
        "name" => json!(name),
        "dif_type" => json!(0),
        _ => values.get(key).cloned().unwrap_or(Value::Null),
    };
    let params = order.iter().map(|key| (key.to_string(), value_of(key))).collect();
    Recipe { kind, name: name.to_string(), uuid, params }
}

fn wrong(what: String) -> RpcError {
    RpcError::errno_because(EINVAL, what)
}

fn check_size(key: &str, value: u32) -> Result<(), RpcError> {
    if value == 0 || !value.is_multiple_of(512) {
        return Err(wrong(format!("{key} is {value}; it is a multiple of 512 and not 0")));
    }
    Ok(())
}

async fn malloc_create(app: Arc<App>, p: MallocCreate) -> Reply {
    check_size("block_size", p.block_size)?;
    let physical = p.physical_block_size.unwrap_or(p.block_size);
    check_size("physical_block_size", physical)?;
    if ![0, 8, 16, 32, 64, 128].contains(&p.md_size) {
        return Err(wrong(format!("md_size is {}; it is 0, 8, 16, 32, 64 or 128", p.md_size)));
    }
    if p.num_blocks == 0 {
        return Err(wrong("num_blocks is 0".into()));
    }
    let interleave = p.md_interleave && p.md_size != 0;
    let block_size = p.block_size + if interleave { p.md_size } else { 0 };
    let geometry = Geometry {
        md_size: p.md_size,
        md_interleave: interleave,
        physical_block_size: physical,
        optimal_io_boundary: p.optimal_io_boundary,
        ..Geometry::plain(block_size, p.num_blocks)
    };
    // Numbered by the calls that gave no name, whatever names others chose: clients count on the number.
    let name = p.name.clone().unwrap_or_else(|| format!("Malloc{}", app.unnamed.fetch_add(1, Ordering::Relaxed)));
    let mut recipe = recipe(
        Kind::Malloc,
        &name,
        p.uuid,
        &p,
        &[
            "name",
            "num_blocks",
            "block_size",
            "physical_block_size",
            "uuid",
            "optimal_io_boundary",
            "md_size",
            "dif_type",
            "dif_is_head_of_md",
            "dif_pi_format",
            "numa_id",
        ],
    );
    recipe.params.insert("physical_block_size".into(), json!(physical));
    if interleave {
        recipe.params.insert("md_interleave".into(), json!(true));
    }
    app.recipes.make(&app.bdevs, recipe, Malloc::new(geometry)?)?;
    Ok(json!(name))
}

async fn null_create(app: Arc<App>, p: NullCreate) -> Reply {
    check_size("the data in a block (block_size less md_size)", p.block_size.saturating_sub(p.md_size))?;
    let physical = p.physical_block_size.unwrap_or(p.block_size);
    check_size(
        "physical_block_size",
        physical.saturating_sub(if p.physical_block_size.is_none() { p.md_size } else { 0 }),
    )?;
    if p.num_blocks == 0 {
        return Err(wrong("num_blocks is 0".into()));
    }
    let geometry = Geometry {
        md_size: p.md_size,
        md_interleave: p.md_size != 0,
        physical_block_size: physical,
        preferred_write_granularity: p.preferred_write_granularity,
        preferred_write_alignment: p.preferred_write_alignment,
        optimal_write_size: p.optimal_write_size,
        preferred_unmap_granularity: p.preferred_unmap_granularity,
        preferred_unmap_alignment: p.preferred_unmap_alignment,
        ..Geometry::plain(p.block_size, p.num_blocks)
    };
    let mut recipe = recipe(
        Kind::Null,
        &p.name,
        p.uuid,
        &p,
        &[
            "name",
            "num_blocks",
            "block_size",
            "physical_block_size",
            "md_size",
            "dif_type",
            "dif_is_head_of_md",
            "dif_pi_format",
            "uuid",
            "preferred_write_granularity",
            "preferred_write_alignment",
            "optimal_write_size",
            "preferred_unmap_granularity",
            "preferred_unmap_alignment",
        ],
    );
    if p.md_size == 0 {
        recipe.params.insert("physical_block_size".into(), json!(physical));
    }
    app.recipes.make(&app.bdevs, recipe, Null::new(geometry))?;
    Ok(json!(p.name))
}

async fn null_resize(app: Arc<App>, p: NullResize) -> Reply {
    let node = find(&app, &p.name)?;
    if app.recipes.find(node.name()).is_none_or(|recipe| recipe.kind != Kind::Null) {
        return Err(BdevError::NotFound(p.name).into());
    }
    let block = u64::from(node.geometry().block_size);
    let bytes = p
        .new_size
        .checked_mul(1 << 20)
        .ok_or_else(|| wrong(format!("new_size is {} MiB, which is too much", p.new_size)))?;
    if bytes % block != 0 || bytes / block < node.num_blocks() {
        return Err(wrong(format!(
            "new_size is {} MiB; it is a whole number of blocks of {block} bytes and not less than the {} blocks of now",
            p.new_size,
            node.num_blocks()
        )));
    }
    app.bdevs.resized(&node, bytes / block);
    Ok(json!(true))
}
