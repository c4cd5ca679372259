//! Property Get and Property Set: Base Specification, "Fabrics Commands", "Controller Properties".

use std::rc::Rc;

use longshore_nvme::wire::fabrics::{PropertyGetCmd, PropertySetCmd};
use longshore_nvme::wire::register::{Cc, Crto, offset};
use longshore_nvme::wire::{Sqe, Status};

use crate::controller::{Controller, VERSION};

/// Value of a property, to be returned in Dwords 0 and 1.
///
/// # Errors
/// Unknown offset, or a size that is not the property's.
pub(crate) fn get(c: &Controller, sqe: &Sqe) -> Result<u64, Status> {
    let cmd = PropertyGetCmd::of(sqe);
    let wide = match cmd.attrib & 7 {
        0 => false,
        1 => true,
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    let (value, is_wide) = match cmd.ofst.get() {
        offset::CAP => (c.cap().0, true),
        offset::VS => (u64::from(VERSION.0), false),
        offset::CC => (u64::from(c.cc().0), false),
        offset::CSTS => (u64::from(c.csts().0), false),
        offset::NSSR | offset::NSSD => (0, false),
        offset::CRTO => (u64::from(Crto(0).with_crwmt(c.cap().to() as u32).0), false),
        _ => return Err(Status::INVALID_FIELD.with_dnr()),
    };
    if wide && !is_wide {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    // A read of 4 bytes from CAP gives its lower half.
    Ok(if wide { value } else { value & 0xffff_ffff })
}

/// Sets a property: only CC changes anything.
///
/// # Errors
/// Unknown or read-only offset, wrong size, or a value of CC that is not supported.
pub(crate) fn set(c: &Rc<Controller>, sqe: &Sqe) -> Result<(), Status> {
    let cmd = PropertySetCmd::of(sqe);
    if cmd.attrib & 7 != 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    match cmd.ofst.get() {
        offset::CC => c.set_cc(Cc(cmd.value.get() as u32)).map_err(|what| {
            tracing::info!("host '{}' set a value that is not supported: {what}", c.who.hostnqn);
            Status::INVALID_FIELD.with_dnr()
        }),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}
