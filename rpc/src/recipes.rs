//! The block devices that were made by calls: how each was made, so that a dump can make it again, and those that wait for the
//! device beneath them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use longshore_bdev::passthru::Passthru;
use longshore_bdev::{Bdev, BdevError, BdevEvent, BdevNode, EventSink, Registry};
use longshore_reactor::CoreHandle;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::App;

/// Kinds of device, in the order in which a dump lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Delays what passes.
    Delay,
    /// Injects errors.
    Error,
    /// Passes everything.
    Passthru,
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
            Kind::Delay => "bdev_delay_create",
            Kind::Error => "bdev_error_create",
            Kind::Passthru => "bdev_passthru_create",
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
    /// Name of the device beneath, for a layer.
    pub base: Option<String>,
    /// UUID asked for.
    pub uuid: Option<Uuid>,
    /// Parameters in the order of a dump; `uuid` and `num_blocks` in them are brought up to date when dumped.
    pub params: Map<String, Value>,
}

/// Makes a layer on a device that is there.
pub type Builder = fn(&Arc<Registry>, &Recipe, EventSink) -> Result<Arc<dyn Bdev>, BdevError>;

/// All recipes, in the order of the calls.
#[derive(Default)]
pub struct Recipes {
    list: Mutex<Vec<Recipe>>,
    cores: OnceLock<Vec<CoreHandle>>,
    /// Layers are made as soon as the device beneath comes.
    pub auto_examine: AtomicBool,
}

impl Recipes {
    /// Recipes for a registry; layers that wait are made when it gets what they wait for.
    pub fn attach(registry: &Arc<Registry>, cores: &[CoreHandle]) -> Arc<Recipes> {
        let recipes = Arc::new(Recipes { auto_examine: AtomicBool::new(true), ..Recipes::default() });
        let _ = recipes.cores.set(cores.to_vec());
        let weak = Arc::downgrade(&recipes);
        registry.add_examiner(Box::new(move |registry, node| {
            if let Some(recipes) = weak.upgrade()
                && recipes.auto_examine.load(Ordering::Relaxed)
            {
                recipes.arrived(registry, node);
            }
        }));
        recipes
    }

    /// The recipe of a device.
    pub fn find(&self, name: &str) -> Option<Recipe> {
        App::lock(&self.list).iter().find(|recipe| recipe.name == name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Recipe> {
        App::lock(&self.list).clone()
    }

    /// Changes the parameters of a recipe.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        if let Some(recipe) = App::lock(&self.list).iter_mut().find(|recipe| recipe.name == name) {
            change(&mut recipe.params);
        }
    }

    /// Forgets a recipe.
    pub fn forget(&self, name: &str) {
        App::lock(&self.list).retain(|recipe| recipe.name != name);
    }

    fn remember(&self, recipe: Recipe) -> Result<(), BdevError> {
        let mut list = App::lock(&self.list);
        if list.iter().any(|other| other.name == recipe.name) {
            return Err(BdevError::Exists(recipe.name));
        }
        list.push(recipe);
        Ok(())
    }

    /// Registers a device that stands on its own.
    pub fn make(&self, registry: &Arc<Registry>, recipe: Recipe, device: Arc<dyn Bdev>) -> Result<Arc<BdevNode>, BdevError> {
        let (name, uuid) = (recipe.name.clone(), recipe.uuid);
        if registry.find(&name).is_some() {
            return Err(BdevError::Exists(name));
        }
        self.remember(recipe)?;
        registry.register(&name, uuid, device).inspect_err(|_| self.forget(&name))
    }

