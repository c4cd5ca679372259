#!/usr/bin/env python3
"""Rebuild of an erasure-coded array 4+2 on `malloc`, for docs/benchmarks.md: how fast when idle, and what hosts feel of it.

    scripts/bench_rebuild.py [--bin DIR] [--runs N] [--seconds S] [--mib M] [CASE...]     (default: all; --list names them)

A daemon on the first CPU serves the array over NVMe/TCP, and longshore-perf on the second fills it. Then, again and again, a member
is replaced by a device that has been written before.

    idle        stripes per second, as a share of what a plain `malloc` device allows, which reads k strips and writes one for each:
                longshore-perf on the daemon's CPU, 64 KiB in sequence, depth 8, before each rebuild. From when the member has joined
    randread,   p99 of 4 KiB requests, depth 32 over one connection: healthy; with the member missing and its rebuild paused; while it is
    randwrite   rebuilt with default QoS; in turn. Stripes rebuilt meanwhile are counted four times a second.

Printed are medians of the runs' ratios with the smallest and the largest. A run during which other processes used more than 5 % of a core is
void and made again, as many times as there are runs. Needs two idle CPUs.
"""
import argparse, os, statistics, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import Daemon, Refused, measured, transport_id

PORT, K, N, STRIP, MIB = 4467, 4, 6, 65536, 1 << 20
CASES = ("idle", "randread", "randwrite")


class Array(Daemon):
    """A daemon with an array Ec0 of members M0 to M5, and two devices that take turns in slot 0."""

    def __init__(self, bins, cpu, mib):
        bdevs = [("bdev_malloc_create", {"name": n, "num_blocks": mib * 256, "block_size": 4096}) for n in [*(f"M{i}" for i in range(N)), "New"]]
        bdevs.append(("bdev_ec_create", {"name": "Ec0", "data_chunk_count": K, "parity_chunk_count": N - K, "strip_size_kb": STRIP // 1024,
                                         "base_bdevs": [f"M{i}" for i in range(N)]}))
        super().__init__(bins, cpu, bdevs, ["Ec0"], PORT)

    def progress(self):
        """Of the rebuild; none if there is no rebuild."""
        try:
            return self.rpc("bdev_ec_get_rebuild_progress", ec_name="Ec0")
        except Refused:
            return None

    def replace(self, paused=False):
        self.rpc("bdev_ec_set_rebuild_qos", ec_name="Ec0", paused=paused)
        bases = self.rpc("bdev_ec_get_bdevs", name="Ec0")[0]["base_bdevs"]
        old = next(b["name"] for b in bases if b["slot"] == 0)
        self.rpc("bdev_ec_replace_base_bdev", ec_name="Ec0", slot=0, new_bdev_name="M0" if old == "New" else "New", force=True)

    def rebuilt(self):
        """Waits for the end of the rebuild."""
        while self.progress() is not None:
            time.sleep(0.005)


