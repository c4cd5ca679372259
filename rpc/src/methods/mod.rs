//! The methods, a file per subsystem.

pub mod accel;
pub mod accel_keys;
pub mod bdev;
pub mod bdev_create;
pub mod bdev_crypto;
pub mod bdev_ec;
mod bdev_ec_rebuild;
pub mod bdev_file;
pub mod bdev_layer;
pub mod bdev_nvme;
pub mod bdev_nvme_discovery;
pub mod bdev_stat;
pub mod framework;
pub mod log;
pub mod notify;
pub mod nvmf;
pub mod nvmf_subsystem;
pub mod options;
pub mod sock;
pub mod thread;

use crate::config::Subsystem;
use crate::method::Registry;
pub(crate) use framework::spdk_release;
pub(crate) use nvmf::uuid_text;
pub(crate) use thread::poll_group;

/// Declares every method.
pub fn all() -> Registry {
    let mut registry = Registry::default();
    framework::declare(&mut registry);
    log::declare(&mut registry);
    notify::declare(&mut registry);
    options::declare(&mut registry);
    sock::declare(&mut registry);
    thread::declare(&mut registry);
    accel::declare(&mut registry);
    accel_keys::declare(&mut registry);
    bdev::declare(&mut registry);
    bdev_create::declare(&mut registry);
    bdev_crypto::declare(&mut registry);
    bdev_ec::declare(&mut registry);
    bdev_file::declare(&mut registry);
    bdev_nvme::declare(&mut registry);
    bdev_nvme_discovery::declare(&mut registry);
    bdev_layer::declare(&mut registry);
    bdev_stat::declare(&mut registry);
    nvmf::declare(&mut registry);
    nvmf_subsystem::declare(&mut registry);
    registry
}

/// The subsystems, those without dependencies first: clients rely on that.
pub fn subsystems() -> Vec<Subsystem> {
    let none: &[&str] = &[];
    vec![
        Subsystem { name: "scheduler", depends_on: none, dump: framework::dump_scheduler },
        Subsystem { name: "sock", depends_on: none, dump: sock::dump },
        Subsystem { name: "iobuf", depends_on: none, dump: options::dump_iobuf },
        Subsystem { name: "keyring", depends_on: none, dump: |_| Box::pin(async { Vec::new() }) },
        Subsystem { name: "fsdev", depends_on: none, dump: options::dump_fsdev },
        Subsystem { name: "accel", depends_on: &["iobuf"], dump: accel::dump },
        Subsystem { name: "bdev", depends_on: &["accel", "keyring", "sock", "iobuf"], dump: bdev::dump },
        Subsystem { name: "nvmf", depends_on: &["bdev", "keyring", "sock", "accel", "iobuf"], dump: nvmf::dump },
        Subsystem { name: "iscsi", depends_on: &["sock", "bdev"], dump: options::dump_iscsi },
    ]
}
