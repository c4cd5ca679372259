use super::*;
use std::collections::HashSet;

fn small(k: usize, m: usize) -> Layout {
    let options = LayoutOptions { journal_slots: Some(4), alignment: Some(4096), region_stripes: Some(4) };
    Layout::compute(k, m, 4096, 512, 1 << 20, &options).unwrap()
}

#[test]
fn in_every_stripe_every_member_holds_one_strip_and_both_directions_agree() {
    for k in 1..=MAX_DATA {
        for m in 1..=MAX_PARITY {
            let l = Layout { k, m, ..small(2, 1) };
            for stripe in (0..2 * l.n() as u64 + 1).chain([u64::MAX, u64::MAX / 3]) {
                let mut seen = HashSet::new();
                for index in 0..l.n() {
                    let slot = l.slot_of(stripe, index);
                    assert!(slot < l.n() && seen.insert(slot));
                    assert_eq!(l.index_at(stripe, slot), index);
                    let strip = if index < k { Strip::Data(index) } else { Strip::Parity(index - k) };
                    assert_eq!(l.strip_at(stripe, slot), strip);
                }
            }
        }
    }
}

#[test]
fn over_n_stripes_every_member_holds_every_strip_once() {
    let l = small(4, 2);
    for slot in 0..l.n() {
        let held: HashSet<usize> = (0..l.n() as u64).map(|stripe| l.index_at(stripe, slot)).collect();
        assert_eq!(held.len(), l.n());
    }
}

#[test]
fn consecutive_data_strips_lie_on_consecutive_members_across_stripes_too() {
    let l = small(3, 2);
    assert_eq!([0, 1, 2].map(|d| l.slot_of(0, d)), [1, 2, 3]);
    assert_eq!([3, 4].map(|p| l.slot_of(0, p)), [4, 0], "parity of stripe 0");
    assert_eq!([3, 4].map(|p| l.slot_of(1, p)), [3, 4], "parity of stripe 1");
    assert_eq!([0, 1, 2].map(|d| l.slot_of(1, d)), [0, 1, 2]);
}

#[test]
fn every_block_has_one_place_and_every_place_one_block() {
    let l = small(3, 1);
    let mut last = None;
    for lba in 0..l.num_blocks() {
        let place = l.place(lba);
        assert!(place.stripe < l.stripes && place.data < l.k && place.offset + l.block <= l.strip);
        assert_eq!(l.lba(place), lba);
        let key = (place.stripe, place.data, place.offset);
        assert!(last < Some(key), "places ascend with blocks");
        last = Some(key);
    }
    assert_eq!(l.place(l.num_blocks()).stripe, l.stripes);
}

#[test]
fn for_any_geometry_the_regions_lie_in_order_apart_aligned_and_within_the_smallest_member() {
    let mut seed = 7u64;
    let mut next = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut computed = 0;
    for _ in 0..20_000 {
        let (k, m) = (1 + next(32) as usize, 1 + next(8) as usize);
        let (strip, block) = (4096u32 << next(9), 512u32 << next(4));
        let bytes = (1u64 << (18 + next(28))) + next(1 << 20) * 512;
        let options = LayoutOptions {
            journal_slots: (next(2) == 0).then(|| 3 + next(600) as u32),
            alignment: (next(2) == 0).then(|| 4096 << next(9)),
            region_stripes: (next(2) == 0).then(|| 1 << next(12)),
        };
        let Ok(l) = Layout::compute(k, m, strip, block, bytes, &options) else { continue };
        computed += 1;
        assert_eq!(l.validate(), Ok(()));
        assert!(l.member_bytes() <= bytes && bytes - l.member_bytes() < u64::from(strip));
        let last_map = l.map_page_at(l.map_pages() - 1, 1) + PAGE_BYTES;
        let last_wib = l.wib_page_at(l.wib_pages() - 1, 1) + PAGE_BYTES;
        let last_record = l.journal_at(l.journal_slots - 1) + l.journal_slot_bytes();
        assert!(l.map_offset >= Layout::superblock_at(1) + SUPERBLOCK_BYTES);
        assert!(last_map <= l.wib_offset && last_wib <= l.journal_offset && last_record <= l.data_offset);
        assert!(l.map_pages() * PAGE_BITS >= l.stripes && l.wib_pages() <= MAX_WIB_PAGES);
        assert_eq!(l.region_of(l.stripes - 1) + 1, l.regions());
        assert_eq!(l.region_stripes(l.regions() - 1).end, l.stripes);
        for offset in [l.journal_at(1), l.strip_offset(l.stripes - 1), l.map_page_at(0, 1), l.wib_page_at(0, 1)] {
            assert!(offset.is_multiple_of(u64::from(block)));
        }
        assert_eq!(l.area_at(l.journal_at(1)), Some(Area::Journal));
        assert_eq!(l.area_at(l.strip_offset(l.stripes - 1)), Some(Area::Data));
        assert_eq!(l.area_at(l.member_bytes()), None);
    }
    assert!(computed > 10_000, "{computed}");
}

