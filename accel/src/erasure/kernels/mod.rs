//! What multiplies and adds bytes: one kernel per set of instructions, chosen at run time.

use std::fmt;

use super::coefficients::Columns;

mod portable;

/// A set of instructions that runs the erasure code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Any processor: 64-bit words.
    Portable,
}

impl Kernel {
    /// All kernels, the fastest first.
    pub const ALL: &[Self] = &[Self::Portable];

    /// The fastest that this processor can run.
    pub fn best() -> Self {
        Self::ALL.iter().copied().find(|k| k.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
        }
    }

    /// Its name, as it stands in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Each output becomes the sum of all sources times their coefficients, plus what it held where `accumulate` says so.
///
/// Panics where numbers or lengths do not fit.
pub(super) fn dot(
    kernel: Kernel,
    columns: Columns<'_>,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    accumulate: bool,
) {
    let len = outputs.first().map_or(0, |o| o.len());
    assert_eq!(outputs.len(), columns.outputs, "number of output chunks");
    assert_eq!(sources.len() * columns.outputs, columns.values.len(), "number of source chunks times outputs");
    assert!(sources.iter().all(|s| s.len() == len), "source chunks differ in length from output chunks of {len} bytes");
    assert!(outputs.iter().all(|o| o.len() == len), "output chunks differ in length");
    match kernel {
        Kernel::Portable => portable::dot(columns, sources, outputs, accumulate),
    }
}

/// Adds (XOR) `src` to `dst`.
///
/// # Panics
/// Where they differ in length.
pub fn xor_into(dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len(), "lengths of what is added");
    portable::xor(dst, src);
}
