//! How the tweak of a data unit follows from the number of its block.

/// The modes that SPDK names. Numbers are little-endian in the 16 bytes of the tweak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TweakMode {
    /// A block is one data unit; its tweak is its number. Linux' `plain64`.
    #[default]
    SimpleLba,
    /// A block is one data unit; the low half of its tweak is its number, the high half the complement of that with the highest bit 0.
    JoinNegLbaWithLba,
    /// A block is as many data units of 512 bytes as it holds; the tweak is the number that the unit would have if all blocks were
    /// of 512 bytes.
    Incr512FullLba,
    /// As that, with the low 64 bits of the number in the high half of the tweak, and the low half 0.
    Incr512UpperLba,
}

impl TweakMode {
    /// All of them.
    pub const ALL: [TweakMode; 4] =
        [TweakMode::SimpleLba, TweakMode::JoinNegLbaWithLba, TweakMode::Incr512FullLba, TweakMode::Incr512UpperLba];

    /// Name, as RPC clients know it.
    pub fn name(self) -> &'static str {
        match self {
            TweakMode::SimpleLba => "SIMPLE_LBA",
            TweakMode::JoinNegLbaWithLba => "JOIN_NEG_LBA_WITH_LBA",
            TweakMode::Incr512FullLba => "INCR_512_FULL_LBA",
            TweakMode::Incr512UpperLba => "INCR_512_UPPER_LBA",
        }
    }

    /// The mode of that name.
    pub fn by_name(name: &str) -> Option<TweakMode> {
        TweakMode::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Bytes of one data unit, for blocks of `block` bytes.
    pub fn unit(self, block: usize) -> usize {
        match self {
            TweakMode::SimpleLba | TweakMode::JoinNegLbaWithLba => block,
            TweakMode::Incr512FullLba | TweakMode::Incr512UpperLba => 512,
        }
    }

    /// The tweak of a data unit: the one `index` of those of block `lba`, each block having `units`.
    #[inline]
    pub(super) fn tweak(self, lba: u64, units: u64, index: u64) -> [u8; 16] {
        let number = u128::from(lba) * u128::from(units) + u128::from(index);
        match self {
            TweakMode::SimpleLba | TweakMode::Incr512FullLba => number,
            TweakMode::JoinNegLbaWithLba => u128::from(!lba & !(1 << 63)) << 64 | u128::from(lba),
            TweakMode::Incr512UpperLba => number << 64,
        }
        .to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tweak(mode: TweakMode, lba: u64, block: usize, index: u64) -> u128 {
        u128::from_le_bytes(mode.tweak(lba, (block / mode.unit(block)) as u64, index))
    }

    #[test]
    fn tweaks_are_those_of_spdk() {
        assert_eq!(tweak(TweakMode::SimpleLba, u64::MAX, 4096, 0), u128::from(u64::MAX));
        assert_eq!(tweak(TweakMode::JoinNegLbaWithLba, 5, 4096, 0), (0x7fff_ffff_ffff_fffa << 64) | 5);
        assert_eq!(tweak(TweakMode::JoinNegLbaWithLba, 1 << 63, 512, 0), (0x7fff_ffff_ffff_ffff << 64) | (1 << 63));
        assert_eq!(tweak(TweakMode::Incr512FullLba, 3, 4096, 7), 31);
        assert_eq!(tweak(TweakMode::Incr512FullLba, 1 << 62, 4096, 1), (1 << 65) | 1);
        assert_eq!(tweak(TweakMode::Incr512UpperLba, 3, 4096, 7), 31 << 64);
        assert_eq!(tweak(TweakMode::Incr512UpperLba, 9, 512, 0), 9 << 64);
    }

    #[test]
    fn names_lead_to_modes() {
        for mode in TweakMode::ALL {
            assert_eq!(TweakMode::by_name(mode.name()), Some(mode));
        }
        assert_eq!(TweakMode::by_name("simple_lba"), None);
    }
}