class Bench:
    def __init__(self, a):
        self.bins, self.n, self.s, self.mib = Path(a.bin), a.runs, a.seconds, a.mib
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            sys.exit("two CPUs are needed")
        self.serve, self.load = cpus[0], cpus[1]
        self.d = Array(self.bins, self.serve, self.mib)
        self.target = ["-r", transport_id(PORT)]

    def perf(self, cpu, *args):
        r, others = measured([self.bins / "longshore-perf", *args, "-c", hex(1 << cpu)], [self.d.p.pid])
        return r["total"], others

    def fill(self):
        """Writes to every stripe, and to every device that becomes a member."""
        array = self.d.rpc("bdev_ec_get_bdevs", name="Ec0")[0]
        self.stripes = array["num_blocks"] * array["block_size"] // (K * STRIP)
        self.perf(self.load, *self.target, "-q", 8, "-o", "128K", "-w", "write", "-d", 2 * self.stripes, "-t", 200)
        for _ in range(2):
            self.d.replace()
            self.d.rebuilt()

    def rows(self, one):
        """So many results of `one`, which are (ratio, ..., CPU that others used), by ratio."""
        rows, void = [], 0
        while len(rows) < self.n:
            r = one()
            if r[-1] > 0.05 and void < self.n:
                void += 1
                continue
            rows.append(r)
        rows.sort()
        noise = max(r[-1] for r in rows)
        return rows, f"  VOID: others used {noise:.2f} cores" if noise > 0.05 else ""

    def idle(self):
        def one():
            plain = ["--bdev", f"malloc:{self.mib * 2}M:4096", "--prefill", "write", "-o", "64K", "-q", 8, "-t", 0.5, "-a", 0.5]
            (read, o1), (write, o2) = (self.perf(self.serve, *plain, "-w", w) for w in ("read", "write"))
            allowed = 1 / (K / read["iops"] + 1 / write["iops"])
            t0 = time.monotonic()
            self.d.replace()
            t1 = time.monotonic()
            left = self.stripes - (self.d.progress() or {}).get("stripes_done", self.stripes)
            self.d.rebuilt()
            rate = left / (time.monotonic() - t1)
            self.joins.append(t1 - t0)
            return rate / allowed, rate, allowed, read["iops"], write["iops"], max(o1, o2)

        self.joins = []
        rows, void = self.rows(one)
        share, rate, allowed, read, write, _ = rows[len(rows) // 2]
        print(f"idle: {share:.2f} ({rows[0][0]:.2f}-{rows[-1][0]:.2f}), asked 0.70: {rate:.0f} stripes/s of {allowed:.0f}"
              f" (64 KiB: {read / 1e3:.1f} k reads/s, {write / 1e3:.1f} k writes/s); joined in"
              f" {statistics.median(self.joins) * 1e3:.0f} ms{void}", flush=True)

    def loaded(self, workload):
        """Under load: p99, IOPS, others' CPU, and the fewest stripes that were rebuilt in a quarter of a second."""
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(self.perf, self.load, *self.target, "-q", 32, "-w", workload, "-t", self.s, "-a", 0.3, "-L")
            time.sleep(0.4)
            seen, steps = None, []
            while not run.done():
                now = (self.d.progress() or {}).get("stripes_rebuilt")
                if None not in (seen, now):
                    steps.append(now - seen)
                seen = now
                time.sleep(0.25)
            total, others = run.result()
        # The last one may be after the end of the load.
        return total["latency_us"]["p99"], total["iops"], others, steps[:-1]

    def under(self, workload):
        def one():
            healthy, iops0, o1, _ = self.loaded(workload)
            self.d.replace(paused=True)
            missing, iops1, o2, _ = self.loaded(workload)
            self.d.rpc("bdev_ec_set_rebuild_qos", ec_name="Ec0", paused=False)
            beside, iops2, o3, steps = self.loaded(workload)
            self.d.rebuilt()
            if not steps:
                sys.exit("the rebuild ended before it was looked at: take larger members (--mib)")
            return beside / healthy, beside / missing, (healthy, missing, beside), (iops0, iops1, iops2), steps, max(o1, o2, o3)

        rows, void = self.rows(one)
        ratio, _, p99, iops, _, _ = rows[len(rows) // 2]
        missing = sorted(r[1] for r in rows)
        steps = sorted(s for r in rows for s in r[4])
        text = lambda all, unit: ", ".join(f"{x / unit:.0f}" for x in all)
        print(f"{workload}: p99 {ratio:.2f} times healthy ({rows[0][0]:.2f}-{rows[-1][0]:.2f}), asked 1.50; {statistics.median(missing):.2f}"
              f" ({missing[0]:.2f}-{missing[-1]:.2f}) times the member missing; us: {text(p99, 1)}; k IOPS: {text(iops, 1e3)};"
              f" stripes in 0.25 s: {statistics.median(steps):.0f}, at least {steps[0]}{void}", flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", default="target/release", help="folder of longshore and longshore-perf")
    a.add_argument("--runs", type=int, default=5)
    a.add_argument("--seconds", type=float, default=1.5)
    a.add_argument("--mib", type=int, default=512, help="MiB of a member")
    a.add_argument("--list", action="store_true")
    a.add_argument("cases", nargs="*")
    a = a.parse_args()
    if a.list:
        return print("\n".join(CASES))
    if unknown := set(a.cases) - set(CASES):
        sys.exit(f"no case {', '.join(unknown)}; --list names them")
    b = Bench(a)
    with b.d:
        b.fill()
        for case in a.cases or CASES:
            b.idle() if case == "idle" else b.under(case)


if __name__ == "__main__":
    main()
