//! The block devices that were made by calls and stand on their own: how each was made, so that a dump can make it again. (Layers are
//! kept by the block-device registry itself, because they come and go with what is beneath them.)

use std::sync::{Arc, Mutex};

use longshore_bdev::{Bdev, BdevError, BdevNode, Registry};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::App;

/// Kinds of device, in the order in which a dump lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Memory.
    Malloc,
    /// Nothing.
    Null,
    /// A file, by the methods named aio.
    Aio,
    /// A file, by the methods named uring.
    Uring,
}

impl Kind {
    /// The method that makes one.
    pub fn method(self) -> &'static str {
        match self {
            Kind::Malloc => "bdev_malloc_create",
            Kind::Null => "bdev_null_create",
            Kind::Aio => "bdev_aio_create",
            Kind::Uring => "bdev_uring_create",
        }
    }
}

/// How one device was made.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Kind.
    pub kind: Kind,
    /// Name of the device.
    pub name: String,
    /// UUID asked for.
    pub uuid: Option<Uuid>,
    /// Parameters in the order of a dump; `uuid` and `num_blocks` in them are brought up to date when dumped.
    pub params: Map<String, Value>,
}

/// All recipes, in the order of the calls.
#[derive(Default)]
pub struct Recipes {
    list: Mutex<Vec<Recipe>>,
}

impl Recipes {
    /// The recipe of a device.
    pub fn find(&self, name: &str) -> Option<Recipe> {
        App::lock(&self.list).iter().find(|recipe| recipe.name == name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Recipe> {
        App::lock(&self.list).clone()
    }

    /// Forgets a recipe.
    pub fn forget(&self, name: &str) {
        App::lock(&self.list).retain(|recipe| recipe.name != name);
    }

    /// Registers a device and remembers how it was made.
    pub fn make(
        &self,
        registry: &Arc<Registry>,
        recipe: Recipe,
        device: Arc<dyn Bdev>,
    ) -> Result<Arc<BdevNode>, BdevError> {
        let node = registry.register(&recipe.name, recipe.uuid, device)?;
        self.remember(recipe);
        Ok(node)
    }

    /// Remembers how a device was made that is registered now.
    pub fn remember(&self, recipe: Recipe) {
        let mut list = App::lock(&self.list);
        list.retain(|other| other.name != recipe.name);
        list.push(recipe);
    }
}

impl Recipe {
    /// The parameters that make the device as it is now.
    pub fn dump(&self, registry: &Registry) -> Value {
        let mut params = self.params.clone();
        if let Some(node) = registry.find(&self.name) {
            if let Some(uuid) = params.get_mut("uuid") {
                *uuid = json!(node.uuid().to_string());
            }
            if let Some(blocks) = params.get_mut("num_blocks") {
                *blocks = json!(node.num_blocks());
            }
        }
        params.retain(|_, value| !value.is_null());
        Value::Object(params)
    }

    /// What `bdev_get_bdevs` says of this kind of device alone.
    pub fn driver_specific(&self) -> Value {
        let of = |keys: &[&str]| -> Value {
            keys.iter()
                .filter_map(|key| self.params.get(*key).map(|value| (key.to_string(), value.clone())))
                .collect::<Map<_, _>>()
                .into()
        };
        match self.kind {
            Kind::Malloc | Kind::Null => json!({}),
            Kind::Aio => {
                let mut aio = of(&["filename", "readonly", "fallocate", "nowait"]);
                aio["block_size_override"] = json!(self.params.get("block_size").is_some_and(|size| !size.is_null()));
                json!({"aio": aio})
            }
            Kind::Uring => json!({"uring": of(&["filename"])}),
        }
    }
}
