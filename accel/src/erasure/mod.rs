//! Systematic erasure code over GF(2^8): `m` parity chunks for `k` data chunks, any `m` of which may be lost.
//!
//! Parity chunk `i` is the sum over `j` of [`Codec::coefficient`]`(i, j)` times data chunk `j`, byte by byte, in the field of [`crate::gf`]:
//! the same as ISA-L's `ec_encode_data` with `gf_gen_cauchy1_matrix` or `gf_gen_rs_matrix`. Chunks are numbered data first: data chunk `j`
//! is `j`, parity chunk `i` is `k + i`.
//!
//! ```
//! use longshore_accel::erasure::{Codec, MatrixKind};
//!
//! let codec = Codec::new(MatrixKind::Cauchy, 2, 1)?;
//! let (a, b, mut parity) = ([1u8, 2, 3], [4u8, 5, 6], [0u8; 3]);
//! codec.encode(&[&a, &b], &mut [&mut parity]);
//!
//! let decoder = codec.decoder(&[0], &[1, 2])?; // chunk 0 is lost, 1 and 2 are there
//! assert_eq!(decoder.sources(), [1, 2]);
//! let mut rebuilt = [0u8; 3];
//! decoder.decode(&[&b, &parity], &mut [&mut rebuilt]);
//! assert_eq!(rebuilt, a);
//! # Ok::<(), longshore_accel::erasure::ErasureError>(())
//! ```

mod codec;
mod coefficients;
mod error;
mod kernels;
mod matrix;

pub use codec::{Codec, Decoder};
pub use error::ErasureError;
pub use kernels::{Kernel, xor_into};
pub use matrix::{MAX_DATA, MAX_PARITY, MatrixKind};
