//! Whether an array that runs is the one that is asked for: [`same`].

use std::sync::Arc;

use uuid::Uuid;

use super::found::superblock_of;
use super::join::table;
use crate::device::Bdev;
use crate::ec::create::Options;
use crate::ec::device::Ec;
use crate::ec::format::MemberState;
use crate::registry::{BdevError, Registry};

/// Whether the running array `ec` is the one that `o` asks for. With its UUID, members may have been replaced since the call was saved. Without, each
/// device that is listed has to be its member, or one that it lost and that is back; those that are not there stand for slots without a member.
///
/// One that is offline is what a configuration asks for that is being applied and has its UUID: its hosts wait for it, and nothing else does.
///
/// # Errors
/// It is another one, or a device that is listed is no member of it; or it is offline.
pub(super) async fn same(registry: &Arc<Registry>, ec: &Ec, uuid: Uuid, o: &Options) -> Result<(), BdevError> {
    o.validate()?;
    let l = &ec.shared.layout;
    let figures = (l.k, l.m) == (o.data_chunk_count as usize, o.parity_chunk_count as usize)
        && l.strip == o.strip_size_kb * 1024
        && o.uuid.is_none_or(|asked| asked == uuid);
    if !figures {
        return Err(BdevError::Exists(o.name.clone()));
    }
    if ec.shared.is_offline() {
        if o.uuid.is_some() && !o.salvage_requested && registry.is_loading() {
            tracing::error!("array '{}' is there, and offline: the rest of the configuration is applied", o.name);
            return Ok(());
        }
        let why = match o.salvage_requested {
            true => "it is there, and offline: delete it, which leaves its members as they are, and salvage it then",
            false => {
                "it is there, and offline: see 'Offline' in docs/ec.md for the way back when its members are there again"
            }
        };
        return Err(BdevError::Busy { name: o.name.clone(), why });
    }
    let members = ec.base_names();
    let (mut listed, mut others, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    for base in &o.base_bdevs {
        let node = registry.find(base);
        let name = node.as_ref().map_or_else(|| base.clone(), |n| n.name().to_owned());
        if listed.contains(&name) {
            return Err(BdevError::Invalid(format!("base bdev '{base}' is given twice: it is '{name}'")));
        }
        match node {
            _ if members.contains(&name) => {}
            Some(node) => others.push(node),
            None => absent.push(name.clone()),
        }
        listed.push(name);
    }
    if o.uuid.is_some() {
        let names: Vec<_> = others.iter().map(|n| n.name()).chain(absent.iter().map(String::as_str)).collect();
        if !names.is_empty() {
            tracing::warn!("array '{}' runs already, and these are no members of it: {}", o.name, names.join(", "));
        }
        return Ok(());
    }
    let stranger = |name: &str| {
        Err(BdevError::Invalid(format!(
            "array '{}' ({uuid}) runs already, and base bdev '{name}' is no member of it: list its members, or give its UUID if they were replaced",
            o.name
        )))
    };
    for node in &others {
        let back = match superblock_of(registry, node).await.filter(|s| s.array == uuid) {
            Some(s) => table(ec).await.is_some_and(|rows| rows.get(s.slot).is_some_and(|r| r.uuid == s.member().uuid)),
            None => false,
        };
        if !back {
            return stranger(node.name());
        }
    }
    let used = |slot: &usize| matches!(ec.member_state(*slot), MemberState::InSync | MemberState::Rebuilding);
    let vacant = l.n() - (0..l.n()).filter(used).count();
    // More than are lost, and not back: some are others' names.
    absent.get(vacant.saturating_sub(others.len())).map_or(Ok(()), |name| stranger(name))
}
