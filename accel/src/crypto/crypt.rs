//! Encrypting and decrypting runs of blocks in scattered memory.

use std::cell::RefCell;

use zeroize::Zeroizing;

use super::key::{Key, KeyError};
use super::tweak::TweakMode;
use super::xts::{Cipher, MAX_UNIT};

/// A key made ready for the blocks of one device, on one core.
pub struct Crypt {
    encrypt: Box<dyn Cipher>,
    decrypt: Box<dyn Cipher>,
    mode: TweakMode,
    /// Bytes of a data unit.
    unit: usize,
    /// Data units of a block.
    units: u64,
    /// For a unit that lies in several pieces.
    aside: RefCell<Zeroizing<Vec<u8>>>,
}

impl Crypt {
    pub(crate) fn new(
        key: &Key,
        block: usize,
        encrypt: Box<dyn Cipher>,
        decrypt: Box<dyn Cipher>,
    ) -> Result<Crypt, KeyError> {
        let mode = key.tweak();
        let unit = mode.unit(block);
        if block == 0 || !block.is_multiple_of(unit) || !unit.is_multiple_of(16) || unit > MAX_UNIT {
            return Err(KeyError::BlockSize(block, mode));
        }
        let units = (block / unit) as u64;
        Ok(Crypt { encrypt, decrypt, mode, unit, units, aside: RefCell::new(Zeroizing::new(vec![0; unit])) })
    }

    /// The tweak of data unit `i`, counted from the first of block `lba`.
    #[inline]
    fn tweak(&self, lba: u64, i: usize) -> [u8; 16] {
        let i = i as u64;
        self.mode.tweak(lba.wrapping_add(i / self.units), self.units, i % self.units)
    }

    /// Encrypts blocks from `lba` on, as many as `dst` holds, from `src`. False if `src` has less.
    pub fn encrypt<'a>(&self, lba: u64, src: impl IntoIterator<Item = &'a [u8]>, dst: &mut [u8]) -> bool {
        let mut src = src.into_iter();
        let mut piece: &[u8] = &[];
        for (i, unit) in dst.chunks_exact_mut(self.unit).enumerate() {
            let tweak = self.tweak(lba, i);
            while piece.is_empty() {
                let Some(next) = src.next() else { return false };
                piece = next;
            }
            if piece.len() >= self.unit {
                let (now, rest) = piece.split_at(self.unit);
                self.encrypt.encrypt(tweak, now, unit);
                piece = rest;
                continue;
            }
            let mut filled = 0;
            while filled < self.unit {
                if piece.is_empty() {
                    let Some(next) = src.next() else { return false };
                    piece = next;
                    continue;
                }
                let n = piece.len().min(self.unit - filled);
                unit[filled..filled + n].copy_from_slice(&piece[..n]);
                (piece, filled) = (&piece[n..], filled + n);
            }
            self.encrypt.encrypt_in_place(tweak, unit);
        }
        true
    }

    /// Decrypts the first `len` bytes of `pieces`, blocks from `lba` on, where they are. False if there is less.
    ///
    /// A data unit that lies in several pieces costs two copies; only one of more than eight costs an allocation too.
    pub fn decrypt_in_place<'a>(&self, lba: u64, pieces: impl IntoIterator<Item = &'a mut [u8]>, len: usize) -> bool {
        let mut pieces = pieces.into_iter();
        let mut piece: &mut [u8] = &mut [];
        for i in 0..len / self.unit {
            let tweak = self.tweak(lba, i);
            while piece.is_empty() {
                let Some(next) = pieces.next() else { return false };
                piece = next;
            }
            if piece.len() >= self.unit {
                let (now, rest) = piece.split_at_mut(self.unit);
                self.decrypt.decrypt_in_place(tweak, now);
                piece = rest;
                continue;
            }
            let mut aside = self.aside.borrow_mut();
            let (mut parts, mut more): ([&mut [u8]; 8], Vec<&mut [u8]>) = Default::default();
            let mut n_parts = 0;
            let mut filled = 0;
            while filled < self.unit {
                if piece.is_empty() {
                    let Some(next) = pieces.next() else { return false };
                    piece = next;
                    continue;
                }
                let n = piece.len().min(self.unit - filled);
                let (now, rest) = piece.split_at_mut(n);
                aside[filled..filled + n].copy_from_slice(now);
                match parts.get_mut(n_parts) {
                    Some(part) => *part = now,
                    None => more.push(now),
                }
                n_parts += 1;
                (piece, filled) = (rest, filled + n);
            }
            self.decrypt.decrypt_in_place(tweak, &mut aside);
            let mut from = 0;
            for part in parts.into_iter().chain(more) {
                part.copy_from_slice(&aside[from..from + part.len()]);
                from += part.len();
            }
        }
        true
    }
}
