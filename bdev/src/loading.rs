//! A configuration that is being applied: more devices are to come, and some of those there are will have layers built on them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::node::BdevNode;
use crate::registry::Registry;

/// What configurations that are being applied have said of devices.
#[derive(Default)]
pub(crate) struct ToCome(Mutex<State>);

#[derive(Default)]
struct State {
    /// Configurations that are being applied.
    loads: usize,
    /// Names of devices that layers are to be built on, and how many calls will do so.
    bases: BTreeMap<String, usize>,
    /// Devices of such names, which nobody was shown.
    aside: Vec<Weak<BdevNode>>,
}

impl ToCome {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True, and remembered, if a layer is still to be built on a device that has `names`.
    pub(crate) fn sets_aside(&self, names: &[String], node: &Arc<BdevNode>) -> bool {
        let mut s = self.state();
        let wanted = names.iter().any(|n| s.bases.contains_key(n));
        if wanted {
            s.aside.push(Arc::downgrade(node));
        }
        wanted
    }

    /// One call fewer will build on `base`. Devices that no call will build on any more.
    fn built(&self, base: &str) -> Vec<Arc<BdevNode>> {
        let mut s = self.state();
        match s.bases.get_mut(base) {
            Some(calls) if *calls > 1 => {
                *calls -= 1;
                return Vec::new();
            }
            _ => drop(s.bases.remove(base)),
        }
        let State { bases, aside, .. } = &mut *s;
        let mut free = Vec::new();
        aside.retain(|node| match node.upgrade() {
            Some(node) if node.names().iter().any(|n| bases.contains_key(n)) => true,
            node => {
                free.extend(node);
                false
            }
        });
        free
    }
}

/// A configuration that is being applied; dropped when it has been.
pub struct Loading {
    registry: Arc<Registry>,
    bases: Vec<String>,
    /// More devices are to come.
    more: bool,
    abandoned: bool,
}

impl Registry {
    /// Somebody begins to make the devices of a configuration. `bases` are the names that its layers give for what they are built on, one for each
    /// layer, and of what is served: nobody is shown such a device before, so that no array, say, is found on a bare disk whose layer is to come.
    pub fn load(self: &Arc<Self>, bases: Vec<String>) -> Loading {
        let mut s = self.to_come.state();
        s.loads += 1;
        for base in &bases {
            *s.bases.entry(base.clone()).or_default() += 1;
        }
        drop(s);
        Loading { registry: self.clone(), bases, more: true, abandoned: false }
    }

    /// More devices are to come from a configuration that is being applied, and nobody [waits](Registry::wait_for_examine) for what is made of
    /// those that there are: too early to give up on what is missing.
    pub fn more_to_come(&self) -> bool {
        self.to_come.state().loads > 0 && !self.examination_is_awaited()
    }
}

impl Registry {
    /// The devices of a configuration are being made.
    pub fn is_loading(&self) -> bool {
        self.to_come.state().loads > 0
    }
}

impl Loading {
    /// A layer was built on `base`, or waits for it, or cannot be.
    pub fn built(&mut self, base: &str) {
        if let Some(at) = self.bases.iter().position(|b| b == base) {
            self.bases.swap_remove(at);
            self.give_up(base);
        }
    }

    /// The last device was made: what is missing now may be given up on.
    pub fn all_made(&mut self) {
        if std::mem::take(&mut self.more) {
            self.registry.to_come.state().loads -= 1;
        }
    }

    /// Not all will be made, and the daemon is about to end: what was set aside stays so, and nobody gives up on what is missing, so that no
    /// array starts of half a configuration.
    pub fn abandon(mut self) {
        self.abandoned = true;
    }

    fn give_up(&self, base: &str) {
        for node in self.registry.to_come.built(base).iter().filter(|node| !node.is_removing()) {
            self.registry.run_examiners(node);
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        for base in std::mem::take(&mut self.bases) {
            self.give_up(&base);
        }
        self.all_made();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Geometry;
    use crate::malloc::Malloc;
    use crate::passthru;

    /// A registry, and names of devices that examiners were shown unclaimed.
    fn watched() -> (Arc<Registry>, Arc<Mutex<Vec<String>>>) {
        let registry = Registry::new();
        let shown = Arc::<Mutex<Vec<String>>>::default();
        let seen = shown.clone();
        registry.add_examiner(Box::new(move |_, node| {
            if node.claim().is_none() {
                seen.lock().unwrap().push(node.name().to_owned());
            }
        }));
        (registry, shown)
    }

    fn attach(registry: &Arc<Registry>, name: &str) {
        registry.register(name, None, Malloc::new(Geometry::plain(512, 64)).unwrap()).unwrap();
    }

    fn layer(registry: &Arc<Registry>, name: &str, base: &str) {
        passthru::create(registry, passthru::Options { name: name.into(), base: base.into(), uuid: None }).unwrap();
    }

    #[test]
    fn a_device_that_a_layer_is_to_be_built_on_is_shown_to_nobody_and_the_layer_is() {
        crate::testing::run(|_| async {
            let (registry, shown) = watched();
            let mut loading = registry.load(vec!["a".into(), "p".into(), "absent".into()]);
            for name in ["a", "b"] {
                attach(&registry, name);
            }
            layer(&registry, "p", "a");
            loading.built("a");
            layer(&registry, "q", "p");
            loading.built("p");
            assert_eq!(*shown.lock().unwrap(), ["b", "q"]);
            drop(loading);
            assert_eq!(*shown.lock().unwrap(), ["b", "q"]);
            for name in ["q", "p", "b", "a"] {
                let _ = registry.unregister(name).await;
            }
        });
    }

    #[test]
    fn of_a_configuration_that_failed_nothing_is_shown_that_layers_were_to_come_on() {
        crate::testing::run(|_| async {
            let (registry, shown) = watched();
            let loading = registry.load(vec!["a".into()]);
            attach(&registry, "a");
            loading.abandon();
            assert!(shown.lock().unwrap().is_empty());
            assert!(registry.more_to_come(), "nobody gives up on what is missing");
            registry.unregister("a").await.unwrap();
        });
    }

    #[test]
    fn a_device_whose_layer_could_not_be_built_is_shown_then() {
        crate::testing::run(|_| async {
            let (registry, shown) = watched();
            let mut loading = registry.load(vec!["a".into(), "a".into(), "b".into()]);
            attach(&registry, "a");
            attach(&registry, "b");
            assert!(registry.more_to_come());
            loading.built("a");
            assert_eq!(*shown.lock().unwrap(), [""; 0], "another call names it");
            loading.built("a");
            assert_eq!(*shown.lock().unwrap(), ["a"]);
            loading.all_made();
            assert!(!registry.more_to_come(), "what is set aside still is no device to come");
            drop(loading);
            assert_eq!(*shown.lock().unwrap(), ["a", "b"]);
            assert!(!registry.more_to_come());
            for name in ["a", "b"] {
                registry.unregister(name).await.unwrap();
            }
        });
    }
}
