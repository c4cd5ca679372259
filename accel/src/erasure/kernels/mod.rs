//! What multiplies and adds bytes: one kernel per set of instructions, chosen at run time.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::LazyLock;

use super::coefficients::Columns;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod gfni_avx2;
#[cfg(target_arch = "x86_64")]
mod gfni_avx512;
#[cfg(feature = "isal")]
pub(super) mod isal;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod ssse3;

/// A set of instructions that runs the erasure code. Which there are depends on the architecture that the program was built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// x86-64 with GFNI and AVX-512 (F, BW, VL): vectors of 64 bytes.
    #[cfg(target_arch = "x86_64")]
    GfniAvx512,
    /// x86-64 with GFNI and AVX2: vectors of 32 bytes.
    #[cfg(target_arch = "x86_64")]
    GfniAvx2,
    /// x86-64 with AVX2: vectors of 32 bytes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with SSSE3: vectors of 16 bytes.
    #[cfg(target_arch = "x86_64")]
    Ssse3,
    /// Any 64-bit Arm processor: vectors of 16 bytes.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Any processor: words of 8 bytes.
    Portable,
    /// ISA-L, which chooses its own instructions.
    #[cfg(feature = "isal")]
    Isal,
}

impl Kernel {
    /// All kernels of this architecture, the fastest first, ISA-L last.
    pub const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::GfniAvx512,
        #[cfg(target_arch = "x86_64")]
        Self::GfniAvx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Ssse3,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        Self::Portable,
        #[cfg(feature = "isal")]
        Self::Isal,
    ];

    /// The fastest of Longshore's own that this processor can run.
    pub fn best() -> Self {
        Self::ALL.iter().copied().find(|k| k.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx512 => {
                is_x86_feature_detected!("gfni")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx2 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Ssse3 => is_x86_feature_detected!("ssse3"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
            #[cfg(feature = "isal")]
            Self::Isal => true,
        }
    }

    /// Its name, as it stands in reports.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx512 => "gfni-avx512",
            #[cfg(target_arch = "x86_64")]
            Self::GfniAvx2 => "gfni-avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Ssse3 => "ssse3",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Portable => "portable",
            #[cfg(feature = "isal")]
            Self::Isal => "isa-l",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

type Dot = unsafe fn(Columns<'_>, &[&[u8]], &mut [&mut [u8]], bool);
type Xor = unsafe fn(&mut [u8], &[u8]);

/// A kernel that this processor can run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runnable {
    kernel: Kernel,
    dot: Dot,
    xor: Xor,
}

impl Runnable {
    /// `None` where the processor lacks the instructions.
    pub(super) fn new(kernel: Kernel) -> Option<Self> {
        let (dot, xor): (Dot, Xor) = match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx512 => (gfni_avx512::dot, gfni_avx512::xor),
            #[cfg(target_arch = "x86_64")]
            Kernel::GfniAvx2 => (gfni_avx2::dot, gfni_avx2::xor),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => (avx2::dot, avx2::xor),
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3 => (ssse3::dot, ssse3::xor),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => (neon::dot, neon::xor),
            Kernel::Portable => (portable::dot, portable::xor),
            #[cfg(feature = "isal")]
            Kernel::Isal => (isal::dot, portable::xor), // never the best, so never asked to add
        };
        kernel.is_available().then_some(Self { kernel, dot, xor })
    }

    pub(super) fn kernel(self) -> Kernel {
        self.kernel
    }

    /// Each output becomes the sum of all sources times their coefficients, plus what it held where `accumulate` says so.
    ///
    /// Panics where numbers or lengths do not fit.
    #[inline]
    pub(super) fn dot(self, columns: Columns<'_>, sources: &[&[u8]], outputs: &mut [&mut [u8]], accumulate: bool) {
        let len = outputs.first().map_or(0, |o| o.len());
        assert_eq!(outputs.len(), columns.outputs, "number of output chunks");
        assert_eq!(sources.len() * columns.outputs, columns.values.len(), "number of source chunks times outputs");
        assert!(
            sources.iter().all(|s| s.len() == len),
            "source chunks differ in length from output chunks of {len} bytes"
        );
        assert!(outputs.iter().all(|o| o.len() == len), "output chunks differ in length");
        // SAFETY: the processor has the instructions, as `new` found. Numbers and lengths were checked.
        unsafe { (self.dot)(columns, sources, outputs, accumulate) }
    }

    /// Adds `src` to `dst`. Panics where they differ in length.
    #[inline]
    fn xor(self, dst: &mut [u8], src: &[u8]) {
        assert_eq!(dst.len(), src.len(), "lengths of what is added");
        // SAFETY: the processor has the instructions, as `new` found. Lengths were checked.
        unsafe { (self.xor)(dst, src) }
    }
}

/// Adds (XOR) `src` to `dst` by the fastest kernel of this processor.
///
/// # Panics
/// Where they differ in length.
pub fn xor_into(dst: &mut [u8], src: &[u8]) {
    // Found once: it takes a few loads and branches, which short lengths would feel.
    static BEST: LazyLock<Runnable> = LazyLock::new(|| Runnable::new(Kernel::best()).expect("the best is available"));
    BEST.xor(dst, src);
}
