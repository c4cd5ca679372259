//! AES-XTS by AWS-LC.
//!
//! AES-256 is the library's own XTS. It has none with AES-128: that is made here of its AES and the tweaks (IEEE 1619-2018, 5.3).
#![allow(unsafe_code)]

use std::ptr::{NonNull, null, null_mut};

use aws_lc_sys as aws;

use super::key::{Key, KeyError};
use super::secret::hide;

/// Bytes of a data unit at most: 2^20 AES blocks (IEEE 1619-2018, 5.1).
pub const MAX_UNIT: usize = 16 << 20;
/// Bytes of one AES block.
const BLOCK: usize = 16;
/// Bytes at most of what a context holds beside itself: two key schedules.
const SCHEDULES: usize = 640;

/// A key made ready on one core. A data unit is a multiple of 16 bytes, of [`MAX_UNIT`] at most.
pub trait Cipher {
    /// Encrypts one data unit from `src` to `dst`, which are of one length.
    ///
    /// # Panics
    /// The length is not one of a data unit, as in the other methods.
    fn encrypt(&self, tweak: [u8; 16], src: &[u8], dst: &mut [u8]);

    /// Encrypts one data unit where it is.
    fn encrypt_in_place(&self, tweak: [u8; 16], unit: &mut [u8]);

    /// Decrypts one data unit where it is.
    fn decrypt_in_place(&self, tweak: [u8; 16], unit: &mut [u8]);
}

/// One of the library's contexts: a key schedule for one direction.
struct Context(NonNull<aws::EVP_CIPHER_CTX>);

impl Context {
    /// `cipher` is one of the library's, `key` as long as it takes.
    fn new(cipher: *const aws::EVP_CIPHER, key: &[u8], encrypt: bool) -> Result<Context, KeyError> {
        const NO: KeyError = KeyError::Refused("the AES library refused the key, or is out of memory");
        // SAFETY: no arguments; null when out of memory.
        let context = Context(NonNull::new(unsafe { aws::EVP_CIPHER_CTX_new() }).ok_or(NO)?);
        // SAFETY: a static table of the library; it says how many bytes of key follow.
        if unsafe { aws::EVP_CIPHER_key_length(cipher) } as usize != key.len() {
            return Err(NO);
        }
        // SAFETY: context and cipher are valid, and the key is as long as the cipher reads. No engine; the tweak comes later.
        let done = unsafe {
            aws::EVP_CipherInit_ex(context.0.as_ptr(), cipher, null_mut(), key.as_ptr(), null(), i32::from(encrypt))
        };
        if done != 1 {
            return Err(NO);
        }
        // SAFETY: the context is valid; it points to its key schedules, which live as long.
        let schedules = unsafe { (*context.0.as_ptr()).cipher_data };
        hide(schedules, SCHEDULES);
        Ok(context)
    }

    /// Sets the tweak of the next data unit; for XTS.
    #[inline]
    fn tweak(&self, tweak: &[u8; 16]) {
        // SAFETY: the context has cipher and key; 16 bytes are read for the tweak; -1 keeps the direction.
        let done = unsafe { aws::EVP_CipherInit_ex(self.0.as_ptr(), null(), null_mut(), null(), tweak.as_ptr(), -1) };
        assert_eq!(done, 1, "AES-XTS takes any tweak");
    }

    /// Runs `len` bytes from `src` to `dst`.
    ///
    /// # Safety
    /// `len` bytes can be read at `src` and written at `dst`, which are the same or do not overlap; `len` is a multiple of 16.
    #[inline]
    unsafe fn run(&self, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: as promised by the caller; the cipher writes as many bytes as it reads.
        let done = unsafe { aws::EVP_Cipher(self.0.as_ptr(), dst, src, len) };
        assert_eq!(done, 1, "AES takes any multiple of 16 bytes");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `EVP_CIPHER_CTX_new`; the library wipes the key schedules.
        unsafe { aws::EVP_CIPHER_CTX_free(self.0.as_ptr()) };
    }
}

enum Kind {
    Own { encrypt: Context, decrypt: Context },
    Made { encrypt: Context, decrypt: Context, tweak: Context },
}

/// AES-XTS with keys of 128 or 256 bits, on one core.
pub struct Xts(Kind);

