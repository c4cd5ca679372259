//! Erasure-coded arrays through the methods, on files.

mod broken;
mod engines;
mod layers;
mod made;
mod replace;
mod rig;
mod spares;

use longshore_rpc::config::{self, Config};
use longshore_rpc::exec::block_on;
use rig::{Disks, Rig, create, said, states};
use serde_json::{Value, json};
