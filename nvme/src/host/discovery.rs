//! The discovery log page, read until it held still.

use zerocopy::FromBytes;

use crate::wire::log::{GetLogPageCmd, lid};
use crate::wire::opcode::admin;
use crate::wire::{DiscoveryEntry, DiscoveryHeader, Sqe};

use super::command::AdminData;
use super::controller::Controller;
use super::error::HostError;

/// Entries taken from one log: a bound against a controller that claims to have any number.
const MAX_ENTRIES: u64 = 16384;
/// Bytes read at once.
const PIECE: usize = 64 << 10;
/// Times that a log may change while it is read.
const TRIES: usize = 10;

/// A discovery log page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryLog {
    /// Its header.
    pub header: Box<DiscoveryHeader>,
    /// Its entries.
    pub entries: Vec<DiscoveryEntry>,
}

impl Controller {
    /// Reads `len` bytes of a log page from `offset` on; `retain`: the event that announced it stays pending.
    ///
    /// # Errors
    /// The controller refuses or is gone.
    pub async fn log_page(
        &self,
        lid: u8,
        nsid: u32,
        offset: u64,
        len: usize,
        retain: bool,
    ) -> Result<Vec<u8>, HostError> {
        if len == 0 || !len.is_multiple_of(4) || !offset.is_multiple_of(4) {
            return Err(HostError::Invalid(format!("a log page is read in units of 4 bytes, not {len} at {offset}")));
        }
        let mut sqe = Sqe::new(admin::GET_LOG_PAGE, 0, nsid);
        let cmd = GetLogPageCmd {
            lid,
            lsp: 0,
            rae: retain,
            lsi: 0,
            len: len as u64,
            offset,
            index_offset: false,
            csi: 0,
            uuid_index: 0,
        };
        cmd.encode(&mut sqe);
        Ok(self.admin("Get Log Page", sqe, AdminData::Read(len)).await?.data)
    }

    async fn discovery_header(&self) -> Result<Box<DiscoveryHeader>, HostError> {
        let bytes = self.log_page(lid::DISCOVERY, 0, 0, size_of::<DiscoveryHeader>(), false).await?;
        DiscoveryHeader::read_from_bytes(&bytes)
            .map(Box::new)
            .map_err(|_| HostError::Peer("its discovery log is cut short".into()))
    }

    /// Reads the discovery log. If it changes meanwhile, it is read again.
    ///
    /// # Errors
    /// The controller refuses, misbehaves or is gone.
    pub async fn discovery_log(&self) -> Result<DiscoveryLog, HostError> {
        const ENTRY: usize = size_of::<DiscoveryEntry>();
        for _ in 0..TRIES {
            let header = self.discovery_header().await?;
            let n = header.numrec.get();
            if header.recfmt.get() != 0 || n > MAX_ENTRIES {
                return Err(HostError::Peer(format!(
                    "its discovery log has {n} entries of format {}",
                    header.recfmt.get()
                )));
            }
            let (end, mut bytes) = (n as usize * ENTRY, Vec::new());
            while bytes.len() < end {
                let (at, len) = ((size_of::<DiscoveryHeader>() + bytes.len()) as u64, (end - bytes.len()).min(PIECE));
                bytes.extend(self.log_page(lid::DISCOVERY, 0, at, len, false).await?);
            }
            let after = self.discovery_header().await?;
            if after.genctr == header.genctr && after.numrec == header.numrec {
                let entries =
                    bytes.chunks_exact(ENTRY).filter_map(|b| DiscoveryEntry::read_from_bytes(b).ok()).collect();
                return Ok(DiscoveryLog { header, entries });
            }
        }
        Err(HostError::Peer(format!("its discovery log changed {TRIES} times while it was read")))
    }
}
