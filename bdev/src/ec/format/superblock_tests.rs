use super::*;
use crate::ec::layout::LayoutOptions;

fn superblock(epoch: u64) -> Superblock {
    let options = LayoutOptions { journal_slots: Some(4), alignment: Some(4096), region_stripes: Some(1) };
    let mut members: Vec<_> = (1..=3).map(|i| MemberEntry::in_sync(Uuid::from_u128(i))).collect();
    members[0].state = MemberState::Rebuilding;
    members[0].rebuild = Some(Rebuild { mode: RebuildMode::Wib, progress: 17 });
    members[0].failed_epoch = epoch.min(2);
    Superblock {
        features: Features { compat: 1 << 40, ..Features::default() },
        array: Uuid::from_u128(77),
        name: "vol0".into(),
        layout: Layout::compute(2, 1, 4096, 512, 1 << 20, &options).unwrap(),
        matrix: MATRIX_CAUCHY,
        stamp: Stamp { epoch, nonce: 0x1234_5678_9abc_def0 },
        predecessor: Stamp { epoch: epoch - 1, nonce: 3 },
        journal_session: 6,
        wib_generation: epoch.min(2),
        created: 1_750_000_000,
        slot: 1,
        members,
    }
}

fn bytes(s: &Superblock) -> Vec<u8> {
    let mut out = vec![0xaa; BYTES];
    s.encode(&mut out);
    out
}

/// Changes a field behind the checksum's back.
fn with(at: usize, value: &[u8]) -> Result<Superblock, FormatError> {
    let mut b = bytes(&superblock(5));
    b[at..at + value.len()].copy_from_slice(value);
    seal(&mut b);
    Superblock::decode(&b)
}

#[test]
fn a_superblock_reads_back_as_it_was_written() {
    for slot in 0..3 {
        let s = superblock(5).for_slot(slot);
        assert_eq!(Superblock::decode(&bytes(&s)), Ok(s));
    }
}

#[test]
fn the_largest_array_fits() {
    let layout = Layout::compute(32, 8, 1 << 20, 4096, 1 << 44, &LayoutOptions::default()).unwrap();
    let members = (1..=40).map(|i| MemberEntry::in_sync(Uuid::from_u128(i))).collect();
    let s = Superblock { layout, members, name: "n".repeat(63), slot: 39, ..superblock(5) };
    assert_eq!(Superblock::decode(&bytes(&s)), Ok(s));
}

#[test]
fn any_changed_byte_is_seen() {
    let good = bytes(&superblock(5));
    for at in 0..BYTES {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        let e = Superblock::decode(&bad).unwrap_err();
        let foreign = matches!(e, FormatError::Foreign { .. });
        assert!(if at < 8 { foreign } else { matches!(e, FormatError::Checksum { .. }) }, "byte {at}: {e}");
    }
}

#[test]
fn a_torn_one_falls_back_to_the_older_copy() {
    let (old, new) = (superblock(4), superblock(5));
    let (a, b) = (bytes(&old), bytes(&new));
    assert_eq!(Superblock::select([&a, &b]), Ok(new));
    let mut torn = b.clone();
    torn[128..512].fill(0);
    assert_eq!(Superblock::select([&a, &torn]), Ok(old.clone()));
    assert_eq!(Superblock::select([&a, &[0; BYTES]]), Ok(old));
    let e = Superblock::select([&[0; BYTES], &torn]).unwrap_err();
    assert!(e.to_string().starts_with("torn or damaged: checksum "), "{e}");
    assert_eq!(Superblock::select([&[0; BYTES], &[0; BYTES]]), Err(FormatError::Blank));
    assert!(matches!(
        Superblock::select([&[7; BYTES], &[0; BYTES]]),
        Err(FormatError::Foreign { .. } | FormatError::Blank)
    ));
}

