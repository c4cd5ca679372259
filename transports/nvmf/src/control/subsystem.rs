//! Subsystems.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_nvme::wire::DISCOVERY_NQN;
use uuid::Uuid;

use crate::error::TargetError;
use crate::options::SubsystemOptions;
use crate::target::Target;
use crate::view::{SubsystemKey, SubsystemView, TargetView};

/// True if `s` is printable ASCII of at most `max` bytes.
fn printable(s: &str, max: usize) -> bool {
    s.len() <= max && s.bytes().all(|b| (0x20..=0x7e).contains(&b))
}

/// Checks the form of an NQN: Base Specification, "NVMe Qualified Names".
pub(crate) fn check_nqn(nqn: &str) -> Result<(), TargetError> {
    let bad = || TargetError::InvalidNqn(nqn.to_owned());
    if nqn == DISCOVERY_NQN {
        return Ok(());
    }
    if nqn.len() > 223 || nqn.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(bad());
    }
    if let Some(u) = nqn.strip_prefix("nqn.2014-08.org.nvmexpress:uuid:") {
        return if u.len() == 36 && Uuid::try_parse(u).is_ok() { Ok(()) } else { Err(bad()) };
    }
    let rest = nqn.strip_prefix("nqn.").ok_or_else(bad)?;
    let b = rest.as_bytes();
    let date_ok = b.len() > 8
        && b[..4].iter().all(u8::is_ascii_digit)
        && b[4] == b'-'
        && b[5..7].iter().all(u8::is_ascii_digit)
        && b[7] == b'.';
    if !date_ok {
        return Err(bad());
    }
    let (domain, name) = rest[8..].split_once(':').ok_or_else(bad)?;
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if name.is_empty() || !domain.split('.').all(label) {
        return Err(bad());
    }
    Ok(())
}

impl Target {
    /// Creates a subsystem without namespaces and listeners.
    ///
    /// # Errors
    /// The NQN is taken or malformed, there are too many, or an option is wrong.
    pub async fn create_subsystem(self: &Arc<Self>, mut o: SubsystemOptions) -> Result<(), TargetError> {
        if o.serial_number.is_empty() {
            SubsystemOptions::SERIAL.clone_into(&mut o.serial_number);
        }
        if o.model_number.is_empty() {
            SubsystemOptions::MODEL.clone_into(&mut o.model_number);
        }
        if o.max_namespaces == 0 {
            o.max_namespaces = SubsystemOptions::MAX_NAMESPACES;
        }
        if !printable(&o.serial_number, 20) {
            let m = format!("serial_number '{}' is not up to 20 printable ASCII characters", o.serial_number);
            return Err(TargetError::Invalid(m));
        }
        if !printable(&o.model_number, 40) {
            let m = format!("model_number '{}' is not up to 40 printable ASCII characters", o.model_number);
            return Err(TargetError::Invalid(m));
        }
        if o.min_cntlid == 0 || o.max_cntlid > 0xffef || o.min_cntlid > o.max_cntlid {
            return Err(TargetError::CntlidRange { min: o.min_cntlid, max: o.max_cntlid });
        }
        if o.max_namespaces > 0xffff {
            let m = format!("max_namespaces {} is more than 65535", o.max_namespaces);
            return Err(TargetError::Invalid(m));
        }
        check_nqn(&o.nqn)?;
        let id = self.fresh_id();
        self.change(|s, v| {
            let key = SubsystemKey::new(&o.nqn);
            if v.subsystems.contains_key(&key) || s.destroying.contains(&o.nqn) {
                return Err(TargetError::SubsystemExists(o.nqn.clone()));
            }
            if v.subsystems.len() as u32 >= v.config.max_subsystems {
                return Err(TargetError::TooManySubsystems(v.config.max_subsystems));
            }
            let sub = SubsystemView {
                id,
                discovery: o.nqn == DISCOVERY_NQN,
                allow_any_host: o.allow_any_host,
                hosts: Default::default(),
                listeners: Vec::new(),
                namespaces: BTreeMap::new(),
                ana_changes: 0,
                options: Arc::new(o),
            };
            v.subsystems.insert(key, Arc::new(sub));
            Ok(())
        })?;
        self.publish().await
    }

    /// Deletes a subsystem: its hosts are disconnected, its listeners closed, its devices given up.
    ///
    /// # Errors
    /// There is none, or it is being deleted already.
    pub async fn delete_subsystem(self: &Arc<Self>, nqn: &str) -> Result<(), TargetError> {
        let gone = self.change(|s, v| {
            if s.destroying.contains(nqn) {
                return Err(TargetError::SubsystemDestroyed(nqn.to_owned()));
            }
            let sub = v
                .subsystems
                .remove(&SubsystemKey::new(nqn))
                .ok_or_else(|| TargetError::SubsystemNotFound(nqn.to_owned()))?;
            s.destroying.insert(nqn.to_owned());
            sub.listeners.iter().for_each(|l| s.leave_port(&l.address));
            if !sub.listeners.is_empty() {
                v.genctr += 1;
            }
            Ok(sub)
        })?;
        let result = self.finish_delete(&gone).await;
        self.state().destroying.remove(nqn);
        result
    }

    async fn finish_delete(self: &Arc<Self>, gone: &SubsystemView) -> Result<(), TargetError> {
        self.publish().await?;
        for l in &gone.listeners {
            self.close_port(&l.address).await;
        }
        let id = gone.id;
        self.disconnect_where(move |c| c.subsystem == id).await;
        for n in gone.namespaces.values() {
            self.drain_namespace(n.ns.key).await;
        }
        Ok(())
    }

    /// The subsystem of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn subsystem(&self, nqn: &str) -> Result<Arc<SubsystemView>, TargetError> {
        self.view().subsystem(nqn).cloned().ok_or_else(|| TargetError::SubsystemNotFound(nqn.to_owned()))
    }

    /// All subsystems, discovery first, then by NQN.
    pub fn subsystems(&self) -> Vec<Arc<SubsystemView>> {
        TargetView::clone(&self.view()).subsystems.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_must_have_the_form_of_the_specification() {
        for good in [
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555",
            "nqn.2016-06.io.x-y:a:b",
        ] {
            assert_eq!(check_nqn(good), Ok(()), "{good}");
        }
        let long = format!("nqn.2016-06.io.spdk:{}", "a".repeat(204));
        for bad in [
            "",
            "bad",
            "nqn.2016-06.io.spdk",
            "nqn.2016-06.io.spdk:",
            "nqn.201-06.io.spdk:x",
            "nqn.2016-06.-io.spdk:x",
            "nqn.2016-06.io..spdk:x",
            "nqn.2014-08.org.nvmexpress:uuid:1111",
            "nqn.2016-06.io.spdk:a\n",
            &long,
        ] {
            assert!(check_nqn(bad).is_err(), "{bad}");
        }
    }
}
