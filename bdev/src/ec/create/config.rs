//! What an array is asked for with.

use uuid::Uuid;

use crate::ec::format::{NAME_BYTES, Superblock};
use crate::ec::layout::{LayoutOptions, MAX_DATA, MAX_PARITY, MAX_STRIP, MIN_STRIP};
use crate::registry::BdevError;

/// What an array is asked for with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Name of the array, 1 to 63 bytes.
    pub name: String,
    /// Data strips of a stripe, 1 to 32.
    pub data_chunk_count: u32,
    /// Parity strips of a stripe, 1 to 8.
    pub parity_chunk_count: u32,
    /// KiB of a strip: a power of two, 4 to 1024.
    pub strip_size_kb: u32,
    /// The devices, as many as strips of a stripe.
    pub base_bdevs: Vec<String>,
    /// UUID of the array; a random one if it is made without.
    pub uuid: Option<Uuid>,
    /// Start an array that lost more than it can, with what is left: see [`decide`](crate::ec::assemble::decide).
    pub salvage_requested: bool,
    /// Make the array even of devices that hold something else.
    pub force: bool,
    /// For tests.
    pub layout: LayoutOptions,
}

impl Options {
    /// Whether the figures make an array, whatever its devices are.
    ///
    /// # Errors
    ///
    /// The figure that does not.
    pub fn validate(&self) -> Result<(), BdevError> {
        let invalid = |what: String| Err(BdevError::Invalid(what));
        let (k, m) = (self.data_chunk_count, self.parity_chunk_count);
        if self.name.is_empty() || self.name.len() > NAME_BYTES || self.name.contains('\0') {
            return invalid(format!("name '{}' is {} bytes: must be 1 to 63", self.name, self.name.len()));
        }
        if !(1..=MAX_DATA as u32).contains(&k) {
            return invalid(format!("data_chunk_count is {k}: must be 1 to 32"));
        }
        if !(1..=MAX_PARITY as u32).contains(&m) {
            return invalid(format!("parity_chunk_count is {m}: must be 1 to 8"));
        }
        let kib = self.strip_size_kb;
        if !kib.is_power_of_two() || !(MIN_STRIP / 1024..=MAX_STRIP / 1024).contains(&kib) {
            return invalid(format!("strip_size_kb is {kib}: must be a power of two, 4 to 1024"));
        }
        if self.base_bdevs.len() != (k + m) as usize {
            return invalid(format!("{} base_bdevs: {k}+{m} needs {}", self.base_bdevs.len(), k + m));
        }
        if self.uuid.is_some_and(|u| u.is_nil()) {
            return invalid("uuid is nil".into());
        }
        Ok(())
    }

    /// Whether `s` is a superblock of the array that is asked for.
    pub(super) fn describes(&self, s: &Superblock) -> bool {
        s.name == self.name
            && s.layout.k == self.data_chunk_count as usize
            && s.layout.m == self.parity_chunk_count as usize
            && s.layout.strip == self.strip_size_kb * 1024
            && self.uuid.is_none_or(|uuid| uuid == s.array)
    }
}
