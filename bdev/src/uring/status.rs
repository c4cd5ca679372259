//! What an error of the kernel means to who sent the request.

use longshore_nvme::wire::Status;

use crate::io::Op;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The request fails with this.
    Fail(Status),
    /// Resources are short for now: try again.
    Retry,
    /// It was cancelled before it did anything.
    Cancelled,
    /// The file or device cannot do this.
    Unsupported,
}

/// Judges `errno` (positive) of an operation.
pub(super) fn judge(op: Op, errno: i32) -> Verdict {
    let write = op.modifies();
    let medium = if write { Status::WRITE_FAULT } else { Status::UNRECOVERED_READ_ERROR };
    Verdict::Fail(match errno {
        libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS | libc::EBUSY | libc::EINTR => return Verdict::Retry,
        libc::ECANCELED => return Verdict::Cancelled,
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => return Verdict::Unsupported,
        libc::ENOSPC | libc::EDQUOT => Status::CAPACITY_EXCEEDED,
        libc::EFBIG => Status::LBA_OUT_OF_RANGE,
        libc::EROFS | libc::EPERM | libc::EACCES => Status::NAMESPACE_WRITE_PROTECTED,
        libc::EIO | libc::ENODATA | libc::EREMOTEIO | libc::EILSEQ | libc::ENXIO | libc::ENODEV | libc::EUCLEAN => {
            medium
        }
        _ => Status::INTERNAL_ERROR,
    })
}

/// Judges `errno` (positive) of a sync or a durable write. The kernel hands out a recorded write-back failure once, with the
/// errno it happened to have: what else would mean "try again" may be the only report of a loss, and a second try would
/// succeed. Only what never is such a report is tried again.
pub(super) fn judge_durable(op: Op, errno: i32) -> Verdict {
    match judge(op, errno) {
        Verdict::Retry if !matches!(errno, libc::EAGAIN | libc::EINTR) => Verdict::Fail(Status::WRITE_FAULT),
        v => v,
    }
}

/// True if a failed sync or durable write with this error may have lost data that was acknowledged before.
pub(super) fn loses_data(errno: i32) -> bool {
    !matches!(errno, libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::EINVAL | libc::EFBIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_sector_a_full_disk_and_a_short_pool_are_told_apart() {
        assert_eq!(judge(Op::Read, libc::EIO), Verdict::Fail(Status::UNRECOVERED_READ_ERROR));
        assert_eq!(judge(Op::Write, libc::EIO), Verdict::Fail(Status::WRITE_FAULT));
        assert_eq!(judge(Op::Write, libc::ENOSPC), Verdict::Fail(Status::CAPACITY_EXCEEDED));
        assert_eq!(judge(Op::Write, libc::ENOMEM), Verdict::Retry);
        assert_eq!(judge_durable(Op::Flush, libc::ENOMEM), Verdict::Fail(Status::WRITE_FAULT));
        assert_eq!(judge_durable(Op::Flush, libc::EAGAIN), Verdict::Retry);
        assert!(loses_data(libc::ENOMEM));
        assert!(loses_data(libc::EIO) && loses_data(libc::ENOSPC) && !loses_data(libc::ECANCELED));
    }
}
