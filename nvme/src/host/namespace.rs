//! Namespaces of a controller, as Identify describes them.

use zerocopy::FromBytes;

use crate::wire::identify::cns;
use crate::wire::identify_ns::{LbaFormat, nidt};
use crate::wire::opcode::admin;
use crate::wire::{IdentifyNamespace, NamespaceDescriptors, NamespaceList, Sqe, Status};

use super::command::AdminData;
use super::controller::Controller;
use super::error::HostError;

/// Most namespaces that are listed: a bound against a controller that never ends its list.
const MAX_LISTED: usize = 1 << 16;

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// Identify Namespace.
    pub data: Box<IdentifyNamespace>,
    /// Its identification descriptors, if it has any.
    pub descriptors: Box<NamespaceDescriptors>,
    /// UUID, if it has one that is not zero.
    pub uuid: Option<[u8; 16]>,
    /// NGUID, if it has one that is not zero.
    pub nguid: Option<[u8; 16]>,
    /// EUI-64, if it has one that is not zero.
    pub eui64: Option<[u8; 8]>,
    /// I/O command set (CSI).
    pub csi: u8,
}

impl Namespace {
    /// True if `other` is the same storage in the same format, whatever its size: one that was removed and one that was made
    /// in its place under its identifier are not.
    pub fn is_same(&self, other: &Namespace) -> bool {
        let id = |n: &Namespace| (n.nsid, n.uuid, n.nguid, n.eui64, n.csi);
        id(self) == id(other) && self.shape() == other.shape()
    }

    /// What a block looks like: bytes of data, bytes of metadata, and whether those follow the data (FLBAS bit 4).
    fn shape(&self) -> (Option<u32>, u16, bool) {
        let ms = self.format().ms.get();
        (self.block_size(), ms, ms != 0 && self.data.flbas & 0x10 != 0)
    }

    /// The LBA format in use.
    pub fn format(&self) -> LbaFormat {
        let f = self.data.flbas;
        // Bits 6:5 are the upper bits of the index.
        let index = usize::from(f & 0xf) | usize::from(f >> 5 & 3) << 4;
        self.data.lbaf.get(index).copied().unwrap_or_default()
    }

    /// Bytes of data in a block; `None` if the controller says what cannot be.
    pub fn block_size(&self) -> Option<u32> {
        let lbads = self.format().lbads;
        (9..=16).contains(&lbads).then(|| 1 << lbads)
    }
}

fn nonzero<const N: usize>(id: &[u8]) -> Option<[u8; N]> {
    <[u8; N]>::try_from(id).ok().filter(|id| id.iter().any(|&b| b != 0))
}

fn identify(cns: u8, nsid: u32) -> Sqe {
    let mut sqe = Sqe::new(admin::IDENTIFY, 0, nsid);
    sqe.cdw10 = u32::from(cns).into();
    sqe
}

fn short<T, E>(_: E) -> Result<T, HostError> {
    Err(HostError::Peer("its identify data is cut short".into()))
}

impl Controller {
    /// Identifiers of the active namespaces, ascending.
    ///
    /// # Errors
    /// The controller refuses, misbehaves or is gone.
    pub async fn active_namespaces(&self) -> Result<Vec<u32>, HostError> {
        let mut all: Vec<u32> = Vec::new();
        loop {
            let after = all.last().copied().unwrap_or(0);
            let sqe = identify(cns::ACTIVE_NAMESPACES, after);
            let reply = self.admin("Identify (active namespaces)", sqe, AdminData::Read(4096)).await?;
            let list = NamespaceList::read_from_bytes(&reply.data).or_else(short)?;
            let n = list.iter().count();
            for nsid in list.iter() {
                if nsid <= all.last().copied().unwrap_or(0) || all.len() == MAX_LISTED {
                    return Err(HostError::Peer(format!("its list of namespaces does not ascend at {nsid}")));
                }
                all.push(nsid);
            }
            if n < list.0.len() {
                return Ok(all);
            }
        }
    }

    /// Describes a namespace.
    ///
    /// # Errors
    /// It does not exist, or the controller refuses or is gone.
    pub async fn namespace(&self, nsid: u32) -> Result<Namespace, HostError> {
        let reply = self.admin("Identify Namespace", identify(cns::NAMESPACE, nsid), AdminData::Read(4096)).await?;
        let data = Box::new(IdentifyNamespace::read_from_bytes(&reply.data).or_else(short)?);
        let sqe = identify(cns::NAMESPACE_DESCRIPTORS, nsid);
        let reply = self.admin_any(sqe, AdminData::Read(4096)).await?;
        // Controllers before version 1.3 do not have these.
        let bytes = match reply.status {
            s if s.is(Status::SUCCESS) => reply.data,
            s if s.is(Status::INVALID_FIELD) || s.is(Status::INVALID_OPCODE) => vec![0; 4096],
            // It is not active: it has no blocks, and no identity either.
            _ if data.nsze.get() == 0 => vec![0; 4096],
            // Anything else says nothing: an identity must not change because of a passing fault.
            status => {
                let what = "Identify (namespace identification descriptors)";
                return Err(HostError::Refused { what, status, dw0: reply.result as u32 });
            }
        };
        let descriptors = Box::new(NamespaceDescriptors::read_from_bytes(&bytes).or_else(short)?);
        let (mut uuid, mut csi) = (None, 0);
        let (mut nguid, mut eui64) = (nonzero(&data.nguid), nonzero(&data.eui64));
        for (kind, id) in descriptors.iter() {
            match kind {
                nidt::UUID => uuid = uuid.or(nonzero(id)),
                nidt::NGUID => nguid = nguid.or(nonzero(id)),
                nidt::EUI64 => eui64 = eui64.or(nonzero(id)),
                nidt::CSI => csi = id.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        Ok(Namespace { nsid, data, descriptors, uuid, nguid, eui64, csi })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn storage_in_another_format_is_not_the_same() {
        let mut data = Box::new(IdentifyNamespace::new_zeroed());
        data.lbaf[0].lbads = 9;
        let (descriptors, uuid) = (Box::new(NamespaceDescriptors::new_zeroed()), Some([7; 16]));
        let a = Namespace { nsid: 1, data, descriptors, uuid, nguid: None, eui64: None, csi: 0 };
        let like = |change: fn(&mut IdentifyNamespace)| {
            let mut b = a.clone();
            change(&mut b.data);
            a.is_same(&b)
        };
        assert!(like(|d| d.nsze = 5.into()), "whatever its size");
        assert!(like(|d| d.flbas |= 0x10), "where the metadata is says nothing if there is none");
        assert!(!like(|d| d.lbaf[0].lbads = 12));
        assert!(!like(|d| d.lbaf[0].ms = 8.into()));
        let mut b = a.clone();
        b.data.lbaf[0].ms = 8.into();
        let c = b.clone();
        b.data.flbas |= 0x10;
        assert!(!b.is_same(&c) && c.is_same(&c));
    }
}
