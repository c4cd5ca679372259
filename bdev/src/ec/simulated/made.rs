//! Arrays that are made by the code that makes them, of members that held something before, while power fails.
//!
//! What is guaranteed (`docs/ec.md`, "What making an array does not destroy"), and looked at here before each try:
//!
//! * What a crash leaves is no array, or the array: every member says in its own slot that it is one of just this array, or the members
//!   do not start. If they say so, they start, alone and when they are made once more, and everything reads zero: the oracle expects nothing else.
//! * An array whose making was told to have succeeded is there after a crash.
//! * Making it again with the same arguments succeeds. It takes `force` where a member holds something that is known, and that is not left from
//!   making just this array: then nothing is written without. A superblock of 4 KiB on blocks of 512 bytes may be torn, and what is torn cannot be
//!   told to be of this array.

use std::cell::Cell;
use std::sync::Arc;

use longshore_reactor::sim::Random;
use uuid::Uuid;

use super::stack::Array;
use crate::ec::assemble::{Decision, Situation, decide};
use crate::ec::create::{Options, Prepared, prepare};
use crate::ec::faults::{self, Window};
use crate::ec::format::{FIRST_EPOCH, FormatError, PAGE_BITS_BYTES, PageHeader, PageKind, Stamp, Superblock};
use crate::ec::layout::{Layout, LayoutOptions, PAGE_BYTES};
use crate::sim::{Content, Image, Place, World};

/// What the members hold that an array is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Zeroes,
    /// Nothing that is known.
    Noise,
    /// An array of the same UUID, with all its stripes in use: its superblocks were cleared.
    Cleared,
    /// The same on fewer members than it starts with, and not cleared.
    Remains,
    /// Another array, on all of them or some.
    Another,
}

/// How an array is made.
pub(super) struct Made {
    before: Before,
    options: LayoutOptions,
    /// The call has the UUID of the array.
    named: bool,
    /// It was told to have succeeded.
    succeeded: Cell<bool>,
    /// The array, when it is there.
    pub(super) array: Cell<Option<Uuid>>,
}

impl Made {
    /// Of some seeds: how the array is made of them.
    pub(super) fn of(seed: u64, options: LayoutOptions) -> Option<Made> {
        let mut random = Random::new(seed ^ 0x3ade);
        if random.below(4) != 0 {
            return None;
        }
        let before = [Before::Zeroes, Before::Noise, Before::Cleared, Before::Remains, Before::Another];
        let before = before[random.below(5) as usize];
        Some(Made { before, options, named: random.below(2) == 0, succeeded: Cell::default(), array: Cell::default() })
    }

    /// About how many requests each member gets.
    pub(super) const REQUESTS: u64 = 14;
}

/// Array of which members may be left.
pub(super) const ANOTHER: Uuid = Uuid::from_u128(0xf0e1);

impl Array {
    /// Writes what the members hold before the array is made.
    pub(super) fn write_before(&self, seed: u64, images: &mut [Image]) {
        let Some(made) = &self.made else { return };
        let mut random = Random::new(seed ^ 0xbef0);
        let few = match made.before {
            Before::Zeroes => return,
            Before::Remains => self.head().quorum() - 1,
            _ => 1 + random.below(images.len() as u64) as usize,
        };
        let first = random.below(images.len() as u64) as usize;
        for (slot, image) in images.iter_mut().enumerate() {
            let noise: Vec<_> = (0..image.len()).map(|_| Content::Fill(random.below(256) as u8)).collect();
            image.put(0, noise);
            if made.before == Before::Noise {
                continue;
            }
            let head = match made.before {
                Before::Another => Superblock { array: ANOTHER, name: "another".into(), ..self.head() },
                _ => self.head(),
            };
            self.write_pages(head.array, image);
            let from_first = (slot + self.layout.n() - first) % self.layout.n();
            for epoch in [8, 7] {
                let old = Superblock {
                    stamp: Stamp { epoch, nonce: 3 },
                    predecessor: Stamp { epoch: epoch - 1, nonce: 3 },
                    ..head.clone()
                };
                let mut bytes = vec![0; PAGE_BYTES as usize];
                if made.before != Before::Cleared && from_first < few {
                    old.for_slot(slot).encode(&mut bytes);
                }
                put(image, Layout::superblock_at(old.copy()), bytes);
            }
        }
    }

