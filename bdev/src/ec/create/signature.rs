//! What is on a device that somebody might miss: [`recognise`].

/// Bytes at the start of a device that are looked at.
pub const HEAD_BYTES: usize = 256 << 10;
/// Bytes at its end that are looked at.
pub const TAIL_BYTES: usize = 128 << 10;

/// A magic number, and what it says.
struct Magic {
    at: usize,
    bytes: &'static [u8],
    what: &'static str,
}

const fn magic(at: usize, bytes: &'static [u8], what: &'static str) -> Magic {
    Magic { at, bytes, what }
}

/// Longer or rarer numbers first: a GPT comes with an MBR, and an MBR's two bytes end many boot sectors.
const MAGICS: &[Magic] = &[
    magic(0, b"LSEC-SB\0", "a member of an erasure-coded array"),
    magic(64 << 10, b"LSEC-SB\0", "a member of an erasure-coded array"),
    magic(512, b"EFI PART", "a GPT partition table"),
    magic(4096, b"EFI PART", "a GPT partition table"),
    magic(0, b"LUKS\xba\xbe", "a LUKS header"),
    magic(16 << 10, b"SKUL\xba\xbe", "a LUKS header"),
    magic(0, b"XFSB", "an XFS file system"),
    magic((64 << 10) + 64, b"_BHRfS_M", "a Btrfs file system"),
    magic(0, b"LABELONE", "an LVM physical volume"),
    magic(512, b"LABELONE", "an LVM physical volume"),
    magic(1024, b"LABELONE", "an LVM physical volume"),
    magic(1536, b"LABELONE", "an LVM physical volume"),
    magic(0, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    magic(4096, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    magic(4086, b"SWAPSPACE2", "swap space"),
    magic(4086, b"SWAP-SPACE", "swap space"),
    magic(16374, b"SWAPSPACE2", "swap space"),
    magic(65526, b"SWAPSPACE2", "swap space"),
    magic(0, b"SPDKBLOB", "an SPDK blobstore"),
    magic(0, b"SPDKRAID", "a member of an SPDK RAID"),
    magic(0, b"bluestore block device", "a Ceph BlueStore"),
    magic(1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    magic(4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"),
    magic(0, b"hsqs", "a SquashFS file system"),
    magic(32769, b"CD001", "an ISO 9660 file system"),
    magic(3, b"NTFS    ", "an NTFS file system"),
    magic(3, b"EXFAT   ", "an exFAT file system"),
];

/// ext2, ext3 and ext4 share a number at byte 1080; features tell them apart.
fn ext(head: &[u8]) -> Option<&'static str> {
    let superblock = head.get(1024..2048)?;
    if superblock[56..58] != [0x53, 0xef] {
        return None;
    }
    let (has_journal, extents) = (superblock[92] & 4 != 0, superblock[96] & 0x40 != 0);
    Some(match (has_journal, extents) {
        (_, true) => "an ext4 file system",
        (true, false) => "an ext3 file system",
        (false, false) => "an ext2 file system",
    })
}

/// The first label of a ZFS device has a ring of uberblocks in its second half.
fn zfs(head: &[u8]) -> bool {
    let ring = head.get(128 << 10..256 << 10).unwrap_or_default();
    let number = 0x00ba_b10c_u64;
    ring.chunks_exact(1024).any(|u| u.starts_with(&number.to_le_bytes()) || u.starts_with(&number.to_be_bytes()))
}

/// What is found at the end of a device of `bytes`.
fn at_the_end(tail: &[u8], bytes: u64) -> Option<&'static str> {
    let from_end = |back: u64| tail.get(tail.len().checked_sub(usize::try_from(back).ok()?)?..);
    for block in [512, 4096] {
        if from_end(block)?.starts_with(b"EFI PART") {
            return Some("the backup of a GPT partition table");
        }
    }
    // md 1.0: 8 to 12 KiB before the end, at a multiple of 4 KiB. md 0.90: the last whole 64 KiB but one, in the machine's order.
    let v1 = bytes - ((bytes / 512).saturating_sub(16) & !7) * 512;
    let v0 = bytes - ((bytes & !0xffff).saturating_sub(64 << 10));
    for (back, number) in
        [(v1, 0xa92b_4efc_u32.to_le_bytes()), (v0, 0xa92b_4efc_u32.to_le_bytes()), (v0, 0xa92b_4efc_u32.to_be_bytes())]
    {
        if from_end(back).is_some_and(|at| at.starts_with(&number)) {
            return Some("a member of an md array");
        }
    }
    None
}

/// What the first [`HEAD_BYTES`] and the last [`TAIL_BYTES`] of a device of `bytes` are known to be; fewer where it is smaller.
pub fn recognise(head: &[u8], tail: &[u8], bytes: u64) -> Option<&'static str> {
    let known = MAGICS.iter().find(|m| head.get(m.at..).is_some_and(|h| h.starts_with(m.bytes))).map(|m| m.what);
    known
        .or_else(|| ext(head))
        .or_else(|| zfs(head).then_some("a ZFS device"))
        .or_else(|| at_the_end(tail, bytes))
        .or_else(|| (head.get(510..512) == Some(&[0x55, 0xaa])).then_some("an MBR partition table or boot sector"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(put: &[(usize, &[u8])]) -> Option<&'static str> {
        let mut head = vec![0; HEAD_BYTES];
        for (at, bytes) in put {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        recognise(&head, &vec![0; TAIL_BYTES], 1 << 30)
    }

    fn at_end(bytes: u64, back: u64, number: &[u8]) -> Option<&'static str> {
        let mut tail = vec![0; TAIL_BYTES];
        let at = TAIL_BYTES - back as usize;
        tail[at..at + number.len()].copy_from_slice(number);
        recognise(&vec![0; HEAD_BYTES], &tail, bytes)
    }

    #[test]
    fn everything_that_is_known_is_recognised_by_its_number() {
        for m in MAGICS {
            assert_eq!(of(&[(m.at, m.bytes)]), Some(m.what));
        }
        assert_eq!(of(&[(1080, b"\x53\xef")]), Some("an ext2 file system"));
        assert_eq!(of(&[(1080, b"\x53\xef"), (1116, &[4])]), Some("an ext3 file system"));
        assert_eq!(of(&[(1080, b"\x53\xef"), (1116, &[4]), (1120, &[0x40])]), Some("an ext4 file system"));
        let uberblock = 0x00ba_b10c_u64.to_le_bytes();
        assert_eq!(of(&[((128 << 10) + 4096, &uberblock)]), Some("a ZFS device"));
        assert_eq!(of(&[(510, &[0x55, 0xaa])]), Some("an MBR partition table or boot sector"));
        assert_eq!(of(&[(510, &[0x55, 0xaa]), (512, b"EFI PART")]), Some("a GPT partition table"));
        assert_eq!(at_end(1 << 30, 512, b"EFI PART"), Some("the backup of a GPT partition table"));
        assert_eq!(at_end(1 << 30, 8192, &0xa92b_4efc_u32.to_le_bytes()), Some("a member of an md array"));
        assert_eq!(at_end(1 << 30, 64 << 10, &0xa92b_4efc_u32.to_le_bytes()), Some("a member of an md array"));
        assert_eq!(at_end((1 << 30) + 4096, 68 << 10, &0xa92b_4efc_u32.to_be_bytes()), Some("a member of an md array"));
    }

    #[test]
    fn zeroes_noise_and_short_devices_are_nothing_known() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(100, b"XFSB")]), None);
        for len in [0, 1, 511, 512, 4095, 4096, 70_000] {
            let bytes = vec![0; len];
            assert_eq!(recognise(&bytes, &bytes, len as u64), None);
        }
    }
}
