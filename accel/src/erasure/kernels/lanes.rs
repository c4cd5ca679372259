//! The loop that all vector kernels share: many outputs at once, so that each source byte is loaded once.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // loops of constant length over several arrays, to be unrolled

use super::super::coefficients::Columns;

/// A vector of bytes and what its kernel does with it.
///
/// # Safety
/// Implementations may be run only where the processor has the instructions they use: that is what callers of each function promise, and the
/// only promise where nothing else is said. Functions that take pointers access `WIDTH` bytes, at any alignment; the `_partial` ones the first
/// `n < WIDTH`.
pub(super) unsafe trait Lanes {
    /// Bytes in a vector.
    const WIDTH: usize;
    /// A vector.
    type Vector: Copy;
    /// A vector, taken apart for multiplications.
    type Operand: Copy;
    /// A coefficient in memory.
    type Table;
    /// A coefficient in registers.
    type Factor: Copy;

    fn tables<'a>(columns: &Columns<'a>) -> &'a [Self::Table];
    unsafe fn zero() -> Self::Vector;
    unsafe fn load(from: *const u8) -> Self::Vector;
    unsafe fn store(to: *mut u8, v: Self::Vector);
    unsafe fn factor(table: &Self::Table) -> Self::Factor;
    unsafe fn operand(v: Self::Vector) -> Self::Operand;
    /// `sum + x * factor`
    unsafe fn add_product(sum: Self::Vector, x: Self::Operand, factor: Self::Factor) -> Self::Vector;
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// Zeroes behind.
    #[inline(always)]
    unsafe fn load_partial(from: *const u8, n: usize) -> Self::Vector {
        debug_assert!(n < Self::WIDTH && Self::WIDTH <= 64);
        let mut bytes = [0u8; 64];
        // SAFETY: `n` bytes may be read, and `bytes` has room for a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), n);
            Self::load(bytes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_partial(to: *mut u8, v: Self::Vector, n: usize) {
        debug_assert!(n < Self::WIDTH && Self::WIDTH <= 64);
        let mut bytes = [0u8; 64];
        // SAFETY: `bytes` has room for a vector, and `n` bytes may be written.
        unsafe {
            Self::store(bytes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n);
        }
    }
}

/// Sources times coefficients into `R` outputs, `U` vectors of each at a time.
///
/// # Safety
/// The processor has the instructions of `L`. There are `R` outputs, and as many columns of `R` coefficients as sources; all are of one length.
#[inline(always)]
pub(super) unsafe fn dot<L: Lanes, const R: usize, const U: usize>(
    columns: Columns<'_>,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    accumulate: bool,
) {
    let tables = L::tables(&columns);
    debug_assert!(outputs.len() == R && tables.len() == sources.len() * R);
    let len = outputs[0].len();
    let mut out = [std::ptr::null_mut(); R];
    for (p, o) in out.iter_mut().zip(outputs.iter_mut()) {
        *p = o.as_mut_ptr();
    }
    let mut at = 0;
    // SAFETY: every step stays below `len`, the length of each source and output; the rest is passed on.
    unsafe {
        while len - at >= U * L::WIDTH {
            step::<L, R, U>(tables, sources, &out, at, accumulate);
            at += U * L::WIDTH;
        }
        while len - at >= L::WIDTH {
            step::<L, R, 1>(tables, sources, &out, at, accumulate);
            at += L::WIDTH;
        }
        if at < len {
            last::<L, R>(tables, sources, &out, at, len - at, accumulate);
        }
    }
}

/// `U` vectors of each output.
///
/// # Safety
/// As of [`dot`], and `U` vectors can be accessed `at` bytes behind the start of each source and output.
#[inline(always)]
unsafe fn step<L: Lanes, const R: usize, const U: usize>(
    tables: &[L::Table],
    sources: &[&[u8]],
    out: &[*mut u8; R],
    at: usize,
    accumulate: bool,
) {
    // SAFETY: `u < U` vectors are accessed in each source and output. Table `j * R + i` exists for each source `j` and output `i`.
    unsafe {
        let mut sums = [[L::zero(); U]; R];
        if accumulate {
            for i in 0..R {
                for u in 0..U {
                    sums[i][u] = L::load(out[i].add(at + u * L::WIDTH));
                }
            }
        }
        let mut table = tables.as_ptr();
        for source in sources {
            let from = source.as_ptr().add(at);
            let mut x = [L::operand(L::load(from)); U];
            for u in 1..U {
                x[u] = L::operand(L::load(from.add(u * L::WIDTH)));
            }
            for i in 0..R {
                let factor = L::factor(&*table.add(i));
                for u in 0..U {
                    sums[i][u] = L::add_product(sums[i][u], x[u], factor);
                }
            }
            table = table.add(R);
        }
        for i in 0..R {
            for u in 0..U {
                L::store(out[i].add(at + u * L::WIDTH), sums[i][u]);
            }
        }
    }
}

/// The last `n` bytes of each output, less than a vector.
///
/// # Safety
/// As of [`dot`], and `n` bytes can be accessed `at` bytes behind the start of each source and output.
#[inline(always)]
unsafe fn last<L: Lanes, const R: usize>(
    tables: &[L::Table],
    sources: &[&[u8]],
    out: &[*mut u8; R],
    at: usize,
    n: usize,
    accumulate: bool,
) {
    // SAFETY: `n` bytes are accessed in each source and output.
    unsafe {
        let mut sums = [L::zero(); R];
        if accumulate {
            for i in 0..R {
                sums[i] = L::load_partial(out[i].add(at), n);
            }
        }
        for (source, tables) in sources.iter().zip(tables.chunks_exact(R)) {
            let x = L::operand(L::load_partial(source.as_ptr().add(at), n));
            for i in 0..R {
                sums[i] = L::add_product(sums[i], x, L::factor(&tables[i]));
            }
        }
        for i in 0..R {
            L::store_partial(out[i].add(at), sums[i], n);
        }
    }
}

/// Adds `src` to `dst`, which are of one length, `U` vectors at a time.
///
/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn xor<L: Lanes, const U: usize>(dst: &mut [u8], src: &[u8]) {
    debug_assert_eq!(dst.len(), src.len());
    let len = dst.len().min(src.len());
    let (d, s) = (dst.as_mut_ptr(), src.as_ptr());
    let mut at = 0;
    // SAFETY: every access stays below `len`.
    unsafe {
        while len - at >= U * L::WIDTH {
            for u in 0..U {
                let at = at + u * L::WIDTH;
                L::store(d.add(at), L::add(L::load(d.add(at)), L::load(s.add(at))));
            }
            at += U * L::WIDTH;
        }
        while len - at >= L::WIDTH {
            L::store(d.add(at), L::add(L::load(d.add(at)), L::load(s.add(at))));
            at += L::WIDTH;
        }
        let n = len - at;
        if n > 0 {
            L::store_partial(d.add(at), L::add(L::load_partial(d.add(at), n), L::load_partial(s.add(at), n)), n);
        }
    }
}

/// Makes the two entry points of a kernel: `dot` and `xor`, compiled for `$features`, with `$unroll` vectors at a time for 1 to 8 outputs.
macro_rules! entry_points {
    ($lanes:ty, $features:literal, [$($rows:literal => $unroll:literal),*]) => {
        /// See [`super::dot`], whose arguments have been checked.
        ///
        /// # Safety
        /// The processor has the features of this kernel.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn dot(
            columns: $crate::erasure::coefficients::Columns<'_>,
            sources: &[&[u8]],
            outputs: &mut [&mut [u8]],
            accumulate: bool,
        ) {
            match outputs.len() {
                $(
                    // SAFETY: the number of outputs is this one; the caller checked the other numbers and lengths.
                    $rows => unsafe { super::lanes::dot::<$lanes, $rows, $unroll>(columns, sources, outputs, accumulate) },
                )*
                n => unreachable!("{n} outputs"),
            }
        }

        /// See [`super::xor_into`], whose arguments have been checked.
        ///
        /// # Safety
        /// The processor has the features of this kernel.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn xor(dst: &mut [u8], src: &[u8]) {
            // SAFETY: the lengths are equal.
            unsafe { super::lanes::xor::<$lanes, 4>(dst, src) }
        }
    };
}
pub(super) use entry_points;
