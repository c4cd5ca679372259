//! Where everything is: the regions of a member, the strips of a stripe, the blocks of the array.
//!
//! A member holds, in this order and without overlap: two copies of the superblock, the map (a bit per stripe), the write-intent
//! bitmap (a bit per region of stripes), the journal, and the data: one strip of each stripe. All figures are bytes unless a name
//! says otherwise, and all offsets are multiples of the array's block.

use std::fmt;

/// Most data strips of a stripe.
pub const MAX_DATA: usize = 32;
/// Most parity strips of a stripe.
pub const MAX_PARITY: usize = 8;
/// Most members of an array.
pub const MAX_MEMBERS: usize = MAX_DATA + MAX_PARITY;
/// Smallest strip.
pub const MIN_STRIP: u32 = 4096;
/// Largest strip.
pub const MAX_STRIP: u32 = 1 << 20;
/// Smallest block of a member or an array.
pub const MIN_BLOCK: u32 = 512;
/// Largest block of a member or an array: a page of the map must be whole blocks.
pub const MAX_BLOCK: u32 = 4096;
/// Bytes of a superblock copy that are used.
pub const SUPERBLOCK_BYTES: u64 = 4096;
/// Distance between the two copies of the superblock.
pub const SUPERBLOCK_SPACING: u64 = 64 << 10;
/// Bytes of one slot of a page of the map or the write-intent bitmap.
pub const PAGE_BYTES: u64 = 4096;
/// Bits that a page holds.
pub const PAGE_BITS: u64 = 4032 * 8;
/// Most pages of the map: 528 million stripes. The map is held in memory.
pub const MAX_MAP_PAGES: u64 = 16384;
/// Most pages of the write-intent bitmap.
pub const MAX_WIB_PAGES: u64 = 8;
/// Fewest and most slots of a journal: one for marks and two for transactions at least.
pub const JOURNAL_SLOTS: std::ops::RangeInclusive<u32> = 3..=4096;

const MAP_OFFSET: u64 = 2 * SUPERBLOCK_SPACING;
const JOURNAL_ALIGN: u64 = 64 << 10;
const DATA_ALIGN: u64 = 1 << 20;
const JOURNAL_TARGET: u64 = 8 << 20;

/// What [`Layout::compute`] takes other than the geometry. The default is what arrays get; tests make small ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayoutOptions {
    /// Slots of the journal; default: 8 MiB of journal, but 16 to 512 slots.
    pub journal_slots: Option<u32>,
    /// Alignment of journal and data, a power of two of at least 4 KiB; default 64 KiB and 1 MiB.
    pub alignment: Option<u64>,
    /// Least stripes of a region of the write-intent bitmap, a power of two; default: 1 MiB of a member.
    pub region_stripes: Option<u64>,
}

/// Why a geometry is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What it must be.
    pub rule: String,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.rule)
    }
}

impl std::error::Error for LayoutError {}

fn wrong<T>(field: &'static str, value: impl TryInto<u64>, rule: impl Into<String>) -> Result<T, LayoutError> {
    Err(LayoutError { field, value: value.try_into().unwrap_or(u64::MAX), rule: rule.into() })
}

/// A place in the array: a byte of a data strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The stripe.
    pub stripe: u64,
    /// The data strip, `0..k`.
    pub data: usize,
    /// Bytes into the strip.
    pub offset: u32,
}

/// What a member holds of a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strip {
    /// Data strip `0..k`.
    Data(usize),
    /// Parity strip `0..m`.
    Parity(usize),
}

/// A region of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Area {
    /// The two copies of the superblock, each with its spacing.
    Superblocks,
    /// The map.
    Map,
    /// The write-intent bitmap.
    Wib,
    /// The journal.
    Journal,
    /// The strips.
    Data,
}

