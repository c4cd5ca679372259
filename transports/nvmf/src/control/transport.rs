//! Transports, referrals, and options of the target as a whole.

use std::sync::Arc;

use longshore_nvme::wire::DISCOVERY_NQN;

use crate::address::{Address, TrType};
use crate::error::TargetError;
use crate::options::{Referral, TargetConfig, TransportOptions};
use crate::target::Target;

fn check(o: &TransportOptions) -> Result<(), TargetError> {
    let bad = |what: String| Err(TargetError::Invalid(what));
    if o.max_queue_depth < 2 {
        return bad(format!("max_queue_depth {} is less than 2", o.max_queue_depth));
    }
    if o.max_io_qpairs_per_ctrlr == 0 || o.max_io_qpairs_per_ctrlr == u16::MAX {
        return bad(format!("max_io_qpairs_per_ctrlr {} is not in 1 to 65534", o.max_io_qpairs_per_ctrlr));
    }
    if o.max_aq_depth < 32 || o.max_aq_depth > 4096 {
        return bad(format!("max_aq_depth {} is not in 32 to 4096", o.max_aq_depth));
    }
    if !o.max_io_size.is_power_of_two() || !(8192..=2 << 20).contains(&o.max_io_size) {
        return bad(format!("max_io_size {} is not a power of two from 8192 to 2097152", o.max_io_size));
    }
    if !o.in_capsule_data_size.is_multiple_of(16) || o.in_capsule_data_size > o.max_io_size {
        return bad(format!(
            "in_capsule_data_size {} is not a multiple of 16 up to max_io_size ({})",
            o.in_capsule_data_size, o.max_io_size
        ));
    }
    if o.kas == 0 {
        return bad("kas 0: a fabrics controller must support keep-alive".into());
    }
    Ok(())
}

impl Target {
    /// Creates a transport: from now on subsystems can listen on it.
    ///
    /// # Errors
    /// It exists, the build does not have it, or an option is wrong.
    pub async fn create_transport(self: &Arc<Self>, options: TransportOptions) -> Result<(), TargetError> {
        let t = options.trtype;
        self.change(|s, v| {
            if v.transports.contains_key(&t) {
                return Err(TargetError::TransportExists(t));
            }
            let kind = s.kinds.get(&t).ok_or(TargetError::TransportUnknown(t))?;
            check(&options)?;
            kind.check(&options).map_err(TargetError::Invalid)?;
            v.transports.insert(t, Arc::new(options));
            Ok(())
        })?;
        self.publish().await
    }

    /// The transports that were created, or the one asked for.
    ///
    /// # Errors
    /// The one asked for was not created.
    pub fn transports(&self, only: Option<TrType>) -> Result<Vec<Arc<TransportOptions>>, TargetError> {
        let v = self.view();
        match only {
            None => Ok(v.transports.values().cloned().collect()),
            Some(t) => Ok(vec![v.transports.get(&t).cloned().ok_or(TargetError::TransportMissing(t))?]),
        }
    }

    /// Options of the target as a whole.
    pub fn config(&self) -> Arc<TargetConfig> {
        self.view().config.clone()
    }

    /// Changes options of the target as a whole.
    ///
    /// # Errors
    /// More subsystems exist than the new limit.
    pub async fn set_config(self: &Arc<Self>, f: impl FnOnce(&mut TargetConfig)) -> Result<(), TargetError> {
        self.change(|_, v| {
            let c = Arc::make_mut(&mut v.config);
            f(c);
            let n = v.subsystems.len() as u32;
            if c.max_subsystems < n {
                return Err(TargetError::Invalid(format!(
                    "max_subsystems {}: {n} subsystems exist already, discovery included",
                    c.max_subsystems
                )));
            }
            if !(1..=100).contains(&c.host_share) {
                return Err(TargetError::Invalid(format!(
                    "host_share {} is not a percentage from 1 to 100",
                    c.host_share
                )));
            }
            v.genctr += 1;
            Ok(())
        })?;
        self.publish().await
    }

    /// Adds a referral to another discovery service, or to a subsystem there.
    ///
    /// # Errors
    /// It exists, or has no service id where the transport needs one.
    pub async fn add_referral(self: &Arc<Self>, mut r: Referral) -> Result<(), TargetError> {
        if r.subnqn.is_empty() {
            DISCOVERY_NQN.clone_into(&mut r.subnqn);
        }
        super::subsystem::check_nqn(&r.subnqn)?;
        if r.address.trsvcid.is_empty() && matches!(r.address.trtype, TrType::Tcp | TrType::Rdma) {
            return Err(TargetError::Invalid(format!("a referral to {} needs a trsvcid", r.address.trtype)));
        }
        self.change(|_, v| {
            if v.referrals.iter().any(|x| x.address == r.address && x.subnqn == r.subnqn) {
                return Err(TargetError::ReferralExists(r.address));
            }
            Arc::make_mut(&mut v.referrals).push(r);
            v.genctr += 1;
            Ok(())
        })?;
        self.publish().await
    }

    /// Removes a referral; `subnqn` empty for the discovery NQN.
    ///
    /// # Errors
    /// There is none like it.
    pub async fn remove_referral(self: &Arc<Self>, address: &Address, subnqn: &str) -> Result<(), TargetError> {
        let subnqn = if subnqn.is_empty() { DISCOVERY_NQN } else { subnqn };
        self.change(|_, v| {
            let list = Arc::make_mut(&mut v.referrals);
            let i = list
                .iter()
                .position(|x| x.address == *address && x.subnqn == subnqn)
                .ok_or_else(|| TargetError::ReferralNotFound(address.clone()))?;
            list.remove(i);
            v.genctr += 1;
            Ok(())
        })?;
        self.publish().await
    }

    /// The referrals.
    pub fn referrals(&self) -> Arc<Vec<Referral>> {
        self.view().referrals.clone()
    }
}
