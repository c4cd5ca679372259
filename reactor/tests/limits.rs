//! What the process may not do: each case in a process of its own, because limits and filters cannot be taken back.
#![allow(unsafe_code)]

use longshore_reactor::{Options, RingOptions, Runtime, StartError, file, net, oneshot};
use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Runs test `name` of this binary alone, in a child where `inside()` is true.
fn in_child(name: &str) {
    // One at a time: limits of memory count for all processes of a user.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("LIMITS_INSIDE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
}

fn inside() -> bool {
    std::env::var_os("LIMITS_INSIDE").is_some()
}

fn options() -> Options {
    Options { pin: false, raise_nofile: false, ..Options::default() }
}

fn set_limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) {
    let l = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: a valid structure, only read.
    assert_eq!(unsafe { libc::setrlimit(resource, &l) }, 0);
}

fn nofile() -> libc::rlimit {
    let mut l = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure to fill.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut l) }, 0);
    l
}

#[test]
fn accepting_pauses_when_descriptors_run_out_and_goes_on_when_they_return() {
    if !inside() {
        return in_child("accepting_pauses_when_descriptors_run_out_and_goes_on_when_they_return");
    }
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    let rt = Runtime::start(options()).unwrap();
    let clients: Vec<_> = (0..8).map(|_| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()).collect();
    // The limit is on numbers, and free ones below the highest would be used first: fill them.
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().file_name());
    let highest: i32 = numbers.map(|n| n.to_str().unwrap().parse().unwrap()).max().unwrap();
    let mut fill = Vec::new();
    while fill.last().is_none_or(|f: &std::fs::File| f.as_raw_fd() <= highest) {
        fill.push(std::fs::File::open("/dev/null").unwrap());
    }
    // Room for the listener and three connections. (An accept keeps the limit that it was armed under.)
    let next = fill.last().unwrap().as_raw_fd() as u64 + 1;
    let before = nofile();
    set_limit(libc::RLIMIT_NOFILE, next + 4, before.rlim_max);
    let (tx, rx) = oneshot::channel();
    let addr = rt.cores()[0]
        .call(|r| {
            let held = RefCell::new(Vec::new());
            let tx = RefCell::new(Some(tx));
            let l = net::TcpListener::bind(r, "127.0.0.1:0".parse().unwrap(), 64, move |_, fd, _| {
                let mut held = held.borrow_mut();
                held.push(fd);
                if held.len() == 8 {
                    tx.take().unwrap().send(()).unwrap();
                }
            });
            let l = l.unwrap();
            let addr = l.local_addr();
            std::mem::forget(l);
            addr
        })
        .wait()
        .unwrap();
    clients.iter().for_each(|c| connect(c, &addr).unwrap());
    assert!(rx.wait_timeout(Duration::from_millis(150)).is_none(), "there are descriptors for three of eight");
    set_limit(libc::RLIMIT_NOFILE, before.rlim_cur, before.rlim_max);
    assert_eq!(rx.wait_timeout(Duration::from_secs(10)), Some(Ok(())));
    rt.stop();
}

#[test]
fn the_limit_of_open_files_is_raised() {
    if !inside() {
        return in_child("the_limit_of_open_files_is_raised");
    }
    set_limit(libc::RLIMIT_NOFILE, 64, 500);
    let rt = Runtime::start(Options { raise_nofile: true, ..options() }).unwrap();
    assert_eq!(nofile().rlim_cur, 500);
    rt.stop();
}

#[test]
fn without_locked_memory_the_ring_shrinks_and_nothing_is_registered() {
    if !inside() {
        return in_child("without_locked_memory_the_ring_shrinks_and_nothing_is_registered");
    }
    // Root's capability to lock memory would hide the limit.
    // SAFETY: these change credentials of this process only; failure (already unprivileged) is harmless.
    unsafe {
        libc::setgid(65534);
        libc::setuid(65534);
    }
    // Too little for the ring asked for, or for a chunk of DMA memory; enough for what other processes of this user have.
    set_limit(libc::RLIMIT_MEMLOCK, 1 << 20, 1 << 20);
    let ring = RingOptions { sq_entries: 16384, cq_entries: 32768, ..RingOptions::default() };
    let rt = Runtime::start(Options { ring, ..options() }).unwrap_or_else(|e| panic!("{e}"));
    let done = rt.cores()[0].spawn(|r| async move {
        let exe = std::env::current_exe().unwrap();
        let read_only = file::FileOptions { write: false, ..Default::default() };
        // The binary may not be readable any more; any file does.
        let f = file::File::open("/etc/passwd", &read_only).or_else(|_| file::File::open(exe, &read_only)).unwrap();
        let (n, _) = f.read_at(&r, r.dma().alloc(4096).unwrap(), 0).await;
        assert!(n.unwrap() > 0);
        r.dma().stats()
    });
    let s = done.wait().unwrap();
    assert_eq!(s.registered, 0);
    assert!(s.register_error.unwrap().contains("ulimit -l"));
    rt.stop();
}

/// Makes `io_uring_setup` fail with `errno` from now on.
fn forbid_io_uring(errno: i32) {
    let f = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let program = [
        f(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        f(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        f(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        f(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let prog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program; the filter holds for this process only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &prog), 0);
    }
}

fn refused() -> StartError {
    match Runtime::start(options()) {
        Ok(_) => panic!("it started"),
        Err(e) => e,
    }
}

#[test]
fn a_seccomp_filter_is_named_with_its_remedy() {
    if !inside() {
        return in_child("a_seccomp_filter_is_named_with_its_remedy");
    }
    forbid_io_uring(libc::EPERM);
    let e = refused().to_string();
    assert!(e.contains("seccomp"), "{e}");
}

#[test]
fn a_kernel_without_io_uring_is_named() {
    if !inside() {
        return in_child("a_kernel_without_io_uring_is_named");
    }
    forbid_io_uring(libc::ENOSYS);
    assert!(matches!(refused(), StartError::NoIoUring));
}
