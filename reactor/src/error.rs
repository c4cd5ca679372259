//! Why a runtime could not start, each with its remedy.

use std::fmt;
use std::io;

/// Why [`Runtime::start`](crate::Runtime::start) failed. Its `Display` is one line that says what and how to mend it.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The core list is empty or names a CPU twice.
    BadCores(String),
    /// A CPU is not in the affinity mask of the process.
    CpuNotAllowed {
        /// The CPU asked for.
        cpu: u32,
        /// Those allowed.
        allowed: Vec<u32>,
    },
    /// The kernel is older than 6.1.
    KernelTooOld(String),
    /// The kernel was built without io_uring.
    NoIoUring,
    /// `kernel.io_uring_disabled` forbids it.
    IoUringDisabled(u32),
    /// A seccomp filter (containers) forbids it.
    IoUringForbidden,
    /// The ring could not be made for want of memory or of locked memory.
    RingMemory(io::Error),
    /// The ring could not be made.
    Ring(io::Error),
    /// A thread could not be made.
    Thread(io::Error),
    /// Address space, an eventfd or another resource was refused.
    Resource(&'static str, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::BadCores(why) => write!(f, "bad list of cores: {why}"),
            StartError::CpuNotAllowed { cpu, allowed } => write!(
                f,
                "CPU {cpu} is not among those this process may run on ({}): choose one of them, or widen the affinity \
                 (taskset, cpuset, the container's CPU set)",
                ranges(allowed)
            ),
            StartError::KernelTooOld(v) => {
                write!(f, "Linux {v} is too old: the reactor needs 6.1 or later for io_uring with deferred task work")
            }
            StartError::NoIoUring => {
                write!(
                    f,
                    "this kernel has no io_uring (CONFIG_IO_URING), or a sandbox hides it: use a kernel that has it"
                )
            }
            StartError::IoUringDisabled(v) => write!(
                f,
                "io_uring is disabled on this system (kernel.io_uring_disabled={v}): set it to 0 with `sysctl -w \
                 kernel.io_uring_disabled=0`{}",
                if *v == 1 { ", or run as a member of kernel.io_uring_group" } else { "" }
            ),
            StartError::IoUringForbidden => write!(
                f,
                "io_uring is forbidden to this process, probably by a container's seccomp profile: allow io_uring_setup, \
                 io_uring_enter and io_uring_register, or run it with `--security-opt seccomp=unconfined`"
            ),
            StartError::RingMemory(e) => write!(
                f,
                "no memory for an io_uring ({e}): raise the locked-memory limit (`ulimit -l`) or the memory limit of the \
                 control group"
            ),
            StartError::Ring(e) => write!(f, "io_uring cannot be set up: {e}"),
            StartError::Thread(e) => {
                write!(f, "a reactor thread cannot be started: {e} (limit of processes, `ulimit -u`?)")
            }
            StartError::Resource(what, e) => write!(f, "{what} cannot be had: {e}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::RingMemory(e) | StartError::Ring(e) | StartError::Thread(e) | StartError::Resource(_, e) => {
                Some(e)
            }
            _ => None,
        }
    }
}

/// `0-3,8` for [0, 1, 2, 3, 8].
fn ranges(cpus: &[u32]) -> String {
    let mut out = String::new();
    let mut i = 0;
    while i < cpus.len() {
        let start = i;
        while i + 1 < cpus.len() && cpus[i + 1] == cpus[i] + 1 {
            i += 1;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out += &match i - start {
            0 => cpus[i].to_string(),
            _ => format!("{}-{}", cpus[start], cpus[i]),
        };
        i += 1;
    }
    out
}

/// Turns the error of making a ring into the reason behind it. `release` is the kernel's, `disabled` the content of
/// `/proc/sys/kernel/io_uring_disabled` if there is one.
pub(crate) fn explain_ring(e: io::Error, release: &str, disabled: Option<&str>) -> StartError {
    match e.raw_os_error() {
        Some(libc::ENOSYS) if too_old(release) => StartError::KernelTooOld(release.into()),
        Some(libc::ENOSYS) => StartError::NoIoUring,
        Some(libc::EPERM | libc::EACCES) => match disabled.and_then(|d| d.trim().parse().ok()) {
            Some(v @ 1..) => StartError::IoUringDisabled(v),
            _ => StartError::IoUringForbidden,
        },
        Some(libc::EINVAL) if too_old(release) => StartError::KernelTooOld(release.into()),
        Some(libc::ENOMEM) => StartError::RingMemory(e),
        _ => StartError::Ring(e),
    }
}

/// Whether a release string (`6.1.0-13-amd64`) names a kernel before 6.1. What cannot be read counts as new.
pub(crate) fn too_old(release: &str) -> bool {
    let mut n = release.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse::<u32>().unwrap_or(u32::MAX));
    (n.next().unwrap_or(u32::MAX), n.next().unwrap_or(0)) < (6, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(errno: i32, release: &str, disabled: Option<&str>) -> String {
        explain_ring(io::Error::from_raw_os_error(errno), release, disabled).to_string()
    }

    #[test]
    fn each_reason_is_one_line_with_its_remedy() {
        for (text, word) in [
            (why(libc::ENOSYS, "6.8.0", None), "CONFIG_IO_URING"),
            (why(libc::EPERM, "6.8.0", Some("2\n")), "kernel.io_uring_disabled=0"),
            (why(libc::EPERM, "6.8.0", Some("1\n")), "io_uring_group"),
            (why(libc::EPERM, "6.8.0", Some("0\n")), "seccomp"),
            (why(libc::EPERM, "6.8.0", None), "seccomp"),
            (why(libc::EINVAL, "5.15.0-91-generic", None), "6.1 or later"),
            (why(libc::ENOMEM, "6.8.0", None), "ulimit -l"),
            (StartError::CpuNotAllowed { cpu: 9, allowed: vec![0, 1, 2, 5] }.to_string(), "0-2,5"),
        ] {
            assert!(text.contains(word), "{text}");
            assert!(!text.contains('\n'));
        }
    }

    #[test]
    fn kernels_before_6_1_are_too_old() {
        let old: Vec<bool> =
            ["5.15.0-91", "6.0.19", "6.1.0-13-amd64", "6.18", "7.0.0-rc1", "strange"].map(too_old).into();
        assert_eq!(old, [true, true, false, false, false, false]);
    }
}
