#!/usr/bin/env python3
"""Figures of docs/benchmarks.md: longshore against the raw-socket ceiling of the same machine, in interleaved pairs.

    scripts/bench.py [--bin DIR] [--pairs N] [--seconds S] [CASE...]     (default: all cases; --list names them)

With --before DIR the pair is this build's target and that of DIR: what a change gave.

Each pair runs the target with longshore-perf, and then `longshore-perf ceiling` with the same payload, connections and depth, on the
same two CPUs and as much room for what arrived. Printed is the median of the pairs' ratios, their smallest and largest, and for the median pair IOPS and CPU of
both sides, user + kernel, in cores. A pair during which other processes used more than 5 % of a core, time that the hypervisor tells it took
from us included, is void and run again, up to
as many times as there are pairs; if it stays so, the case says void. `connections` and `namespaces` print what a request costs the target's
core, three runs each; `flat-*` are pairs of it with 16 and with more of them. Needs two idle CPUs and nothing but Python.
"""
import argparse, json, os, signal, socket, statistics, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HZ = os.sysconf("SC_CLK_TCK")
NQN = "nqn.2016-06.io.longshore:bench"
PORT = 4461
# name: (bdev, depth in all, connections, bytes, workload, payload of the ceiling, least ratio asked for)
PAIRS = {
    "null-1x128": ("Null0", 128, 1, 4096, "randread", "hot", 0.75),
    "null-16x8": ("Null0", 128, 16, 4096, "randread", "hot", 0.75),
    "malloc-1x128": ("Malloc0", 128, 1, 4096, "randread", "1G", 0.85),
    "malloc-16x8": ("Malloc0", 128, 16, 4096, "randread", "1G", 0.80),
    "null-128k": ("Null0", 32, 1, 131072, "randread", "hot", 0.80),
    "malloc-128k": ("Malloc0", 32, 1, 131072, "randread", "1G", 0.80),
    "null-write-1x128": ("Null0", 128, 1, 4096, "randwrite", "hot", None),
    "null-write-16x8": ("Null0", 128, 16, 4096, "randwrite", "hot", None),
    "malloc-write-1x128": ("Malloc0", 128, 1, 4096, "randwrite", "1G", None),
    "malloc-write-16x8": ("Malloc0", 128, 16, 4096, "randwrite", "1G", None),
    "null-write-128k": ("Null0", 32, 1, 131072, "randwrite", "hot", None),
    "malloc-write-128k": ("Malloc0", 32, 1, 131072, "randwrite", "1G", None),
    "qd1": ("Null0", 1, 1, 4096, "randread", "hot", None),
    "qd1-busy": ("Null0", 1, 1, 4096, "randread", "hot", None),
}
# Options of the daemon.
OPTIONS = {"qd1-busy": ["--poll-mode", "busy"]}
# Scrapes a second, and the case that they are measured on.
SCRAPES, SCRAPED = 50, "null-1x128"
CURVE = [1, 2, 4, 8, 16, 32, 64, 128, 256]
CURVES = ("connections", "namespaces")
# From here on the cost of a request may grow by half at most.
FLAT_FROM = 16


def cpu_of(pid):
    """(user, kernel) seconds of a process so far, or None."""
    try:
        f = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(f[11]) / HZ, int(f[12]) / HZ
    except OSError:
        return None


def strangers(mine):
    """CPU seconds of all processes but those in `mine`, by pid."""
    out = {}
    for p in Path("/proc").iterdir():
        if p.name.isdigit() and int(p.name) not in mine:
            t = cpu_of(p.name)
            if t:
                out[p.name] = sum(t)
    return out


def transport_id(port):
    return f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{NQN}"


