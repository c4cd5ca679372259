//! What is written to make an array, and to make it void.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::config::Options;
use super::member_io::MemberIo;
use super::signature::TAIL_BYTES;
use crate::ec::faults::{self, Mutant};
use crate::ec::format::{
    FIRST_EPOCH, Features, MATRIX_CAUCHY, MemberEntry, PAGE_BITS_BYTES, PageHeader, PageKind, Stamp, Superblock,
};
use crate::ec::layout::{Layout, PAGE_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SPACING};
use crate::registry::{BdevError, Registry};

/// Makes an array of `members`, in the order of their slots; returns its superblock. The module's documentation has the order of
/// the writes, and why.
pub(super) async fn fresh(o: &Options, members: &[&MemberIo]) -> Result<Superblock, BdevError> {
    let head = describe(o, members)?;
    for io in members {
        zero_ends(io).await?;
    }
    flush(members).await?;
    let first = faults::is(Mutant::SuperblocksFirst);
    if first {
        superblocks(o, members, &head).await?;
    }
    for io in members {
        bitmaps(io, &head).await?;
    }
    flush(members).await?;
    if !first {
        superblocks(o, members, &head).await?;
    }
    Ok(head)
}

async fn superblocks(o: &Options, members: &[&MemberIo], head: &Superblock) -> Result<(), BdevError> {
    for (slot, io) in members.iter().enumerate() {
        if let Err(e) = superblock(io, &head.for_slot(slot)).await {
            // What was written must not look like a member; what cannot be undone is of epoch 1 and passed over.
            for io in &members[..=slot] {
                if let Err(e) = void(io).await {
                    tracing::warn!("'{}' keeps a superblock of array '{}' that was not made: {e}", io.name(), o.name);
                }
            }
            return Err(e);
        }
    }
    Ok(())
}

/// All of the superblocks' space, and the end, so that nothing of what `force` destroys is found by its number again.
async fn zero_ends(io: &MemberIo) -> Result<(), BdevError> {
    io.zero(0, (2 * SUPERBLOCK_SPACING).min(io.bytes())).await?;
    let tail = (TAIL_BYTES as u64).min(io.bytes());
    io.zero(io.bytes() - tail, tail).await
}

/// Makes that what is on a device is not known any more, durably.
pub(in crate::ec) async fn wipe(io: &MemberIo) -> Result<(), BdevError> {
    zero_ends(io).await?;
    io.flush().await
}

fn describe(o: &Options, members: &[&MemberIo]) -> Result<Superblock, BdevError> {
    let block = members.iter().map(|io| io.block()).max().unwrap_or(0);
    let smallest = members.iter().min_by_key(|io| io.bytes());
    let (bytes, name) = smallest.map_or((0, ""), |io| (io.bytes(), io.name()));
    let (k, m) = (o.data_chunk_count as usize, o.parity_chunk_count as usize);
    let layout = Layout::compute(k, m, o.strip_size_kb * 1024, block, bytes, &o.layout)
        .map_err(|e| BdevError::Invalid(format!("{e} (the smallest base bdev is '{name}')")))?;
    let random = || (Uuid::new_v4().as_u128() as u64).max(1);
    Ok(Superblock {
        features: Features::default(),
        array: o.uuid.unwrap_or_else(Uuid::new_v4),
        name: o.name.clone(),
        layout,
        matrix: MATRIX_CAUCHY,
        stamp: Stamp { epoch: FIRST_EPOCH, nonce: random() },
        predecessor: Stamp::default(),
        journal_session: random(),
        wib_generation: 0,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        slot: 0,
        members: (0..layout.n()).map(|_| MemberEntry::in_sync(Uuid::new_v4())).collect(),
    })
}

async fn flush(members: &[&MemberIo]) -> Result<(), BdevError> {
    for io in members {
        io.flush().await?;
    }
    Ok(())
}

/// Pages of sequence 0 without a set bit for the map, zeroes for the write-intent bitmap.
async fn bitmaps(io: &MemberIo, head: &Superblock) -> Result<(), BdevError> {
    let l = &head.layout;
    io.zero(l.map_offset, l.wib_offset + l.wib_pages() * 2 * PAGE_BYTES - l.map_offset).await?;
    let pair = 2 * PAGE_BYTES as usize;
    let at_once = 8;
    for first in (0..l.map_pages()).step_by(at_once) {
        let n = (l.map_pages() - first).min(at_once as u64) as usize;
        let mut bytes = vec![0; n * pair];
        for (i, page) in bytes.chunks_mut(pair).enumerate() {
            let index = first as u32 + i as u32;
            let header = PageHeader { array: head.array, kind: PageKind::Map, index, sequence: 0, generation: 0 };
            header.encode(&[0; PAGE_BITS_BYTES], &mut page[..PAGE_BYTES as usize]);
        }
        io.write(l.map_page_at(first, 0), &bytes).await?;
    }
    Ok(())
}

/// Writes a superblock where it belongs, durably.
pub(super) async fn superblock(io: &MemberIo, s: &Superblock) -> Result<(), BdevError> {
    let mut bytes = [0; SUPERBLOCK_BYTES as usize];
    s.encode(&mut bytes);
    io.write(Layout::superblock_at(s.copy()), &bytes).await?;
    io.flush().await
}

/// Makes both copies of a superblock void, durably.
async fn void(io: &MemberIo) -> Result<(), BdevError> {
    for copy in 0..2 {
        io.zero(Layout::superblock_at(copy), SUPERBLOCK_BYTES).await?;
    }
    io.flush().await
}

/// Makes the superblocks of array `array` void on those of `base_bdevs` that hold any; the array is stopped, so that nobody has claimed
/// them. What is on the devices is then no array any more.
///
/// # Errors
///
/// A device is missing or in use, or cannot be read or written. Others may be void by then.
pub async fn clear(registry: &Arc<Registry>, array: Uuid, base_bdevs: &[String]) -> Result<(), BdevError> {
    for name in base_bdevs {
        let io = MemberIo::open(registry, name, Box::new(|_| {}))?;
        let mut copies = Vec::new();
        for copy in 0..2 {
            copies.push(io.read(Layout::superblock_at(copy), SUPERBLOCK_BYTES as usize).await?);
        }
        if copies.iter().any(|c| Superblock::decode(c).is_ok_and(|s| s.array == array)) {
            void(&io).await?;
        }
    }
    Ok(())
}
