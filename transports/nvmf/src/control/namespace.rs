//! Namespaces of a subsystem.

use std::sync::Arc;
use std::time::Duration;

use longshore_bdev::{BdevError, BdevEvent, ClaimKind, EventSink};

use crate::error::TargetError;
use crate::options::NamespaceOptions;
use crate::poll_group::PollGroup;
use crate::target::Target;
use crate::view::{Namespace, NamespaceView};

/// Name under which exported devices are claimed.
const MODULE: &str = "NVMe-oF Target";

impl Target {
    /// Exports a device as a namespace; answers with its identifier. Hosts that see it are told.
    ///
    /// # Errors
    /// No such subsystem or device, the device is in use, or the identifier or ANA group is taken or out of range.
    pub async fn add_namespace(self: &Arc<Self>, nqn: &str, o: NamespaceOptions) -> Result<u32, TargetError> {
        self.subsystem(nqn)?;
        let ns = self.open_namespace(nqn, &o)?;
        let nsid = self.change_subsystem(nqn, |_, sub| {
            if sub.discovery {
                return Err(TargetError::Invalid("the discovery subsystem has no namespaces".into()));
            }
            let max = sub.options.max_namespaces;
            let nsid = match o.nsid.unwrap_or(0) {
                0 => (1..=max).find(|n| !sub.namespaces.contains_key(n)).ok_or(TargetError::TooManyNamespaces(max))?,
                n if n > max => {
                    return Err(TargetError::Invalid(format!("nsid {n} is more than max_namespaces ({max})")));
                }
                n => n,
            };
            if sub.namespaces.contains_key(&nsid) {
                return Err(TargetError::NamespaceExists(nsid));
            }
            let anagrpid = match o.anagrpid.unwrap_or(0) {
                0 => nsid,
                g => check_group(g, max)?,
            };
            let view = NamespaceView {
                nsid,
                anagrpid,
                auto_visible: !o.no_auto_visible,
                hosts: Default::default(),
                num_blocks: ns.num_blocks(),
                ns,
            };
            sub.namespaces.insert(nsid, view);
            sub.ana_changes += 1;
            Ok(nsid)
        })?;
        self.publish().await?;
        Ok(nsid)
    }

    fn open_namespace(self: &Arc<Self>, nqn: &str, o: &NamespaceOptions) -> Result<Arc<Namespace>, TargetError> {
        let key = self.fresh_id();
        let desc = self.bdevs.open(&o.bdev_name, true, self.bdev_events(nqn, key))?;
        let g = desc.node().geometry().clone();
        let refuse = |why: String| Err(TargetError::Bdev(BdevError::Invalid(why)));
        if g.md_size != 0 && !g.md_interleave {
            return refuse(format!("bdev '{}' keeps metadata apart, which no fabrics host can use", o.bdev_name));
        }
        let data = g.data_size();
        if !data.is_power_of_two() || data < 512 {
            return refuse(format!(
                "bdev '{}' has blocks of {data} bytes; a namespace needs a power of two from 512 up",
                o.bdev_name
            ));
        }
        desc.claim(ClaimKind::ExclusiveWrite, MODULE)?;
        let uuid = o.uuid.unwrap_or_else(|| desc.node().uuid());
        Ok(Arc::new(Namespace {
            key,
            bdev_name: desc.node().name().to_owned(),
            uuid,
            nguid: o.nguid.unwrap_or_else(|| *uuid.as_bytes()),
            eui64: o.eui64.unwrap_or_default(),
            block_size: g.block_size,
            md_size: g.md_size,
            desc,
        }))
    }

    /// Events of a device: its removal removes the namespace, its resize tells the hosts.
    fn bdev_events(self: &Arc<Self>, nqn: &str, key: u64) -> EventSink {
        let (weak, nqn) = (Arc::downgrade(self), nqn.to_owned());
        Box::new(move |ev| {
            let Some(target) = weak.upgrade() else { return };
            let Some(core) = target.cores.first().cloned() else { return };
            let nqn = nqn.clone();
            drop(core.spawn(move |_| async move {
                let r = match ev {
                    BdevEvent::Remove => target.bdev_removed(&nqn, key).await,
                    BdevEvent::Resize { num_blocks } => target.bdev_resized(&nqn, key, num_blocks).await,
                };
                if let Err(e) = r {
                    tracing::debug!("{ev:?} of a device exported by '{nqn}': {e}");
                }
            }));
        })
    }

    async fn bdev_removed(self: &Arc<Self>, nqn: &str, key: u64) -> Result<(), TargetError> {
        let nsid = self
            .subsystem(nqn)?
            .namespaces
            .values()
            .find(|n| n.ns.key == key)
            .map(|n| n.nsid)
            .ok_or(TargetError::NamespaceNotFound(0))?;
        self.remove_namespace_if(nqn, nsid, Some(key)).await
    }