/// The geometry of an array, as its superblocks store it. Valid: [`Layout::validate`] holds for every `Layout` that
/// [`Layout::compute`] or the decoding of a superblock gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Data strips of a stripe, 1 to 32.
    pub k: usize,
    /// Parity strips of a stripe, 1 to 8.
    pub m: usize,
    /// Bytes of a strip: a power of two, 4 KiB to 1 MiB.
    pub strip: u32,
    /// Bytes of a block of the array: a power of two, 512 to 4096. A record's header is one block.
    pub block: u32,
    /// Stripes of the array.
    pub stripes: u64,
    /// Slots of the journal.
    pub journal_slots: u32,
    /// A region of the write-intent bitmap is `1 << region_shift` stripes.
    pub region_shift: u32,
    /// Where the map begins.
    pub map_offset: u64,
    /// Where the write-intent bitmap begins.
    pub wib_offset: u64,
    /// Where the journal begins.
    pub journal_offset: u64,
    /// Where the strips begin: a multiple of the strip and of 4 KiB.
    pub data_offset: u64,
}

impl Layout {
    /// The layout of `k` data and `m` parity members, the smallest of which has `member_bytes`.
    ///
    /// # Errors
    ///
    /// A figure out of its range, or members too small for one stripe.
    pub fn compute(
        k: usize,
        m: usize,
        strip: u32,
        block: u32,
        member_bytes: u64,
        options: &LayoutOptions,
    ) -> Result<Layout, LayoutError> {
        let (block_u64, strip_u64) = (u64::from(block), u64::from(strip));
        let align = options.alignment.unwrap_or(JOURNAL_ALIGN);
        if !align.is_power_of_two() || align < PAGE_BYTES {
            return wrong("alignment", align, "must be a power of two of at least 4096");
        }
        let mut layout = Layout {
            k,
            m,
            strip,
            block,
            stripes: 1,
            journal_slots: options.journal_slots.unwrap_or_else(|| {
                u32::try_from((JOURNAL_TARGET / (strip_u64 + block_u64).max(1)).clamp(16, 512)).unwrap_or(512)
            }),
            region_shift: 0,
            map_offset: MAP_OFFSET,
            wib_offset: 0,
            journal_offset: 0,
            data_offset: 0,
        };
        layout.figures()?;
        let region = options.region_stripes.unwrap_or(DATA_ALIGN / strip_u64);
        if !region.is_power_of_two() {
            return wrong("region_stripes", region, "must be a power of two");
        }
        layout.region_shift = region.trailing_zeros();

        // Sized for the stripes that there would be without any of these regions: at most one page more than needed.
        let most = (member_bytes / strip_u64).max(1);
        let map_pages = most.div_ceil(PAGE_BITS);
        if map_pages > MAX_MAP_PAGES {
            let least = member_bytes.div_ceil(MAX_MAP_PAGES * PAGE_BITS).next_power_of_two() / 1024;
            let rule = format!(
                "members of {member_bytes} bytes would have more than {} stripes: strips of at least {least} KiB are needed",
                MAX_MAP_PAGES * PAGE_BITS
            );
            return wrong("strip size", strip, rule);
        }
        while (most >> layout.region_shift) + 1 > MAX_WIB_PAGES * PAGE_BITS {
            layout.region_shift += 1;
        }
        let wib_pages = ((most >> layout.region_shift) + 1).div_ceil(PAGE_BITS);
        layout.wib_offset = MAP_OFFSET + map_pages * 2 * PAGE_BYTES;
        let wib_end = layout.wib_offset + wib_pages * 2 * PAGE_BYTES;
        layout.journal_offset = wib_end.next_multiple_of(align);
        let journal_end = layout.journal_offset + u64::from(layout.journal_slots) * layout.journal_slot_bytes();
        let align = options.alignment.unwrap_or(DATA_ALIGN).max(strip_u64);
        layout.data_offset = journal_end.next_multiple_of(align);
        let room = member_bytes.saturating_sub(layout.data_offset);
        layout.stripes = room / strip_u64;
        if layout.stripes == 0 {
            let least = layout.data_offset + strip_u64;
            return wrong("smallest member's size", member_bytes, format!("at least {least} bytes are needed"));
        }
        layout.validate()?;
        Ok(layout)
    }

