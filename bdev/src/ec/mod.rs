//! Erasure-coded arrays: k data and m parity strips on k+m members, which survive the loss of any m of them together with any crash.
//!
//! * [`layout`]: where everything is on a member, and which strip is whose. Pure arithmetic.
//! * [`format`]: the structures on the members, byte for byte. Pure encoding and decoding; `docs/format-ec.md` describes them.

pub mod format;
pub mod layout;