impl Xts {
    /// Makes the key schedules.
    ///
    /// # Errors
    /// The library refuses, or is out of memory.
    pub fn new(key: &Key) -> Result<Xts, KeyError> {
        let bytes = key.expose();
        let (data, tweak) = bytes.split_at(bytes.len() / 2);
        if key.bits() == 256 {
            // SAFETY: no arguments; a static table.
            let cipher = unsafe { aws::EVP_aes_256_xts() };
            let (encrypt, decrypt) = (Context::new(cipher, bytes, true)?, Context::new(cipher, bytes, false)?);
            return Ok(Xts(Kind::Own { encrypt, decrypt }));
        }
        // SAFETY: as above.
        let cipher = unsafe { aws::EVP_aes_128_ecb() };
        Ok(Xts(Kind::Made {
            encrypt: Context::new(cipher, data, true)?,
            decrypt: Context::new(cipher, data, false)?,
            tweak: Context::new(cipher, tweak, true)?,
        }))
    }

    /// # Safety
    /// As [`Context::run`].
    #[inline]
    unsafe fn unit(&self, decrypt: bool, tweak: [u8; 16], src: *const u8, dst: *mut u8, len: usize) {
        assert!(len.is_multiple_of(BLOCK) && (BLOCK..=MAX_UNIT).contains(&len), "a data unit of {len} bytes");
        match &self.0 {
            Kind::Own { encrypt: e, decrypt: d } => {
                let context = if decrypt { d } else { e };
                context.tweak(&tweak);
                // SAFETY: the caller's promise.
                unsafe { context.run(src, dst, len) };
            }
            Kind::Made { encrypt: e, decrypt: d, tweak: t } => {
                let context = if decrypt { d } else { e };
                let mut masks = Masks::new(t, tweak);
                let mut done = 0;
                while done < len {
                    let n = (len - done).min(Masks::BYTES);
                    masks.next();
                    // SAFETY: `n` bytes from `done` on lie within what the caller promised, at both ends.
                    unsafe {
                        let (from, to) = (src.add(done), dst.add(done));
                        masks.add(from, to, n);
                        context.run(to, to, n);
                        masks.add(to, to, n);
                    }
                    done += n;
                }
            }
        }
    }
}

impl Cipher for Xts {
    fn encrypt(&self, tweak: [u8; 16], src: &[u8], dst: &mut [u8]) {
        assert_eq!(src.len(), dst.len(), "lengths of a data unit");
        // SAFETY: both slices are of this length, and cannot overlap.
        unsafe { self.unit(false, tweak, src.as_ptr(), dst.as_mut_ptr(), dst.len()) }
    }

    fn encrypt_in_place(&self, tweak: [u8; 16], unit: &mut [u8]) {
        // SAFETY: one slice, in place.
        unsafe { self.unit(false, tweak, unit.as_ptr(), unit.as_mut_ptr(), unit.len()) }
    }

    fn decrypt_in_place(&self, tweak: [u8; 16], unit: &mut [u8]) {
        // SAFETY: one slice, in place.
        unsafe { self.unit(true, tweak, unit.as_ptr(), unit.as_mut_ptr(), unit.len()) }
    }
}

/// What is added to the blocks of a data unit before and after AES, some blocks at a time.
struct Masks {
    now: [u128; Masks::BLOCKS],
    following: u128,
}

impl Masks {
    const BLOCKS: usize = 32;
    const BYTES: usize = Masks::BLOCKS * BLOCK;

    fn new(key: &Context, mut tweak: [u8; 16]) -> Masks {
        let bytes = tweak.as_mut_ptr();
        // SAFETY: 16 bytes, in place.
        unsafe { key.run(bytes, bytes, BLOCK) };
        Masks { now: [0; Masks::BLOCKS], following: u128::from_le_bytes(tweak) }
    }

    /// Goes on to the next blocks: each mask is the one before times the primitive element of GF(2^128) (x^128 + x^7 + x^2 + x + 1).
    #[inline]
    fn next(&mut self) {
        for mask in &mut self.now {
            *mask = self.following;
            let carry = (self.following as i128 >> 127) as u128 & 0x87;
            self.following = self.following << 1 ^ carry;
        }
    }

    /// Adds the masks to `n` bytes.
    ///
    /// # Safety
    /// As [`Context::run`], for `n` bytes, at most [`Masks::BYTES`].
    #[inline]
    unsafe fn add(&self, src: *const u8, dst: *mut u8, n: usize) {
        for (i, mask) in self.now.iter().take(n / BLOCK).enumerate() {
            // SAFETY: block `i` lies within the `n` bytes.
            unsafe {
                let block = src.add(i * BLOCK).cast::<u128>().read_unaligned();
                dst.add(i * BLOCK).cast::<u128>().write_unaligned(block ^ mask.to_le());
            }
        }
    }
}
