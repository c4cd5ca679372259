#!/usr/bin/env python3
"""Figures of erasure-coded arrays in docs/benchmarks.md: an array 4+2 against what it is made of, in interleaved pairs.

    scripts/bench_ec.py [--bin DIR] [--pairs N] [--seconds S] [--dir DIR] [CASE...]     (default: all; --list names them)

Local devices under `longshore-perf --bdev`, one core. Each pair runs the array and then a plain device of the same kind, which has as
many bytes as the array's members together, both filled first. Printed is the median of the pairs' ratios with the smallest and the
largest, and what `bdev_ec_get_bdevs` counted for a request of the host. How a case's ratio is computed:

    *-full-*      bytes per second that reach members (data x 6/4, journal left out) / bytes per second that plain writes reach
    *-read        IOPS / plain IOPS
    *-overwrite   IOPS / (plain IOPS / requests to members for each of the host's, journal included)

With files, arrays and plain devices (bdev_uring, direct I/O) are flushed after every 32 writes, and pairs of writes have a third part, raw: the same
writes by system calls on the members' files. Of full stripes, four threads for each of the six files write 64 KiB each time, in sequence, and whoever
makes the 32nd write of the file calls fdatasync, while the others go on. Of overwrites, five threads for each file write 4 KiB at random, and each file has
its fdatasync when all six together have had 32 writes. So every flush of the array has its six calls of fdatasync, and nothing is read, and of
overwrites only the 4 KiB themselves are written. Shares of raw: bytes on members of full stripes; requests of the host, and requests to members, of
overwrites. `delay-*` report latencies with one member that takes 100 ms for everything.

A pair during which other processes used more than 5 % of a core is void and run again, as many times as there are pairs. With
--before DIR the second of a pair is the array of that build.
"""
import argparse, json, mmap, os, random, statistics, sys, tempfile, threading, time
from pathlib import Path

from bench import measured

K, M, STRIP = 4, 2, 64
MIB = 1 << 20
# name: (bytes, depth, workload, prefill of the array, least ratio asked for)
CASES = {
    "full-unmapped": ("256K", 8, "write", "unmap", 0.8),
    "full-live": ("256K", 8, "write", "write", 0.4),
    "read": ("4K", 32, "randread", "write", 0.85),
    "overwrite": ("4K", 32, "randwrite", "write", 0.5),
    "full-live-1": ("256K", 1, "write", "write", None),
    "full-live-32": ("256K", 32, "write", "write", None),
}
# kind: MiB of a member. Of `small` so little is used that it stays in a processor's cache: what the software costs.
KINDS = {"malloc": 768, "small": 64, "files": 256}
SMALL = 8  # MiB of data
FLUSH = 32  # writes for each flush, on files
DELAYS = {"delay-read": "randread", "delay-write": "randwrite"}