    /// The figures that do not depend on a size.
    fn figures(&self) -> Result<(), LayoutError> {
        if !(1..=MAX_DATA).contains(&self.k) {
            return wrong("data_chunk_count", self.k, "must be 1 to 32");
        }
        if !(1..=MAX_PARITY).contains(&self.m) {
            return wrong("parity_chunk_count", self.m, "must be 1 to 8");
        }
        if !self.strip.is_power_of_two() || !(MIN_STRIP..=MAX_STRIP).contains(&self.strip) {
            return wrong("strip size", self.strip, "must be a power of two, 4096 to 1048576 bytes");
        }
        if !self.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&self.block) {
            return wrong("block size", self.block, "must be a power of two, 512 to 4096 bytes");
        }
        if !JOURNAL_SLOTS.contains(&self.journal_slots) {
            return wrong("journal slots", self.journal_slots, "must be 3 to 4096");
        }
        if self.region_shift > 40 {
            return wrong("region shift", self.region_shift, "must be at most 40");
        }
        Ok(())
    }

    /// Whether this is a geometry: every figure in its range, regions in order, apart and aligned, sizes that can be computed with.
    ///
    /// # Errors
    ///
    /// The first figure that is wrong.
    pub fn validate(&self) -> Result<(), LayoutError> {
        self.figures()?;
        if self.stripes == 0 || self.map_pages() > MAX_MAP_PAGES {
            return wrong("stripes", self.stripes, format!("must be 1 to {}", MAX_MAP_PAGES * PAGE_BITS));
        }
        if self.wib_pages() > MAX_WIB_PAGES {
            return wrong("region shift", self.region_shift, format!("{} regions are too many", self.regions()));
        }
        // Offsets below this bound cannot overflow below: 528 million strips of 1 MiB are 2^49 bytes.
        let bound = 1u64 << 60;
        let areas = [
            ("map offset", self.map_offset, self.map_pages() * 2 * PAGE_BYTES, PAGE_BYTES, MAP_OFFSET),
            ("wib offset", self.wib_offset, self.wib_pages() * 2 * PAGE_BYTES, PAGE_BYTES, 0),
            (
                "journal offset",
                self.journal_offset,
                u64::from(self.journal_slots) * self.journal_slot_bytes(),
                PAGE_BYTES,
                0,
            ),
            ("data offset", self.data_offset, 0, PAGE_BYTES.max(u64::from(self.strip)), 0),
        ];
        let mut end = 0;
        for (name, offset, bytes, align, least) in areas {
            if offset < end.max(least) || offset > bound {
                return wrong(name, offset, format!("must be {} to {bound}", end.max(least)));
            }
            if !offset.is_multiple_of(align) {
                return wrong(name, offset, format!("must be a multiple of {align}"));
            }
            end = offset + bytes;
        }
        Ok(())
    }

    /// Members: data and parity strips of a stripe.
    pub fn n(&self) -> usize {
        self.k + self.m
    }

    /// Bytes of a member that the array uses, from its start. A member must have at least as many.
    pub fn member_bytes(&self) -> u64 {
        self.data_offset + self.stripes * u64::from(self.strip)
    }

    /// Bytes of data in a stripe.
    pub fn stripe_bytes(&self) -> u64 {
        self.k as u64 * u64::from(self.strip)
    }

    /// Blocks of data in a stripe.
    pub fn stripe_blocks(&self) -> u64 {
        self.stripe_bytes() / u64::from(self.block)
    }

    /// Blocks of the array.
    pub fn num_blocks(&self) -> u64 {
        self.stripes * self.stripe_blocks()
    }

    /// Where the block `lba` of the array is. `lba` may be any number; past the end it is in a stripe past the last.
    pub fn place(&self, lba: u64) -> Place {
        let (stripe, within) = (lba / self.stripe_blocks(), lba % self.stripe_blocks());
        let blocks = u64::from(self.strip / self.block);
        Place { stripe, data: (within / blocks) as usize, offset: (within % blocks) as u32 * self.block }
    }

    /// The block that `place` lies in: the inverse of [`place`](Layout::place) at the start of a block.
    pub fn lba(&self, place: Place) -> u64 {
        place.stripe * self.stripe_blocks()
            + place.data as u64 * u64::from(self.strip / self.block)
            + u64::from(place.offset / self.block)
    }

    /// The slot of the member that holds strip `index` of `stripe`: `0..k` are the data strips, `k..n` the parity strips.
    ///
    /// Parity moves one slot down from stripe to stripe, and the data follows it, so that consecutive data strips lie on
    /// consecutive members: in stripe `s` the parity strips begin at slot `n - 1 - s mod n`, and data strip 0 follows the last of
    /// them, all counted modulo `n`.
    pub fn slot_of(&self, stripe: u64, index: usize) -> usize {
        debug_assert!(index < self.n());
        let position = if index < self.k { self.m + index } else { index - self.k };
        (self.rotation(stripe) + position) % self.n()
    }

    /// The strip index, as [`slot_of`](Layout::slot_of) counts, that the member in `slot` holds of `stripe`.
    pub fn index_at(&self, stripe: u64, slot: usize) -> usize {
        debug_assert!(slot < self.n());
        let position = (slot + self.n() - self.rotation(stripe)) % self.n();
        if position < self.m { self.k + position } else { position - self.m }
    }

    /// What the member in `slot` holds of `stripe`.
    pub fn strip_at(&self, stripe: u64, slot: usize) -> Strip {
        match self.index_at(stripe, slot) {
            data if data < self.k => Strip::Data(data),
            parity => Strip::Parity(parity - self.k),
        }
    }

    /// The slot where the parity strips of `stripe` begin.
    fn rotation(&self, stripe: u64) -> usize {
        self.n() - 1 - (stripe % self.n() as u64) as usize
    }

    /// Where copy 0 or 1 of the superblock is.
    pub fn superblock_at(copy: u64) -> u64 {
        debug_assert!(copy < 2);
        copy * SUPERBLOCK_SPACING
    }

    /// Where slot `side` (0 or 1) of page `page` of the map is.
    pub fn map_page_at(&self, page: u64, side: u64) -> u64 {
        debug_assert!(page < self.map_pages() && side < 2);
        self.map_offset + (2 * page + side) * PAGE_BYTES
    }

    /// Where slot `side` (0 or 1) of page `page` of the write-intent bitmap is.
    pub fn wib_page_at(&self, page: u64, side: u64) -> u64 {
        debug_assert!(page < self.wib_pages() && side < 2);
        self.wib_offset + (2 * page + side) * PAGE_BYTES
    }

    /// Where the record in journal slot `index` is: its header, one block, and then its payload.
    pub fn journal_at(&self, index: u32) -> u64 {
        debug_assert!(index < self.journal_slots);
        self.journal_offset + u64::from(index) * self.journal_slot_bytes()
    }

    /// Bytes of a journal slot: a header and a strip.
    pub fn journal_slot_bytes(&self) -> u64 {
        u64::from(self.block) + u64::from(self.strip)
    }

    /// Where the strip of `stripe` is on every member.
    pub fn strip_offset(&self, stripe: u64) -> u64 {
        debug_assert!(stripe < self.stripes);
        self.data_offset + stripe * u64::from(self.strip)
    }

    /// Pages of the map.
    pub fn map_pages(&self) -> u64 {
        self.stripes.div_ceil(PAGE_BITS)
    }

    /// Pages of the write-intent bitmap.
    pub fn wib_pages(&self) -> u64 {
        self.regions().div_ceil(PAGE_BITS)
    }

    /// Regions of the write-intent bitmap.
    pub fn regions(&self) -> u64 {
        ((self.stripes.max(1) - 1) >> self.region_shift) + 1
    }

    /// The region of `stripe`.
    pub fn region_of(&self, stripe: u64) -> u64 {
        stripe >> self.region_shift
    }

    /// The stripes of `region`.
    pub fn region_stripes(&self, region: u64) -> std::ops::Range<u64> {
        let start = region << self.region_shift;
        start..(start + (1 << self.region_shift)).min(self.stripes)
    }

    /// The region of a member that `offset` lies in; `None` between two and past the last.
    pub fn area_at(&self, offset: u64) -> Option<Area> {
        let areas = [
            (Area::Superblocks, 0, MAP_OFFSET),
            (Area::Map, self.map_offset, self.map_pages() * 2 * PAGE_BYTES),
            (Area::Wib, self.wib_offset, self.wib_pages() * 2 * PAGE_BYTES),
            (Area::Journal, self.journal_offset, u64::from(self.journal_slots) * self.journal_slot_bytes()),
            (Area::Data, self.data_offset, self.stripes * u64::from(self.strip)),
        ];
        areas.into_iter().find(|(_, start, bytes)| (*start..start + bytes).contains(&offset)).map(|(area, ..)| area)
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