    async fn bdev_resized(self: &Arc<Self>, nqn: &str, key: u64, num_blocks: u64) -> Result<(), TargetError> {
        self.change_subsystem(nqn, |_, sub| {
            let n = sub.namespaces.values_mut().find(|n| n.ns.key == key);
            n.ok_or(TargetError::NamespaceNotFound(0))?.num_blocks = num_blocks;
            Ok(())
        })?;
        self.publish().await
    }

    /// Removes a namespace. New commands to it fail at once; those in flight may end, and are aborted in the device after
    /// `abort_timeout_sec`. Answers when they ended and the device was given up, or failed to within twice that time.
    ///
    /// # Errors
    /// No such subsystem or namespace.
    pub async fn remove_namespace(self: &Arc<Self>, nqn: &str, nsid: u32) -> Result<(), TargetError> {
        self.remove_namespace_if(nqn, nsid, None).await
    }

    async fn remove_namespace_if(self: &Arc<Self>, nqn: &str, nsid: u32, key: Option<u64>) -> Result<(), TargetError> {
        let gone = self.change_subsystem(nqn, |_, sub| {
            let found = sub.namespaces.get(&nsid).is_some_and(|n| key.is_none_or(|k| k == n.ns.key));
            if !found {
                return Err(TargetError::NamespaceNotFound(nsid));
            }
            sub.ana_changes += 1;
            sub.namespaces.remove(&nsid).ok_or(TargetError::NamespaceNotFound(nsid))
        })?;
        let key = gone.ns.key;
        drop(gone);
        self.publish().await?;
        self.drain_namespace(key).await;
        Ok(())
    }

    /// Waits on every core until no request uses the namespace, which no view holds any more.
    pub(crate) async fn drain_namespace(self: &Arc<Self>, key: u64) {
        let limit = self.abort_timeout();
        let waits: Vec<_> = self
            .cores
            .iter()
            .map(|c| {
                let me = self.clone();
                c.spawn(move |r| async move {
                    if let Some(g) = PollGroup::of(&me) {
                        g.drain_namespace(&r, key, limit).await;
                    }
                })
            })
            .collect();
        for w in waits {
            let _ = w.await;
        }
    }

    fn abort_timeout(&self) -> Duration {
        let secs = self.view().transports.values().map(|t| t.abort_timeout_sec).max().unwrap_or(1);
        Duration::from_secs(u64::from(secs))
    }

    /// Moves a namespace to another ANA group; hosts are told.
    ///
    /// # Errors
    /// No such subsystem or namespace, or the group is out of range.
    pub async fn set_ana_group(self: &Arc<Self>, nqn: &str, nsid: u32, group: u32) -> Result<(), TargetError> {
        self.change_subsystem(nqn, |_, sub| {
            let max = sub.options.max_namespaces;
            let n = sub.namespaces.get_mut(&nsid).ok_or(TargetError::NamespaceNotFound(nsid))?;
            n.anagrpid = check_group(group, max)?;
            sub.ana_changes += 1;
            Ok(())
        })?;
        self.publish().await
    }

    /// Lets a host see a namespace that was added with `no_auto_visible`.
    ///
    /// # Errors
    /// No such subsystem or namespace, everybody sees it, or the host does already.
    pub async fn namespace_add_host(self: &Arc<Self>, nqn: &str, nsid: u32, host: &str) -> Result<(), TargetError> {
        super::subsystem::check_nqn(host)?;
        self.visibility(nqn, nsid, |n| match n.hosts.insert(host.to_owned()) {
            true => Ok(()),
            false => Err(TargetError::HostExists(host.to_owned())),
        })
        .await
    }

    /// Hides a namespace from a host again.
    ///
    /// # Errors
    /// No such subsystem or namespace, everybody sees it, or the host did not.
    pub async fn namespace_remove_host(self: &Arc<Self>, nqn: &str, nsid: u32, host: &str) -> Result<(), TargetError> {
        self.visibility(nqn, nsid, |n| match n.hosts.remove(host) {
            true => Ok(()),
            false => Err(TargetError::HostNotFound(host.to_owned())),
        })
        .await
    }

    async fn visibility(
        self: &Arc<Self>,
        nqn: &str,
        nsid: u32,
        f: impl FnOnce(&mut NamespaceView) -> Result<(), TargetError>,
    ) -> Result<(), TargetError> {
        self.change_subsystem(nqn, |_, sub| {
            let n = sub.namespaces.get_mut(&nsid).ok_or(TargetError::NamespaceNotFound(nsid))?;
            if n.auto_visible {
                return Err(TargetError::Invalid(format!(
                    "namespace {nsid} is visible to every host: it was not added with no_auto_visible"
                )));
            }
            f(n)
        })?;
        self.publish().await
    }
}

fn check_group(group: u32, max: u32) -> Result<u32, TargetError> {
    match group {
        g if (1..=max).contains(&g) => Ok(g),
        g => Err(TargetError::Invalid(format!("ANA group {g} is not in 1 to {max} (max_namespaces)"))),
    }
}