def config(kind, size, folder, delayed=False):
    """The configuration that makes the members, the array Ec0 and the plain device Plain; alike but for size."""
    def device(name, mib):
        if kind == "files":
            return "bdev_uring_create", {"name": name, "filename": str(Path(folder, name)), "block_size": 4096}
        return "bdev_malloc_create", {"name": name, "num_blocks": mib * MIB // 4096, "block_size": 4096}

    calls = [device(f"M{i}", size) for i in range(K + M)] + [device("Plain", size * (K + M))]
    bases = [f"M{i}" for i in range(K + M)]
    if delayed:
        late = {f"{p}_{op}_latency": 100_000 for p in ("avg", "p99") for op in ("read", "write")}
        calls.append(("bdev_delay_create", {"name": "Late", "base_bdev_name": bases[0], **late}))
        bases[0] = "Late"
    calls.append(("bdev_ec_create", {"name": "Ec0", "data_chunk_count": K, "parity_chunk_count": M, "strip_size_kb": STRIP, "base_bdevs": bases}))
    config = [{"method": m, "params": p} for m, p in calls]
    return {"subsystems": [{"subsystem": "bdev", "config": config}]}


def make_files(folder, size):
    """Files with every block written, so that a flush is about data only."""
    zeroes = bytes(MIB)
    for name, mib in [(f"M{i}", size) for i in range(K + M)] + [("Plain", size * (K + M))]:
        with open(Path(folder, name), "wb") as f:
            for _ in range(mib):
                f.write(zeroes)
            os.fsync(f.fileno())


def raw_writes(folder, size, seconds, case):
    """What files can do without any of Longshore: the case's requests per second, and calls of fdatasync. See above."""
    length, depth, workload = (STRIP * 1024, 4, "write") if CASES[case][0] == "256K" else (4096, 5, "randwrite")
    # Requests of which a file has a part, for each of its own writes.
    each = 1 if workload == "write" else K + M
    half, blocks = size * MIB // 2, size * MIB // 2 // length
    go, made = threading.Event(), []

    class File:
        def __init__(self, name):
            self.fd, self.lock, self.next, self.syncs = os.open(Path(folder, name), os.O_RDWR | os.O_DIRECT), threading.Lock(), 0, 0

    def one(f, seed):
        r, data = random.Random(seed), mmap.mmap(-1, length)
        data.write(r.randbytes(length))
        while not go.is_set():
            with f.lock:
                n, f.next = f.next, f.next + 1
            os.pwrite(f.fd, data, half + (n if workload == "write" else r.randrange(blocks)) % blocks * length)
            if (n + 1) * each // FLUSH != n * each // FLUSH:
                os.fdatasync(f.fd)
                f.syncs += 1

    files = [File(f"M{i}") for i in range(K + M)]
    threads = [threading.Thread(target=one, args=(f, i * depth + n)) for i, f in enumerate(files) for n in range(depth)]
    start = time.monotonic()
    [t.start() for t in threads]
    time.sleep(seconds)
    go.set()
    [t.join() for t in threads]
    taken = time.monotonic() - start
    [os.close(f.fd) for f in files]
    return sum(f.next for f in files) / taken * each / (K + M), sum(f.syncs for f in files) / taken


class Bench:
    def __init__(self, a):
        self.bins, self.n, self.s, self.dir, self.before = Path(a.bin), a.pairs, a.seconds, a.dir, a.before and Path(a.before)
        self.cpu, self.folder = sorted(os.sched_getaffinity(0))[-1], None

    def perf(self, bins, config, args):
        """JSON of one run, and CPU that others used meanwhile, in cores."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(config, f)
            f.flush()
            return measured([bins / "longshore-perf", "--config", f.name, "-c", hex(1 << self.cpu), *args])

    def load(self, bins, kind, case, bdev, folder):
        size, depth, workload, prefill, _ = CASES[case]
        args = ["--bdev", bdev, "--prefill", prefill if bdev == "Ec0" else "write", "-o", size, "-q", depth, "-w", workload]
        if case == "full-unmapped" and bdev == "Ec0":
            # Once over the array: then there is nothing unmapped any more. Metadata takes less than 1/16 of a member.
            args += ["-d", KINDS[kind] * 1024 // STRIP * 15 // 16, "-t", 60, "-a", 0.1]
        else:
            # The first accesses to memory that nothing was written to for long are slow on virtual machines.
            args += ["-t", self.s, "-a", 1]
        if kind == "small":
            args += ["--span", f"{SMALL if bdev == 'Ec0' else SMALL * (K + M) // K}M"]
        if kind == "files" and workload != "randread":
            args += ["--flush-every", FLUSH]
        return self.perf(bins, config(kind, KINDS[kind], folder), args)

    def pair(self, kind, case, folder):
        a, o1 = self.load(self.bins, kind, case, "Ec0", folder)
        b, o2 = self.load(self.before or self.bins, kind, case, "Ec0" if self.before else "Plain", folder)
        raw = raw_writes(folder, KINDS[kind], max(self.s, 1), case) if kind == "files" and case != "read" else None
        c, iops, plain = a["counters"], a["total"]["iops"], b["total"]["iops"]
        host = max(c["host_reads"] + c["host_writes"], 1)
        per = {k: v / host for k, v in c.items() if v}
        below = sum(c[k] for k in ("member_reads", "member_writes", "journal_writes")) / host
        if self.before:
            ratio = iops / plain
        elif case == "overwrite":
            ratio = iops / (plain / below)
        else:
            ratio = iops / plain * (1 if case == "read" else (K + M) / K)
        share = raw and iops / raw[0]
        return {"ratio": ratio, "iops": iops, "plain": plain, "per": per, "raw": raw, "share": share, "below": below, "others": max(o1, o2)}

    def case(self, name):
        kind, case = name.split("-", 1)
        if kind == "files" and not self.folder:
            self.folder = tempfile.TemporaryDirectory(dir=self.dir)
            make_files(self.folder.name, KINDS[kind])
        rows, void = [], 0
        while len(rows) < self.n:
            r = self.pair(kind, case, self.folder and self.folder.name)
            if r["others"] > 0.05 and void < self.n:
                void += 1
                continue
            rows.append(r)
        rows.sort(key=lambda r: r["ratio"])
        mid, least = rows[len(rows) // 2], CASES[case][4]
        asked = f" asked {least:.2f}" if least and kind == "malloc" and not self.before else ""
        noise = max(r["others"] for r in rows)
        print(f"{name:19} {mid['ratio']:6.3f} ({rows[0]['ratio']:.3f}-{rows[-1]['ratio']:.3f}){asked}  {mid['iops'] / 1e3:.1f} k,"
              f" {'before' if self.before else 'plain'} {mid['plain'] / 1e3:.1f} k{f'  VOID: others used {noise:.2f} cores' if noise > 0.05 else ''}")
        if mid["raw"]:
            shares = sorted(r["share"] for r in rows)
            least, most = (f"{shares[at]:.2f}" for at in (0, -1))
            more = f", requests to members {statistics.median(r['share'] * r['below'] for r in rows):.2f}" if case == "overwrite" else ""
            print(f"{'':19} of raw: {statistics.median(shares):.2f} ({least}-{most}){more}; raw {mid['raw'][0] / 1e3:.2f} k requests, {mid['raw'][1]:.0f} fdatasync a second")
        print(f"{'':19} per request: " + ", ".join(f"{k} {v:.2f}" for k, v in mid["per"].items()), flush=True)

    def delay(self, name):
        """Latencies with a member that takes 100 ms; the prefill takes as long, so only a part of the array is used."""
        for delayed in (False, True):
            r, _ = self.perf(self.bins, config("malloc", 64, None, delayed),
                             ["--bdev", "Ec0", "--span", "16M", "--prefill", "write", "-q", 32, "-w", DELAYS[name], "-t", max(self.s, 4), "-L"])
            t = r["total"]
            lat = {k: v for k, v in t["latency_us"].items() if k in ("p50", "p90", "p99", "max")}
            print(f"{name:19} {'one member takes 100 ms' if delayed else 'none delayed':23} {t['iops']:.0f} IOPS, us: " +
                  ", ".join(f"{k} {v:.0f}" for k, v in lat.items()), flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", default="target/release", help="folder of longshore-perf")
    a.add_argument("--pairs", type=int, default=5)
    a.add_argument("--seconds", type=float, default=0.7)
    a.add_argument("--dir", help="folder for the files of `files-*`, 3 GiB (default: the system's for temporary files)")
    a.add_argument("--before", help="folder of another build, to compare with instead of the plain device")
    a.add_argument("--list", action="store_true")
    a.add_argument("cases", nargs="*")
    a = a.parse_args()
    every = [f"{kind}-{case}" for kind in KINDS for case in CASES if kind == "malloc" or CASES[case][4] and (kind, case) != ("small", "full-unmapped")] + list(DELAYS)
    if a.list:
        return print("\n".join(every))
    b = Bench(a)
    for case in a.cases or every:
        if case not in every:
            sys.exit(f"no case {case}; --list names them")
        b.delay(case) if case in DELAYS else b.case(case)


if __name__ == "__main__":
    main()