    /// Makes a layer, at once or when the device beneath comes.
    pub fn make_layer(&self, registry: &Arc<Registry>, recipe: Recipe) -> Result<(), BdevError> {
        if registry.find(&recipe.name).is_some() {
            return Err(BdevError::Exists(recipe.name));
        }
        self.remember(recipe.clone())?;
        match recipe.base.as_deref().and_then(|base| registry.find(base)) {
            Some(node) => self.build(registry, &recipe, &node).inspect_err(|_| self.forget(&recipe.name)),
            None => {
                let base = recipe.base.as_deref().unwrap_or_default();
                tracing::info!("bdev {} is made when {base} comes", recipe.name);
                Ok(())
            }
        }
    }

    /// A device has come: makes the layers that waited for it.
    pub fn arrived(&self, registry: &Arc<Registry>, node: &Arc<BdevNode>) {
        let names = node.aliases();
        let on_it = |base: &str| base == node.name() || names.iter().any(|alias| alias == base);
        let waiting: Vec<Recipe> = {
            let list = App::lock(&self.list);
            list.iter().filter(|recipe| recipe.base.as_deref().is_some_and(on_it)).cloned().collect()
        };
        for recipe in waiting {
            if registry.find(&recipe.name).is_none()
                && let Err(error) = self.build(registry, &recipe, node)
            {
                tracing::error!("bdev {} cannot be made on {}: {error}", recipe.name, node.name());
            }
        }
    }

    fn build(&self, registry: &Arc<Registry>, recipe: &Recipe, base: &Arc<BdevNode>) -> Result<(), BdevError> {
        let device = builder(recipe.kind)(registry, recipe, self.follow(registry, &recipe.name))?;
        // The same on every start, because the device beneath and the kind of layer are: hosts know a namespace by it.
        let uuid = recipe.uuid.unwrap_or_else(|| Uuid::new_v5(&base.uuid(), recipe.kind.method().as_bytes()));
        registry.register(&recipe.name, Some(uuid), device).map(drop)
    }

    /// A layer goes with the device beneath it and grows with it.
    fn follow(&self, registry: &Arc<Registry>, name: &str) -> EventSink {
        let (registry, name, core) = (registry.clone(), name.to_string(), self.cores.get().and_then(|cores| cores.first()).cloned());
        Box::new(move |event| {
            let (registry, name) = (registry.clone(), name.clone());
            match event {
                BdevEvent::Remove => {
                    if let Some(core) = &core {
                        drop(core.spawn(move |_| async move { registry.unregister(&name).await.is_ok() }));
                    }
                }
                BdevEvent::Resize { num_blocks } => {
                    if let Some(node) = registry.find(&name) {
                        registry.resized(&node, num_blocks);
                    }
                }
            }
        })
    }
}

fn builder(kind: Kind) -> Builder {
    match kind {
        Kind::Passthru => |registry, recipe, sink| Ok(Passthru::new(registry, recipe.base.as_deref().unwrap_or_default(), sink)?),
        _ => |_, recipe, _| Err(BdevError::Unsupported(format!("{} is not a layer", recipe.kind.method()))),
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
    pub fn driver_specific(&self, registry: &Registry) -> Value {
        let of = |keys: &[&str]| -> Value {
            let all = self.dump(registry);
            keys.iter().filter_map(|key| all.get(*key).map(|value| (key.to_string(), value.clone()))).collect::<Map<_, _>>().into()
        };
        match self.kind {
            Kind::Malloc | Kind::Null => json!({}),
            Kind::Passthru => json!({"passthru": of(&["name", "base_bdev_name"])}),
            Kind::Delay => json!({"delay": of(&[
                "name", "base_bdev_name", "uuid", "avg_read_latency", "p99_read_latency", "avg_write_latency", "p99_write_latency",
            ])}),
            Kind::Error => json!({"error_disk": {"name": self.name, "base_bdev": self.base}}),
            Kind::Aio => {
                let mut aio = of(&["filename", "readonly", "fallocate", "nowait"]);
                aio["block_size_override"] = json!(self.params.contains_key("block_size"));
                json!({"aio": aio})
            }
            Kind::Uring => json!({"uring": of(&["filename"])}),
        }
    }
}