    /// Pages of bitmaps in which everything is set.
    fn write_pages(&self, array: Uuid, image: &mut Image) {
        let l = &self.layout;
        for side in 0..2 {
            let maps = (0..l.map_pages()).map(|p| (PageKind::Map, p, l.map_page_at(p, side)));
            let wibs = (0..l.wib_pages()).map(|p| (PageKind::Wib, p, l.wib_page_at(p, side)));
            for (kind, page, at) in maps.chain(wibs) {
                let header = PageHeader { array, kind, index: page as u32, sequence: 40 + side, generation: 0 };
                let mut bytes = vec![0; PAGE_BYTES as usize];
                header.encode(&[0xff; PAGE_BITS_BYTES], &mut bytes);
                put(image, at, bytes);
            }
        }
    }

    /// Whether the array is there, all of it. Nothing runs.
    fn is_made(&self, world: &World, made: &Made) -> Result<bool, String> {
        let n = self.layout.n();
        let found: Vec<_> = (0..n).filter_map(|slot| self.at_rest(world, slot)).collect();
        let first = found.first().map(|c| &c.superblock);
        let same = |s: &Superblock| {
            first.is_some_and(|f| (f.array, &f.name, f.created) == (s.array, &s.name, s.created))
                && s.layout == self.layout
                && s.in_sync() == n
        };
        let whole =
            found.len() == n && found.iter().enumerate().all(|(i, c)| c.superblock.slot == i && same(&c.superblock));
        match decide(&found, Situation { waited: true, salvage: false }) {
            Decision::Assemble(a) if !whole || a.members.iter().any(Option::is_none) => {
                Err(format!("an array starts that was not made: {:?}", a.head))
            }
            Decision::Assemble(a) => {
                made.array.set(Some(a.head.array));
                Ok(true)
            }
            other if whole || made.succeeded.get() => Err(format!("the array was made and is not there: {other:?}")),
            _ => Ok(false),
        }
    }

    /// Whether a member holds something known that is not left from making this array.
    fn is_of_somebody(&self, world: &World) -> bool {
        (0..self.layout.n()).any(|slot| match self.superblock_at_rest(world, slot) {
            Ok(s) => s.array == ANOTHER || s.stamp.epoch != FIRST_EPOCH,
            Err(FormatError::Blank | FormatError::Foreign { .. } | FormatError::Short { .. }) => false,
            Err(_) => true,
        })
    }

    /// Makes the array, or finds it, as a daemon is told to. `None`: it is there, and is to be found by who looks at its members.
    pub(super) async fn make(&self, place: &Place, made: &Made) -> Result<Option<Prepared>, String> {
        let there = self.is_made(&place.world, made)?;
        if there && place.world.below(2) == 0 {
            return Ok(None);
        }
        let asked = Options { layout: made.options, uuid: made.named.then(|| self.head().array), ..self.asked(false) };
        let needs_force = !there && self.is_of_somebody(&place.world);
        if needs_force {
            let held = || (0..self.layout.n()).map(|slot| format!("{:?}", self.superblock_at_rest(&place.world, slot)));
            let before: Vec<_> = held().collect();
            match prepare(&place.registry, &asked, &(Arc::new(|_, _| {}) as _)).await {
                Err(e) if !place.world.powered() || e.to_string().contains("force destroys it") => {}
                Err(e) => return Err(format!("it is refused for another reason than what members hold: {e}")),
                Ok(_) => return Err("members that hold something are taken without force".into()),
            }
            if held().ne(before) {
                return Err("what was refused has changed members".into());
            }
        }
        faults::enter(Window::Create);
        let asked = Options { force: needs_force, ..asked };
        let prepared =
            prepare(&place.registry, &asked, &(Arc::new(|_, _| {}) as _)).await.map_err(|e| e.to_string())?;
        faults::leave(Window::Create);
        if !place.world.powered() {
            return Err("power failed".into());
        }
        if prepared.fresh == there || prepared.head.layout != self.layout {
            return Err(format!("it was there: {there}, and was made: {}, {:?}", prepared.fresh, prepared.head));
        }
        made.succeeded.set(true);
        made.array.set(Some(prepared.head.array));
        Ok(Some(prepared))
    }
}

fn put(image: &mut Image, at: u64, bytes: Vec<u8>) {
    let (bs, bytes): (usize, Arc<[u8]>) = (image.block_size(), bytes.into());
    let blocks = (0..bytes.len()).step_by(bs).map(|from| Content::Data(bytes.clone(), from as u32));
    image.put(at as usize / bs, blocks);
}
