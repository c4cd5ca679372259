//! Who may connect.

use std::sync::Arc;
use std::time::Duration;

use crate::error::TargetError;
use crate::poll_group::{ControllerKey, PollGroup};
use crate::target::Target;

impl Target {
    /// Puts a host on the list of a subsystem.
    ///
    /// # Errors
    /// No such subsystem, a malformed NQN, or the host is on the list.
    pub async fn add_host(self: &Arc<Self>, nqn: &str, host: &str) -> Result<(), TargetError> {
        self.change(|s, v| {
            let known = v.subsystem(nqn).is_some() && !s.destroying.contains(nqn);
            if known { Ok(()) } else { Err(TargetError::SubsystemNotFound(nqn.to_owned())) }
        })?;
        super::subsystem::check_nqn(host)?;
        self.change_subsystem(nqn, |_, sub| match sub.hosts.insert(host.to_owned()) {
            true => Ok(()),
            false => Err(TargetError::HostExists(host.to_owned())),
        })?;
        self.discovery_changed();
        self.publish().await
    }

    /// Takes a host off the list and disconnects it; answers when its connections are gone.
    ///
    /// # Errors
    /// No such subsystem, the host is not on the list, or its connections were not gone after `timeout`.
    pub async fn remove_host(
        self: &Arc<Self>,
        nqn: &str,
        host: &str,
        timeout: Option<Duration>,
    ) -> Result<(), TargetError> {
        let id = self.change_subsystem(nqn, |_, sub| match sub.hosts.remove(host) {
            true => Ok(sub.id),
            false => Err(TargetError::HostNotFound(host.to_owned())),
        })?;
        self.discovery_changed();
        self.publish().await?;
        let name = host.to_owned();
        if self.disconnect_within(move |c| c.subsystem == id && c.hostnqn == name, timeout).await {
            Ok(())
        } else {
            Err(TargetError::Timeout(format!("host '{host}' still has requests in flight")))
        }
    }

    /// Lets every host connect, or only those on the list. Established connections stay.
    ///
    /// # Errors
    /// No such subsystem.
    pub async fn allow_any_host(self: &Arc<Self>, nqn: &str, allow: bool) -> Result<(), TargetError> {
        self.change_subsystem(nqn, |_, sub| {
            sub.allow_any_host = allow;
            Ok(())
        })?;
        self.discovery_changed();
        self.publish().await
    }

    pub(crate) fn discovery_changed(&self) {
        let _ = self.change(|_, v| {
            v.genctr += 1;
            Ok(())
        });
    }

    /// Disconnects every controller that matches and waits until their queue pairs are gone.
    pub(crate) async fn disconnect_where(
        self: &Arc<Self>,
        f: impl Fn(&ControllerKey) -> bool + Clone + Send + 'static,
    ) {
        self.disconnect_within(f, None).await;
    }

    async fn disconnect_within(
        self: &Arc<Self>,
        f: impl Fn(&ControllerKey) -> bool + Clone + Send + 'static,
        timeout: Option<Duration>,
    ) -> bool {
        let waits: Vec<_> = self
            .cores
            .iter()
            .map(|c| {
                let (me, f) = (self.clone(), f.clone());
                c.spawn(move |r| async move {
                    match PollGroup::of(&me) {
                        Some(g) => g.disconnect_where(&r, f, timeout).await,
                        None => true,
                    }
                })
            })
            .collect();
        let mut all = true;
        for w in waits {
            all &= w.await.unwrap_or(true);
        }
        all
    }
}
