//! Address space of a pool, and the memory that is put into it chunk by chunk.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

use super::CHUNK;

/// `MAP_HUGE_2MB`: log2 of the page size in the bits above `MAP_HUGE_SHIFT`.
const HUGE_2MB: libc::c_int = 21 << 26;

/// Address space for `chunks` chunks, aligned to a chunk, inaccessible.
pub(super) fn reserve(chunks: usize) -> io::Result<NonNull<u8>> {
    let len = (chunks + 1) * CHUNK;
    // SAFETY: a fresh inaccessible mapping, placed by the kernel.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = p as usize;
    let aligned = start.next_multiple_of(CHUNK);
    // SAFETY: the parts before and after the aligned range, of the mapping just made.
    unsafe {
        if aligned > start {
            libc::munmap(p, aligned - start);
        }
        libc::munmap((aligned + chunks * CHUNK) as *mut _, start + CHUNK - aligned);
    }
    NonNull::new(p.cast::<u8>().wrapping_add(aligned - start)).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Unmaps what [`reserve`] mapped.
///
/// # Safety
/// `base` came from `reserve(chunks)`, nobody uses the memory any more, and this is the only call for it.
pub(super) unsafe fn give_back(base: NonNull<u8>, chunks: usize) {
    // SAFETY: the caller's.
    unsafe { libc::munmap(base.as_ptr().cast(), chunks * CHUNK) };
}

/// Makes a reserved chunk usable. Says whether it lies on an explicit huge page.
///
/// # Safety
/// `addr` is that of a chunk of a reservation, which nobody uses yet.
pub(super) unsafe fn commit(addr: *mut u8, huge: bool, transparent: bool) -> io::Result<bool> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    if huge && let Some(p) = huge_page() {
        // SAFETY: moves the page just mapped over the chunk, which is the caller's to replace; on failure both stay as they were,
        // and the page is given back.
        unsafe {
            if libc::mremap(p, CHUNK, CHUNK, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, addr) != libc::MAP_FAILED {
                return Ok(true);
            }
            libc::munmap(p, CHUNK);
        }
    }
    // SAFETY: replaces the chunk, as the caller allows.
    let p = unsafe { libc::mmap(addr.cast(), CHUNK, prot, flags | libc::MAP_NORESERVE, -1, 0) };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if transparent {
        // SAFETY: advice on a mapping of ours.
        unsafe { libc::madvise(addr.cast(), CHUNK, libc::MADV_HUGEPAGE) };
    }
    Ok(false)
}

/// One explicit huge page, placed by the kernel, if the system has a free one that this process may use.
fn huge_page() -> Option<*mut libc::c_void> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | HUGE_2MB;
    // SAFETY: a fresh anonymous mapping; it is populated, or given back.
    unsafe {
        let p = libc::mmap(std::ptr::null_mut(), CHUNK, prot, flags, -1, 0);
        if p == libc::MAP_FAILED {
            return None;
        }
        // A control group may forbid the page that was promised: the first touch would be a SIGBUS. This is an error instead.
        if libc::madvise(p, CHUNK, libc::MADV_POPULATE_WRITE) != 0 {
            libc::munmap(p, CHUNK);
            return None;
        }
        Some(p)
    }
}
