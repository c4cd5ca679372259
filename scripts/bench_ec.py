#!/usr/bin/env python3
"""Figures of erasure-coded arrays in docs/benchmarks.md: an array 4+2 against what it is made of, in interleaved pairs.

    scripts/bench_ec.py [--bin DIR] [--pairs N] [--seconds S] [--dir DIR] [CASE...]     (default: all; --list names them)

Local devices under `longshore-perf --bdev`, one core. Each pair runs the array and then a plain device of the same kind, which has as
many bytes as the array's members together, both filled first. Printed is the median of the pairs' ratios with the smallest and the
largest, and what `bdev_ec_get_bdevs` counted for a request of the host. How a case's ratio is computed:

    *-full-*      bytes per second that reach members (data x 6/4, journal left out) / bytes per second that plain writes reach
    *-read        IOPS / plain IOPS
    *-overwrite   IOPS / (plain IOPS / requests to members for each of the host's, journal included)

With files, arrays and plain devices are flushed after every 32 writes, and each pair has a third part: six threads that overwrite 4 KiB of a
file each and call fdatasync. The array's flushes of members per second are given as a share of that. `delay-*` report latencies
with one member that takes 100 ms for everything.

A pair during which other processes used more than 5 % of a core is void and run again, as many times as there are pairs. With
--before DIR the second of a pair is the array of that build.
"""
import argparse, json, mmap, os, random, statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

from bench import strangers

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


def fdatasyncs(folder, size, seconds):
    """fdatasync calls per second of six threads, one for each member's file."""
    end, counts = time.monotonic() + seconds, []

    def one(name, seed):
        r, n, block = random.Random(seed), 0, mmap.mmap(-1, 4096)
        fd = os.open(Path(folder, name), os.O_RDWR | os.O_DIRECT)
        while time.monotonic() < end:
            os.pwrite(fd, block, r.randrange(size * MIB // 8192, size * MIB // 4096) * 4096)
            os.fdatasync(fd)
            n += 1
        os.close(fd)
        counts.append(n)

    threads = [threading.Thread(target=one, args=(f"M{i}", i)) for i in range(K + M)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sum(counts) / seconds


class Bench:
    def __init__(self, a):
        self.bins, self.n, self.s, self.dir, self.before = Path(a.bin), a.pairs, a.seconds, a.dir, a.before and Path(a.before)
        self.cpu = sorted(os.sched_getaffinity(0))[-1]

    def perf(self, bins, config, args):
        """JSON of one run, and CPU that others used meanwhile, in cores."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(config, f)
            f.flush()
            t0 = time.monotonic()
            line = [bins / "longshore-perf", "--config", f.name, "--json", "-c", hex(1 << self.cpu), *map(str, args)]
            p = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            mine = {os.getpid(), p.pid}
            before = strangers(mine)
            out, err = p.communicate(timeout=300)
            after = strangers(mine)
        if p.returncode != 0:
            sys.exit(f"longshore-perf {args}: {err.decode()}")
        others = sum(t - before.get(pid, 0) for pid, t in after.items())
        return json.loads(out), others / (time.monotonic() - t0)

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
            args += ["--flush-every", 32]
        return self.perf(bins, config(kind, KINDS[kind], folder), args)

    def pair(self, kind, case, folder):
        a, o1 = self.load(self.bins, kind, case, "Ec0", folder)
        b, o2 = self.load(self.before or self.bins, kind, case, "Ec0" if self.before else "Plain", folder)
        raw = fdatasyncs(folder, KINDS[kind], self.s) if kind == "files" and case != "read" else None
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
        share = raw and per.get("member_flushes", 0) * iops / raw
        return {"ratio": ratio, "iops": iops, "plain": plain, "per": per, "raw": raw, "share": share, "others": max(o1, o2)}

    def case(self, name):
        kind, case = name.split("-", 1)
        with tempfile.TemporaryDirectory(dir=self.dir) as folder:
            if kind == "files":
                make_files(folder, KINDS[kind])
            rows, void = [], 0
            while len(rows) < self.n:
                r = self.pair(kind, case, folder)
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
            print(f"{'':19} fdatasync: {statistics.median(shares):.2f} ({shares[0]:.2f}-{shares[-1]:.2f}) of {mid['raw']:.0f} a second by six threads")
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
