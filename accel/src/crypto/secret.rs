//! Memory for key material: never in a core dump, not swapped where the limits allow, and wiped before it is given back.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};
use zeroize::Zeroize;

/// A few bytes that nobody else is to see. They have pages of their own.
pub struct Secret {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, and is written to only when the value is made and dropped.
unsafe impl Send for Secret {}
// SAFETY: as above.
unsafe impl Sync for Secret {}

impl Secret {
    /// A copy of `bytes`, which the caller wipes.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new(bytes: &[u8]) -> io::Result<Secret> {
        let len = bytes.len().max(1);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let ptr = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        hide(ptr.cast(), len);
        let ptr = NonNull::new(ptr.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the mapping is at least `len` bytes, and nobody else knows of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr.as_ptr(), bytes.len()) };
        Ok(Secret { ptr, len: bytes.len() })
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        // SAFETY: the mapping holds `len` bytes until this value is dropped.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: as in `expose`, and nobody borrows what is dropped.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }.zeroize();
        // SAFETY: the mapping that `new` made; unlocked by being unmapped.
        let _ = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len.max(1)) };
    }
}

/// Shows nothing.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Keeps the pages that hold `len` bytes at `ptr` out of core dumps and, as far as the limit on locked memory allows, out of swap.
/// What else lies on them is kept out too, for good.
pub(super) fn hide(ptr: *mut std::ffi::c_void, len: usize) {
    let page = rustix::param::page_size();
    let start = ptr as usize & !(page - 1);
    let bytes = (ptr as usize + len - start).next_multiple_of(page);
    let first = ptr.wrapping_byte_sub(ptr as usize - start);
    // SAFETY: neither call reads or changes memory; a range that is not mapped is an error, and both are best effort.
    unsafe {
        let _ = rustix::mm::madvise(first, bytes, Advice::LinuxDontDump);
        let _ = rustix::mm::mlock(first, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry of `/proc/self/smaps` for the mapping that holds `at`.
    fn flags_of(at: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&at);
            }
            if inside && line.starts_with("VmFlags:") {
                return line.to_owned();
            }
        }
        panic!("no mapping holds {at:#x}");
    }

    #[test]
    fn key_material_lies_on_pages_that_are_not_dumped() {
        let secret = Secret::new(&[7; 64]).unwrap();
        assert_eq!(secret.expose(), [7; 64]);
        let flags = flags_of(secret.expose().as_ptr() as usize);
        assert!(flags.split(' ').any(|flag| flag == "dd"), "no 'dd' (do not dump) in {flags}");
        assert_eq!(format!("{secret:?}"), "Secret");
    }
}