def stolen():
    """CPU seconds that other virtual machines had of our CPUs, as far as the hypervisor tells."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / HZ


def measured(line, mine=()):
    """JSON that a command of ours prints, and CPU meanwhile of all processes but it, this one and those in `mine`, stolen time included, in cores."""
    t0 = time.monotonic()
    p = subprocess.Popen([*map(str, line), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    mine = {os.getpid(), p.pid, *mine}
    before, stolen_before = strangers(mine), stolen()
    out, err = p.communicate(timeout=300)
    after, gone = strangers(mine), stolen() - stolen_before
    if p.returncode != 0:
        sys.exit(f"{line}: {err.decode()}")
    return json.loads(out), (gone + sum(t - before.get(pid, 0) for pid, t in after.items())) / (time.monotonic() - t0)


class Refused(Exception):
    """An RPC was answered with an error."""


class Daemon:
    """A daemon that serves bdevs over NVMe/TCP, on one CPU. `bdevs` are calls that make bdevs; `names` are those that are served."""

    def __init__(self, bins, cpu, bdevs, names, port=PORT, options=()):
        self.port = port
        self.dir = tempfile.TemporaryDirectory()
        self.sock = Path(self.dir.name, "rpc.sock")
        rpc = lambda subsystem, calls: {"subsystem": subsystem, "config": [{"method": m, "params": p} for m, p in calls]}
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
        nvmf = [("nvmf_create_transport", {"trtype": "TCP", "max_queue_depth": 256}),
                ("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "max_namespaces": 256})]
        nvmf += [("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": n}}) for n in names]
        nvmf += [("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": address})]
        config = Path(self.dir.name, "config.json")
        config.write_text(json.dumps({"subsystems": [rpc("bdev", bdevs), rpc("nvmf", nvmf)]}))
        self.log = open(Path(self.dir.name, "log"), "w+")
        self.p = subprocess.Popen([bins / "longshore", "-c", config, "-r", self.sock, "-m", hex(1 << cpu), *options], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 10
        while time.monotonic() < end and self.p.poll() is None:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        self.log.seek(0)
        sys.exit(f"the daemon does not serve: {self.log.read()}")

    def rpc(self, method, **params):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.sock))
            s.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params else {})}).encode())
            answer = b""
            while True:
                answer += s.recv(65536)
                try:
                    reply = json.loads(answer)
                except ValueError:
                    continue
                if "error" in reply:
                    raise Refused(f"{method}: {reply['error']}")
                return reply["result"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.send_signal(signal.SIGTERM)
        self.p.wait(30)
        self.log.close()
        self.dir.cleanup()


class Target(Daemon):
    """A daemon with one namespace, or `namespaces` of them, on the first CPU."""

    def __init__(self, bins, bdev, cpu, namespaces=1, port=PORT, options=()):
        bdevs = [("bdev_malloc_create", {"name": "Malloc0", "num_blocks": 262144, "block_size": 4096})]
        bdevs += [("bdev_null_create", {"name": f"Null{i}", "num_blocks": 262144, "block_size": 4096}) for i in range(namespaces)]
        super().__init__(bins, cpu, bdevs, [bdev] if namespaces == 1 else [f"Null{i}" for i in range(namespaces)], port, options)

    def work(self):
        """(seconds that the reactor had work, spinning left out; commands completed)"""
        r, n = self.rpc("framework_get_reactors"), self.rpc("nvmf_get_stats")
        return r["reactors"][0]["busy"] / r["tick_rate"], n["poll_groups"][0]["completed_nvme_io"]

    def cost(self, seconds):
        """Seconds of work per command, for so long, once load has begun."""
        start = self.work()[1]
        while self.work()[1] < start + 5000:
            time.sleep(0.02)
        time.sleep(0.2)
        a = self.work()
        time.sleep(seconds)
        b = self.work()
        return (b[0] - a[0]) / (b[1] - a[1])


class Bench:
    def __init__(self, a):
        self.bins, self.n, self.s = Path(a.bin), a.pairs, a.seconds
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            sys.exit("two CPUs are needed")
        self.serve, self.load = allowed[0], allowed[1]

    def perf(self, args, mine=()):
        return measured([self.bins / "longshore-perf", *args], mine)

    def run(self, target, depth, connections, size, workload):
        before = cpu_of(target.p.pid)
        r, others = self.perf(["-r", transport_id(target.port), "-q", depth, "-P", connections, "-o", size, "-w", workload, "-t", self.s, "-a", 0.3,
                               "-c", hex(1 << self.load), "--io-queue-size", max(depth // connections + 1, 16)], [target.p.pid])
        after = cpu_of(target.p.pid)
        cores = [(b - a) / (r["seconds"] + 0.3) for a, b in zip(before, after)]
        return r, cores, others

    def fill(self, target, bdev):
        """Commits the memory of a malloc device."""
        if bdev == "Malloc0":
            self.perf(["-r", transport_id(target.port), "-q", 8, "-o", "128K", "-w", "write", "-d", 8192, "-t", 60, "-c", hex(1 << self.load)])

    def change(self, name, before):
        """This build's target against that of another."""
        bdev, depth, conns, size, workload, _, _ = PAIRS[name]
        rows, void = [], 0
        with Target(self.bins, bdev, self.serve) as new, Target(Path(before), bdev, self.serve, port=PORT + 1) as old:
            self.fill(new, bdev)
            self.fill(old, bdev)
            while len(rows) < self.n:
                a, _, o1 = self.run(new, depth, conns, size, workload)
                b, _, o2 = self.run(old, depth, conns, size, workload)
                # The other target is idle meanwhile, and counts as a stranger.
                if max(o1, o2) > 0.05 and void < self.n:
                    void += 1
                    continue
                rows.append((a["total"]["iops"] / b["total"]["iops"], a["total"]["iops"], b["total"]["iops"], max(o1, o2)))
        rows.sort()
        ratio, a, b, _ = rows[len(rows) // 2]
        noise = max(r[3] for r in rows)
        print(f"{name:20} {ratio:5.2f} ({rows[0][0]:.2f}-{rows[-1][0]:.2f}) of before: {a / 1e3:7.0f} k, {b / 1e3:7.0f} k"
              f"{f'  VOID: others used {noise:.2f} cores' if noise > 0.05 else ''}", flush=True)

    def ceiling(self, depth, connections, size, workload, payload):
        r, others = self.perf(["ceiling", "-q", depth, "-P", connections, "-o", size, "-w", workload, "--payload", payload,
                               "-t", self.s, "-c", f"[{self.load},{self.serve}]"])
        return r, others

    def pair_case(self, name):
        bdev, depth, conns, size, workload, payload, least = PAIRS[name]
        rows, void = [], 0
        with Target(self.bins, bdev, self.serve, options=OPTIONS.get(name, ())) as t:
            self.fill(t, bdev)
            while len(rows) < self.n:
                r, cores, o1 = self.run(t, depth, conns, size, workload)
                # One that spins would share the ceiling's CPU.
                t.p.send_signal(signal.SIGSTOP)
                c, o2 = self.ceiling(depth, conns, size, workload, payload)
                t.p.send_signal(signal.SIGCONT)
                if max(o1, o2) > 0.05 and void < self.n:
                    void += 1
                    continue
                rows.append((r["total"]["iops"] / c["iops"], r, cores, c, max(o1, o2)))
        rows.sort(key=lambda x: x[0])
        ratio, r, cores, c, _ = rows[len(rows) // 2]
        noise = max(x[4] for x in rows)
        best = next(e for e in c["engines"] if e["engine"] == c["best"])
        cpu = lambda x: f"{x['user']:.2f}+{x['kernel']:.2f}"
        per = lambda side: f"{side[0]:.2f}+{side[1]:.2f}"
        ratio = statistics.median(x[0] for x in rows)
        print(f"{name:20} {ratio:5.2f} ({rows[0][0]:.2f}-{rows[-1][0]:.2f}){'' if least is None else f' asked {least:.2f}'}"
              f"  {r['total']['iops'] / 1e3:7.0f} k of {c['iops'] / 1e3:7.0f} k ({c['best']})"
              f"  target {per(cores)}  load {cpu(r['total']['cpu'])}  ceiling {cpu(best['server_cpu'])} / {cpu(best['client_cpu'])}"
              f"{f'  VOID: others used {noise:.2f} cores' if noise > 0.05 else ''}", flush=True)
        if depth == 1:
            extra = sorted(x[1]["total"]["latency_us"]["average"] - 1e6 / x[3]["iops"] for x in rows)
            print(f"{'':20} average latency {r['total']['latency_us']['average']:.2f} us, {statistics.median(extra):+.2f} us"
                  f" ({extra[0]:+.2f} to {extra[-1]:+.2f}) over the raw round trip", flush=True)

    def cost(self, what, n):
        """(us of the target's core for each request, IOPS, others' CPU) with `n` connections or namespaces."""
        with Target(self.bins, "Null0", self.serve, n if what == "namespaces" else 1) as t:
            # perf's depth is per namespace; a controller has 127 I/O queues at most
            if what == "connections":
                parts = -(-n // 64)
                where, depth, conns = [transport_id(t.port)] * parts, 8 * n // parts, n // parts
            else:
                where, depth, conns = [f"{transport_id(t.port)} ns:{i + 1}" for i in range(n)], 8, 1
            load = [*sum([["-r", w] for w in where], []), "-q", depth, "-P", conns, "-c", hex(1 << self.load), "--io-queue-size", 16]
            with ThreadPoolExecutor(1) as pool:
                cost = pool.submit(t.cost, self.s)
                r, others = self.perf([*load, "-t", self.s + 0.5], [t.p.pid])
                return cost.result() * 1e6, r["total"]["iops"], others

    def curve(self, what):
        print(f"{what}, 8 requests each: time per I/O that the target was busy, in us (others' CPU in cores)", flush=True)
        for n in CURVE:
            runs = sorted(self.cost(what, n) for _ in range(3))
            cost, iops, others = runs[1]
            print(f"  {n:4} {what:12} {cost:6.2f} us ({runs[0][0]:.2f}-{runs[2][0]:.2f})  {iops / 1e3:7.0f} k IOPS  ({others:.2f})", flush=True)

    def flat(self, what):
        """Pairs of points of the curve."""
        for n in (n for n in CURVE if n > FLAT_FROM):
            rows, void = [], 0
            while len(rows) < self.n:
                few, _, o1 = self.cost(what, FLAT_FROM)
                many, _, o2 = self.cost(what, n)
                if max(o1, o2) > 0.05 and void < self.n:
                    void += 1
                    continue
                rows.append((many / few, few, many, max(o1, o2)))
            rows.sort()
            ratio, few, many, _ = rows[len(rows) // 2]
            noise = max(r[3] for r in rows)
            print(f"{n:4} {what:12} {statistics.median(r[0] for r in rows):5.2f} ({rows[0][0]:.2f}-{rows[-1][0]:.2f}) of {FLAT_FROM}, asked 1.50:"
                  f" {many:.2f} us, {few:.2f} us{f'  VOID: others used {noise:.2f} cores' if noise > 0.05 else ''}", flush=True)

    def scrape(self):
        """Pairs of a saturated target without and with scrapes of its metrics, made on the same two CPUs."""
        bdev, depth, conns, size, workload, _, _ = PAIRS[SCRAPED]
        address = ("127.0.0.1", PORT + 2)
        stop = threading.Event()

        def ask():
            n, due = 0, time.monotonic()
            while not stop.is_set():
                with socket.create_connection(address) as s:
                    s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                    while s.recv(1 << 16):
                        pass
                n, due = n + 1, due + 1 / SCRAPES
                stop.wait(max(0, due - time.monotonic()))
            return n

        rows, void = [], 0
        with Target(self.bins, bdev, self.serve, options=["--metrics", f"{address[0]}:{address[1]}"]) as t, ThreadPoolExecutor(1) as pool:
            while len(rows) < self.n:
                a, _, o1 = self.run(t, depth, conns, size, workload)
                stop.clear()
                t0, asked = time.monotonic(), pool.submit(ask)
                b, _, o2 = self.run(t, depth, conns, size, workload)
                stop.set()
                rate = asked.result() / (time.monotonic() - t0)
                if max(o1, o2) > 0.05 and void < self.n:
                    void += 1
                    continue
                rows.append((b["total"]["iops"] / a["total"]["iops"], a["total"]["iops"], b["total"]["iops"], rate, max(o1, o2)))
        rows.sort()
        ratio, a, b, rate, _ = rows[len(rows) // 2]
        noise = max(r[-1] for r in rows)
        print(f"scrape {ratio:.3f} ({rows[0][0]:.3f}-{rows[-1][0]:.3f}) with {rate:.0f} scrapes a second, asker included: {(1 - ratio) / rate:.3%} for one a second,"
              f" asked 1 %: {b / 1e3:.0f} k of {a / 1e3:.0f} k IOPS{f'  VOID: others used {noise:.2f} cores' if noise > 0.05 else ''}", flush=True)

    def local(self):
        for args in ([], ["-L"]):
            runs = sorted(self.perf(["--bdev", "null", "-q", 128, "-t", 2, "-c", hex(1 << self.load), *args])[0]["total"]["iops"] for _ in range(self.n))
            print(f"local null -q 128 {' '.join(args):3} {statistics.median(runs) / 1e6:6.1f} M IOPS ({runs[0] / 1e6:.1f}-{runs[-1] / 1e6:.1f})", flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", default="target/release", help="folder of longshore and longshore-perf")
    a.add_argument("--pairs", type=int, default=7)
    a.add_argument("--seconds", type=float, default=2)
    a.add_argument("--before", help="folder of another build, to compare with instead of the ceiling")
    a.add_argument("--list", action="store_true")
    a.add_argument("cases", nargs="*")
    a = a.parse_args()
    every = [*PAIRS, *CURVES, *(f"flat-{c}" for c in CURVES), "scrape", "local"]
    if a.list:
        return print("\n".join(every))
    b = Bench(a)
    for case in a.cases or every:
        if case in PAIRS and a.before:
            b.change(case, a.before)
        elif case in PAIRS:
            b.pair_case(case)
        elif case in CURVES:
            b.curve(case)
        elif case in every and case.startswith("flat-"):
            b.flat(case.removeprefix("flat-"))
        elif case == "scrape":
            b.scrape()
        elif case == "local":
            b.local()
        else:
            sys.exit(f"no case {case}; --list names them")


if __name__ == "__main__":
    main()
