//! Where subsystems listen, and the ANA states of listeners.

use std::sync::Arc;

use longshore_nvme::wire::AnaState;

use crate::address::Address;
use crate::error::TargetError;
use crate::target::Target;
use crate::view::{ListenerView, TargetView};

impl Target {
    /// Lets a subsystem listen on an address; the transport opens it if nobody did before.
    ///
    /// # Errors
    /// No such subsystem or transport, it listens there already, or the address cannot be opened.
    pub async fn add_listener(self: &Arc<Self>, nqn: &str, at: Address, ana: AnaState) -> Result<(), TargetError> {
        let (id, open) = self.change_subsystem(nqn, |s, sub| {
            if !s.view.transports.contains_key(&at.trtype) {
                return Err(TargetError::TransportMissing(at.trtype));
            }
            if sub.listener(&at).is_some() {
                return Err(TargetError::ListenerExists(at.clone()));
            }
            s.use_port(&at);
            let groups = sub.options.max_namespaces as usize;
            sub.listeners.push(ListenerView { address: at.clone(), ana: vec![ana; groups], ana_changes: 0 });
            Ok((sub.id, !s.deferred))
        })?;
        if open && let Err(e) = self.open_port(&at).await {
            // Unless it was removed meanwhile.
            let _ = self.change_subsystem(nqn, |s, sub| {
                if sub.id == id && sub.listener(&at).is_some() {
                    sub.listeners.retain(|l| l.address != at);
                    s.leave_port(&at);
                }
                Ok(())
            });
            self.close_port(&at).await;
            let _ = self.publish().await;
            return Err(e);
        }
        let kept = |t: &TargetView| t.subsystem(nqn).is_some_and(|s| s.id == id && s.listener(&at).is_some());
        if !kept(&self.view()) {
            return Err(TargetError::ListenerNotFound(at));
        }
        self.discovery_changed();
        self.publish().await
    }

    /// From now on listeners are only recorded; [`open_listeners`](Target::open_listeners) opens them. For start-up, so that
    /// no host sees half a configuration.
    pub fn defer_listeners(&self) {
        self.state().deferred = true;
    }

    /// Opens the listeners that were recorded, and later ones at once. Answers with those that could not be opened.
    pub async fn open_listeners(self: &Arc<Self>) -> Vec<TargetError> {
        let ports = {
            let mut s = self.state();
            s.deferred = false;
            s.closed_ports()
        };
        let mut failed = Vec::new();
        for a in ports {
            if let Err(e) = self.open_port(&a).await {
                failed.push(e);
            }
        }
        failed
    }

    /// A subsystem stops to listen on an address; hosts that came in by it are disconnected.
    ///
    /// # Errors
    /// No such subsystem, or it does not listen there.
    pub async fn remove_listener(self: &Arc<Self>, nqn: &str, at: &Address) -> Result<(), TargetError> {
        let id = self.change_subsystem(nqn, |s, sub| {
            let i = sub.listeners.iter().position(|l| l.address == *at);
            sub.listeners.remove(i.ok_or_else(|| TargetError::ListenerNotFound(at.clone()))?);
            s.leave_port(at);
            Ok(sub.id)
        })?;
        self.discovery_changed();
        self.publish().await?;
        self.close_port(at).await;
        let gone = at.clone();
        self.disconnect_where(move |c| c.subsystem == id && c.listener == gone).await;
        Ok(())
    }

    /// Sets the ANA state of one group, or of all, on a listener; hosts that came in by it are told.
    ///
    /// # Errors
    /// No such subsystem or listener, ANA is not reported, or the group is out of range.
    pub async fn set_ana_state(
        self: &Arc<Self>,
        nqn: &str,
        at: &Address,
        state: AnaState,
        group: Option<u32>,
    ) -> Result<(), TargetError> {
        self.change_subsystem(nqn, |_, sub| {
            if !sub.options.ana_reporting {
                return Err(TargetError::Invalid(format!(
                    "subsystem '{nqn}' does not report ANA: it was created without ana_reporting"
                )));
            }
            let max = sub.options.max_namespaces;
            let l = sub.listeners.iter_mut().find(|l| l.address == *at);
            let l = l.ok_or_else(|| TargetError::ListenerNotFound(at.clone()))?;
            match group.unwrap_or(0) {
                0 => l.ana.fill(state),
                g if g <= max => l.ana[g as usize - 1] = state,
                g => return Err(TargetError::Invalid(format!("ANA group {g} is not in 1 to {max} (max_namespaces)"))),
            }
            l.ana_changes += 1;
            Ok(())
        })?;
        self.publish().await
    }
}
