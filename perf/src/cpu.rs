//! CPU time of threads and processes, and which CPUs there are.

use std::fs;
use std::ops::Sub;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPU time, in seconds. The kernel counts it in ticks of 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CpuTime {
    /// In user mode.
    pub(crate) user: f64,
    /// In the kernel.
    pub(crate) kernel: f64,
}

impl CpuTime {
    /// CPU time of a process, all its threads together; zero if it is gone.
    pub(crate) fn of_process(pid: u32) -> CpuTime {
        read(&format!("/proc/{pid}/stat"))
    }

    /// CPU time of one thread of this process; zero if it is gone.
    pub(crate) fn of_thread(tid: i32) -> CpuTime {
        read(&format!("/proc/self/task/{tid}/stat"))
    }
}

impl Sub for CpuTime {
    type Output = CpuTime;

    fn sub(self, earlier: CpuTime) -> CpuTime {
        CpuTime { user: self.user - earlier.user, kernel: self.kernel - earlier.kernel }
    }
}

fn read(path: &str) -> CpuTime {
    fs::read_to_string(path).ok().and_then(|s| parse_stat(&s)).unwrap_or_default()
}

/// Fields 14 and 15 of proc_pid_stat(5); the name in field 2 may hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<CpuTime> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut next = || Some(fields.next()?.parse::<u64>().ok()? as f64 / per_second);
    Some(CpuTime { user: next()?, kernel: next()? })
}

/// CPUs that this process may run on.
pub(crate) fn allowed() -> Vec<u32> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|&c| set.is_set(c)).map(|c| c as u32).collect()
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// The CPU does not exist or this process may not use it.
pub(crate) fn pin(cpu: u32) -> Result<(), String> {
    if cpu as usize >= CpuSet::MAX_CPU {
        return Err(format!("CPU {cpu} does not exist"));
    }
    let mut set = CpuSet::new();
    set.set(cpu as usize);
    sched_setaffinity(None, &set).map_err(|e| format!("cannot run on CPU {cpu}: {e}; allowed are {:?}", allowed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "12 (a) b (c) R 1 1 1 0 -1 4 0 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        let t = parse_stat(text).unwrap();
        let hz = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(t, CpuTime { user: 250.0 / hz, kernel: 50.0 / hz });
        assert_eq!(parse_stat("nothing"), None);
    }

    #[test]
    fn this_process_has_cpus() {
        assert!(!allowed().is_empty());
    }
}
