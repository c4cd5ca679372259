//! Where a command's data is: Base Specification, "Scatter Gather List (SGL)"; NVMe/TCP, "Data Transfer Model".

use longshore_nvme::wire::{Psdt, SglKind, Sqe, Status};

use crate::qpair::Qpair;
use crate::request::{Begin, Kind};

/// How long the data of a command has to be.
#[derive(Clone, Copy)]
pub(crate) enum Length {
    Exact(u64),
    AtLeast(u32),
}

fn check(qp: &Qpair, sqe: &Sqe, kind: Kind, want: Length) -> Result<u32, Status> {
    if kind != Kind::Fabrics && !matches!(sqe.psdt(), Psdt::Sgl | Psdt::SglMptrSegment) {
        return Err(Status::INVALID_FIELD.with_dnr()); // PRPs are not for fabrics
    }
    let len = sqe.dptr.length.get();
    let fits = match want {
        Length::Exact(n) if n > u64::from(qp.options.max_io_size) => return Err(Status::INVALID_FIELD.with_dnr()), // MDTS
        Length::Exact(n) => u64::from(len) == n,
        Length::AtLeast(n) => len >= n,
    };
    if !fits {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    if len > qp.options.max_io_size {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    Ok(len)
}

/// A command that takes data from the host.
#[inline]
pub(crate) fn from_host(qp: &Qpair, slot: u16, sqe: &Sqe, in_capsule: u32, want: Length) -> Result<Begin, Status> {
    let mut r = qp.slots[usize::from(slot)].borrow_mut();
    let len = check(qp, sqe, r.kind, want)?;
    let inside = match sqe.dptr.kind() {
        SglKind::Transport => false,
        SglKind::InCapsule if sqe.dptr.address.get() != 0 => return Err(Status::SGL_OFFSET_INVALID.with_dnr()),
        SglKind::InCapsule if len > in_capsule => return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()),
        SglKind::InCapsule => true,
        _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr()),
    };
    (r.len, r.data_inside) = (len, inside);
    Ok(Begin::NeedData { len, in_capsule: inside })
}

/// A command that gives data to the host: `len` bytes of it, or as many as the SGL holds.
#[inline]
pub(crate) fn to_host(qp: &Qpair, slot: u16, sqe: &Sqe, want: Length, lent: bool) -> Result<Begin, Status> {
    let mut r = qp.slots[usize::from(slot)].borrow_mut();
    let len = check(qp, sqe, r.kind, want)?;
    if sqe.dptr.kind() != SglKind::Transport {
        return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr());
    }
    r.len = len;
    r.to_host = true;
    Ok(Begin::NeedBuffer { len, lent })
}