#[test]
fn the_default_journal_is_eight_mebibytes_and_the_data_begins_at_a_whole_mebibyte() {
    let l = Layout::compute(4, 2, 64 << 10, 4096, 10 << 30, &LayoutOptions::default()).unwrap();
    assert_eq!((l.journal_slots, l.data_offset, l.region_shift), (120, 9 << 20, 4));
    assert_eq!(l.num_blocks() * 4096, 4 * (l.stripes << 16));
}

#[test]
fn what_is_no_geometry_is_refused_with_field_and_value() {
    let refuse = |k, m, strip, block, bytes| {
        Layout::compute(k, m, strip, block, bytes, &LayoutOptions::default()).unwrap_err().to_string()
    };
    let tib = 1 << 40;
    assert_eq!(refuse(0, 1, 4096, 512, tib), "data_chunk_count is 0: must be 1 to 32");
    assert_eq!(refuse(33, 1, 4096, 512, tib), "data_chunk_count is 33: must be 1 to 32");
    assert_eq!(refuse(1, 9, 4096, 512, tib), "parity_chunk_count is 9: must be 1 to 8");
    assert_eq!(refuse(1, 1, 5000, 512, tib), "strip size is 5000: must be a power of two, 4096 to 1048576 bytes");
    assert_eq!(refuse(1, 1, 2 << 20, 512, tib).split(':').next(), Some("strip size is 2097152"));
    assert_eq!(refuse(1, 1, 4096, 520, tib), "block size is 520: must be a power of two, 512 to 4096 bytes");
    assert_eq!(
        refuse(1, 1, 4096, 512, 1 << 20),
        "smallest member's size is 1048576: at least 3149824 bytes are needed"
    );
    assert!(refuse(1, 1, 4096, 512, 100 * tib).ends_with("strips of at least 256 KiB are needed"));
    Layout::compute(1, 1, 256 << 10, 512, 100 * tib, &LayoutOptions::default()).unwrap();
}

#[test]
fn hostile_figures_are_refused_without_overflow() {
    let good = small(2, 1);
    let figures = [0, 1, 511, u64::MAX, u64::MAX - 4095, 1 << 63, (1 << 60) + 4096];
    for value in figures {
        assert!(Layout { map_offset: value, ..good }.validate().is_err());
        assert!(Layout { wib_offset: value, ..good }.validate().is_err());
        assert!(Layout { journal_offset: value, ..good }.validate().is_err());
        assert!(Layout { data_offset: value, ..good }.validate().is_err());
        let stripes = Layout { stripes: value, ..good };
        assert!(stripes.validate().is_err() || stripes.member_bytes() > 0);
    }
    assert!(Layout { region_shift: 64, ..good }.validate().is_err());
    assert!(Layout { journal_slots: u32::MAX, ..good }.validate().is_err());
    assert!(Layout { k: usize::MAX, ..good }.validate().is_err());
}
