//! Whether a request fits its device as it is, and where to cut it if not.

use longshore_nvme::wire::Status;

use crate::device::Geometry;
use crate::io::{IoRef, IoVec, Op};

/// Whether a device takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// As it is.
    Whole,
    /// In pieces.
    Split,
    /// Not at all.
    Never(Status),
}

/// Largest request of this kind, in blocks.
pub(crate) fn limit(g: &Geometry, op: Op) -> u32 {
    let l = match op {
        Op::Read | Op::Write | Op::Compare => g.max_io_blocks,
        Op::Unmap => g.max_unmap_blocks,
        Op::WriteZeroes => g.max_write_zeroes_blocks,
        Op::Copy => g.max_copy_blocks,
        _ => 0,
    };
    if l == 0 { u32::MAX } else { l }
}

fn boundary(g: &Geometry, op: Op) -> u64 {
    if matches!(op, Op::Read | Op::Write) { u64::from(g.optimal_io_boundary) } else { 0 }
}

/// Whether `io`, whose range lies inside the device, fits it.
pub(crate) fn check(g: &Geometry, io: &IoRef) -> Fit {
    let (op, lba, n) = (io.op(), io.lba(), io.nblocks());
    let unit = u64::from(g.write_unit.max(1));
    if op == Op::Write && unit > 1 && (!lba.is_multiple_of(unit) || !u64::from(n).is_multiple_of(unit)) {
        return Fit::Never(Status::INVALID_FIELD);
    }
    let b = boundary(g, op);
    let crosses = b != 0 && n != 0 && lba / b != (lba + u64::from(n) - 1) / b;
    let scattered = op.has_buffer() && g.max_segments != 0 && io.iov().len() > g.max_segments as usize;
    if n > limit(g, op) || crosses || scattered { Fit::Split } else { Fit::Whole }
}

/// Blocks of the next piece of a request at `lba` with `left` blocks to go; `iov` is its memory from byte `off` on. 0 if one
/// block has more pieces of memory than the device takes.
pub(crate) fn next(g: &Geometry, op: Op, lba: u64, left: u32, iov: &[IoVec], off: usize) -> u32 {
    let mut n = left.min(limit(g, op));
    let b = boundary(g, op);
    if b != 0 {
        n = n.min((b - lba % b).min(u64::from(u32::MAX)) as u32);
    }
    if op.has_buffer() && g.max_segments != 0 {
        n = n.min((room(iov, off, g.max_segments as usize) / g.block_size as usize).min(u32::MAX as usize) as u32);
    }
    let unit = g.write_unit.max(1);
    if op == Op::Write && n > unit { n / unit * unit } else { n }
}

/// Bytes from `off` on that lie in at most `max` pieces.
fn room(iov: &[IoVec], mut off: usize, max: usize) -> usize {
    let mut bytes = 0;
    let mut pieces = 0;
    for v in iov {
        if off >= v.iov_len {
            off -= v.iov_len;
            continue;
        }
        if pieces == max {
            break;
        }
        bytes += v.iov_len - off;
        off = 0;
        pieces += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vecs(lens: &[usize]) -> Vec<IoVec> {
        lens.iter().map(|&l| IoVec { iov_base: std::ptr::null_mut(), iov_len: l }).collect()
    }

    #[test]
    fn pieces_end_at_limits_boundaries_and_segments() {
        let mut g = Geometry::plain(512, 1000);
        g.max_io_blocks = 8;
        assert_eq!(next(&g, Op::Read, 3, 20, &vecs(&[10240]), 0), 8);
        g.optimal_io_boundary = 4;
        assert_eq!(next(&g, Op::Read, 3, 20, &vecs(&[10240]), 0), 1);
        assert_eq!(next(&g, Op::Write, 4, 20, &vecs(&[10240]), 512), 4);
        assert_eq!(next(&g, Op::Unmap, 3, 20, &[], 0), 20, "boundaries are for reads and writes");
        g.optimal_io_boundary = 0;
        g.max_segments = 2;
        assert_eq!(next(&g, Op::Read, 0, 8, &vecs(&[512, 700, 3000]), 0), 2);
        assert_eq!(next(&g, Op::Read, 0, 8, &vecs(&[100, 100, 100, 4000]), 0), 0);
    }
}