#[test]
fn one_in_the_other_copys_place_is_not_believed() {
    let (a, b) = (bytes(&superblock(4)), bytes(&superblock(5)));
    let e = Superblock::select([&b, &a]).unwrap_err();
    assert_eq!(e.to_string(), "superblock copy is 1, not 0");
    let other = bytes(&Superblock { array: Uuid::from_u128(78), ..superblock(5) });
    assert!(Superblock::select([&a, &other]).unwrap_err().to_string().starts_with("array of superblock copy 1 is "));
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_the_older_copy_beside_it_is_not_taken_instead() {
    let old = bytes(&superblock(4));
    let newer = |at: usize, value: u8| {
        let mut b = bytes(&superblock(5));
        b[at] = value;
        seal(&mut b);
        Superblock::select([&old, &b]).unwrap_err().to_string()
    };
    assert_eq!(newer(8, 2), "format version 2: this build knows version 1 only");
    assert_eq!(newer(8, 0), "format version 0: this build knows version 1 only");
    assert_eq!(newer(32, 0b101), "needs features that this build lacks: bit 0, bit 2");
    assert_eq!(newer(31, 0x80), "may only be read, because this build lacks features: bit 63");
}

#[test]
fn fields_that_cannot_be_are_refused_by_name() {
    let says = |at, value: &[u8]| with(at, value).unwrap_err().to_string();
    assert_eq!(says(72, &[33, 0]), "data_chunk_count is 33: must be 1 to 32");
    assert_eq!(says(74, &[0, 0]), "parity_chunk_count is 0: must be 1 to 8");
    assert_eq!(says(76, &[2]), "matrix is 2: must be 1 (Cauchy)");
    assert_eq!(says(78, &[3]), "member slot is 3: must be below 3");
    assert_eq!(says(56, &[9]).split(' ').next(), Some("member"));
    assert_eq!(says(80, &[1]), "strip size is 4097: must be a power of two, 4096 to 1048576 bytes");
    assert!(says(96, &[0xff; 8]).starts_with("stripes is 18446744073709551615: must be 1 to "));
    assert!(says(128, &[0xff; 8]).starts_with("data offset is 18446744073709551615: must be "));
    let beyond = "epoch is 2305843009213693953: must be 1 to 2305843009213693952, where no array gets to by itself";
    assert_eq!(says(136, &(MAX_EPOCH + 1).to_le_bytes()), beyond);
    assert!(with(136, &MAX_EPOCH.to_le_bytes()).is_ok());
    assert_eq!(says(152, &[5]), "predecessor's epoch is 5: must be below 5");
    assert_eq!(says(176, &[6]), "wib generation is 6: must be at most 5");
    assert_eq!(says(NAME_AT, &[0]), "name length is 0: must be 1 to 63 bytes, none of them zero");
    assert_eq!(says(NAME_AT + 1, &[0xff]), "name is 1: bytes of it are UTF-8, and then no more");
    assert_eq!(says(TABLE_AT + 16, &[5]), "member state is 5: must be 1 to 4");
    assert_eq!(says(TABLE_AT + 20, &[3]), "rebuild mode is 3: must be 0 to 2");
    assert_eq!(says(TABLE_AT + 20, &[0]), "rebuild of slot is 0: a member has one if it is being filled");
    assert!(says(TABLE_AT + 32, &[0xff; 8]).starts_with("rebuild progress is 18446744073709551615: must be at most "));
    assert_eq!(says(TABLE_AT + 24, &[6]), "failed epoch is 6: must be at most 5");
    let twin = Uuid::from_u128(3);
    assert_eq!(says(TABLE_AT, twin.as_bytes()), "member's UUID in slot is 2: is that of another slot, too");
}

#[test]
fn bytes_of_any_kind_never_panic() {
    let good = bytes(&superblock(5));
    let mut seed = 1u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    let mut taken = 0;
    for round in 0..100_000 {
        let mut b = good.clone();
        for _ in 0..1 + next() % 3 {
            let at = next() % 448;
            b[at] = next() as u8;
        }
        if round % 8 != 0 {
            seal(&mut b);
        }
        if let Ok(s) = Superblock::decode(&b) {
            taken += 1;
            assert_eq!(s.validate(), Ok(()));
            assert!(s.layout.member_bytes() > 0 && s.layout.num_blocks() > 0);
            assert_eq!(Superblock::decode(&bytes(&s)), Ok(s));
        }
    }
    assert!(taken > 100, "{taken}: the changes never get past the checksum");
    for length in [0, 1, 8, 4095] {
        assert!(matches!(Superblock::decode(&good[..length]), Err(FormatError::Short { .. })));
    }
}

#[test]
fn the_quorum_is_k_or_more_than_half() {
    assert_eq!(quorum(4, 2), 4);
    assert_eq!(quorum(2, 2), 3);
    assert_eq!(quorum(1, 1), 2);
    assert_eq!(quorum(1, 2), 2);
    assert_eq!(quorum(2, 3), 3);
    assert_eq!(quorum(3, 2), 3);
}
