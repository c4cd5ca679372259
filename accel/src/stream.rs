//! Copies that leave the cache to others: into memory that is not in the cache, a processor reads each line before it writes to it, and
//! throws out another one that is still needed, unless it is told not to.
#![allow(unsafe_code)]

/// Bytes that are written at a time.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Copies `from` to `to`, which are of one length, past the cache: for what is large and is not read again soon. Where there are no
/// instructions for it, it is a plain copy. Other threads see it as they see a plain copy.
#[cfg(target_arch = "x86_64")]
pub fn copy_past_cache(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    assert_eq!(to.len(), from.len());
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    to[..head].copy_from_slice(&from[..head]);
    let (lines, tail) = to[head..].as_chunks_mut::<LINE>();
    let (sources, end) = from[head..].as_chunks::<LINE>();
    for (line, source) in lines.iter_mut().zip(sources) {
        let (line, source) = (line.as_mut_ptr().cast::<__m128i>(), source.as_ptr().cast::<__m128i>());
        for i in 0..LINE / size_of::<__m128i>() {
            // SAFETY: both lie within their 64 bytes, and `line` is at a multiple of 64: `head` bytes came before it. Every processor has SSE2.
            unsafe { _mm_stream_si128(line.add(i), _mm_loadu_si128(source.add(i))) };
        }
    }
    tail.copy_from_slice(end);
    // SAFETY: every processor has SSE. These stores are ordered before nothing else than this: whoever sees the lock given back sees them, too.
    unsafe { _mm_sfence() };
}

/// Copies `from` to `to`, which are of one length: a plain copy on this processor.
#[cfg(not(target_arch = "x86_64"))]
pub fn copy_past_cache(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_no_other_is_copied_wherever_it_lies() {
        let from: Vec<u8> = (0..1000u32).map(|i| (i * 7 + 1) as u8).collect();
        for start in 0..70 {
            for len in (0..140).chain([500, 512, 900]) {
                let mut to = vec![0xEE; 1000];
                copy_past_cache(&mut to[start..start + len], &from[70 - start..][..len]);
                let right = |(i, b): (usize, &u8)| {
                    *b == if (start..start + len).contains(&i) { from[70 - start + i - start] } else { 0xEE }
                };
                assert!(to.iter().enumerate().all(right), "{len} bytes at {start}");
            }
        }
    }
}
