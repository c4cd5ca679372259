#!/usr/bin/env python3
"""Runs the guest topics: a Linux NVMe/TCP host in a virtual machine against the daemon on this machine.

One boot runs all topics. A topic is a shell script that runs in the guest and asks this process, over a
virtio port, for what only the machine outside can do: start, kill and configure the daemon. Requests and
answers are one line each; nothing is ever waited for by sleeping a fixed time.

Standard library only. See README.md beside this file.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
sys.path.insert(0, str(HERE))

import replay  # noqa: E402

START_SECONDS = 20
STOP_SECONDS = 20


class Refused(Exception):
    """An RPC error, or a request that cannot be met; its text goes to the guest."""


def rpc_call(path, method, params=None, timeout=60.0):
    """One call on its own connection; returns the result."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params is not None:
        request["params"] = params
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(timeout)
        s.connect(str(path))
        s.sendall(json.dumps(request).encode())
        data = b""
        while True:
            more = s.recv(1 << 16)
            if not more:
                raise Refused(f"{method}: connection closed after {len(data)} bytes of answer")
            data += more
            try:
                answer = json.loads(data)
                break
            except json.JSONDecodeError:
                continue
    if "error" in answer:
        raise Refused(f"{method}: {json.dumps(answer['error'])}")
    return answer["result"]


class Daemon:
    """The daemon under test, its state folder and its RPC socket."""

    def __init__(self, binary, folder, cores):
        self.binary = binary
        self.folder = folder
        self.cores = cores
        self.log = folder / "daemon.log"
        self.process = None
        self.generation = 0
        self.state = None
        self.socket = None
        self.saved = None
        self.problems = []

    def fresh(self):
        """A daemon with nothing configured, in an empty folder."""
        self.stop()
        self.generation += 1
        self.state = self.folder / f"state{self.generation}"
        self.state.mkdir()
        self.socket = self.state / "rpc.sock"
        self.saved = self.state / "saved.json"
        self.start_empty()

    def start_empty(self):
        empty = self.state / "empty.json"
        empty.write_text('{"subsystems": []}')
        self.start(empty)

    def start(self, config):
        if self.process is not None:
            raise Refused("the daemon runs already")
        with open(self.log, "ab") as log:
            log.write(f"--- start {config}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [self.binary, "-r", str(self.socket), "-m", self.cores, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.state,
                env={**os.environ, "HOME": str(self.state), "XDG_STATE_HOME": str(self.state)},
            )
        end = time.monotonic() + START_SECONDS
        while True:
            status = self.process.poll()
            if status is not None:
                self.process = None
                raise Refused(f"the daemon ended with status {status} at start; see {self.log}")
            try:
                # answered only when the whole configuration is applied
                rpc_call(self.socket, "framework_wait_init", timeout=START_SECONDS)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                # the socket appears when the daemon listens; there is nothing to wait on before that
                if time.monotonic() > end:
                    raise Refused(f"no RPC socket after {START_SECONDS} s; see {self.log}") from None
                time.sleep(0.01)

    def expect_alive(self):
        if self.process is None:
            raise Refused("the daemon does not run")
        status = self.process.poll()
        if status is not None:
            self.process = None
            self.problems.append(f"the daemon ended by itself with status {status}")
            raise Refused(f"{self.problems[-1]}; see {self.log}")

    def rpc(self, method, params=None):
        self.expect_alive()
        return rpc_call(self.socket, method, params)

    def kill9(self):
        self.expect_alive()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self):
        """Orderly; raises if the daemon does not end by itself with status 0."""
        if self.process is None:
            return
        self.expect_alive()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.process = None
            raise Refused(f"the daemon did not end within {STOP_SECONDS} s of SIGTERM") from None
        self.process = None
        if status != 0:
            raise Refused(f"the daemon ended with status {status} on SIGTERM; see {self.log}")

    def client(self, *words, stdin=None):
        """scripts/rpc.py, as an operator would."""
        self.expect_alive()
        run = subprocess.run([REPO / "scripts/rpc.py", "-s", str(self.socket), *words], input=stdin, capture_output=True,
                             text=True, timeout=60)
        if run.returncode != 0:
            raise Refused(f"rpc.py {' '.join(words)}: {run.stdout}{run.stderr}")
        return run.stdout

    def save(self):
        self.saved.write_text(self.client("save_config"))

    def load(self):
        self.client("load_config", stdin=self.saved.read_text())


class Control:
    """Answers the guest's requests, one line each: `VERB ARGUMENTS` -> `ok TEXT` or `error TEXT`."""

    def __init__(self, daemon, port, path):
        self.daemon = daemon
        self.port = port
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:  # a machine that had to be started again connects again
            connection, _ = self.listener.accept()
            self.serve_one(connection)

    def serve_one(self, connection):
        with connection, connection.makefile("rwb", buffering=0) as line_io:
            for line in line_io:
                words = line.decode(errors="replace").strip()
                if not words:
                    continue
                try:
                    answer = "ok " + self.answer(*words.split(" ", 1))
                except Refused as e:
                    answer = f"error {e}"
                except Exception as e:  # a defect here must reach the guest, or it waits for ever
                    answer = f"error {type(e).__name__}: {e}"
                line_io.write(answer.replace("\n", " ").encode() + b"\n")

    def answer(self, verb, rest=""):
        d = self.daemon
        match verb:
            case "fresh":
                d.fresh()
            case "rpc":
                method, _, params = rest.partition(" ")
                result = d.rpc(method, json.loads(params) if params else None)
                return json.dumps(result, separators=(",", ":"))
            case "port":
                return str(self.port)
            case "file":  # NAME BYTES: a file of the back end, with its blocks allocated
                name, size = rest.split()
                path = d.state / name
                with open(path, "ab") as f:
                    os.posix_fallocate(f.fileno(), 0, int(size))
                    os.truncate(path, int(size))
                return str(path)
            case "sparse":  # NAME BYTES: the same without blocks
                name, size = rest.split()
                path = d.state / name
                with open(path, "wb") as f:
                    f.truncate(int(size))
                return str(path)
            case "save":
                d.save()
            case "kill9":
                d.kill9()
            case "stop":
                d.stop()
            case "start-config":
                d.start(d.saved)
            case "start-load":
                d.start_empty()
                d.load()
            case _:
                raise Refused(f"unknown request {verb!r}")
        return ""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def find_binary(given):
    if given:
        return Path(given).resolve()
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "longshore", "--example", "custom_bdev"], cwd=REPO, check=True)
    return target / "release" / "longshore"


def main():
    topics = sorted(p.stem for p in (HERE / "topics").glob("*.sh"))
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("topic", nargs="*", help=f"of: {' '.join(topics)} (default: all)")
    p.add_argument("--bin", help="the daemon (default: built here, release profile)")
    p.add_argument("--cores", default="0x3", help="the daemon's core mask (default 0x3)")
    p.add_argument("--target", choices=["longshore", "nvmet"], default="longshore",
                   help="nvmet: the guest kernel's own target, to tell a wrong script from a wrong daemon")
    p.add_argument("--timeout", type=int, default=900, help="seconds for the whole boot (default 900)")
    p.add_argument("--keep", help="folder for logs and state, kept (default: a scratch folder, kept on failure)")
    a = p.parse_args()
    chosen = a.topic or topics
    if unknown := set(chosen) - set(topics):
        p.error(f"no such topic: {' '.join(sorted(unknown))}")

    subprocess.run([REPO / "scripts/testbed/build"], check=True)
    work = Path(a.keep).resolve() if a.keep else Path(tempfile.mkdtemp(prefix="longshore-guest."))
    share = work / "share"
    for old in [share, work / "daemon.log", *work.glob("state*")]:  # of an earlier run with --keep
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    share.mkdir(parents=True)
    for item in HERE.iterdir():
        if item.is_dir() and item.name == "topics":
            shutil.copytree(item, share / item.name)
        elif item.is_file():
            shutil.copy(item, share)

    port = free_port() if a.target == "longshore" else 4420
    disks = replay.make_disks(work) if "durability" in chosen else []
    daemon = None
    vm = [REPO / "scripts/testbed/vm", "--share", share, "--timeout", str(a.timeout), "--log", work / "console",
          "--control", work / "control.sock"]
    for serial, path in disks:
        vm += ["--disk", f"{serial}={path}"]
    vm += ["--", "./topics.sh", a.target, str(port), *chosen]
    (work / "control.sock").unlink(missing_ok=True)
    if a.target == "longshore":
        binary = find_binary(a.bin)
        shutil.copy(binary, share / "longshore")
        for example in (binary.parent / "examples").glob("custom_bdev"):
            shutil.copy(example, share)
        daemon = Daemon(binary, work, a.cores)
    Control(daemon, port, work / "control.sock")
    try:
        subprocess.run([str(word) for word in vm], check=False)
    finally:
        if daemon and daemon.process:
            try:
                daemon.stop()
            except Refused as e:
                daemon.problems.append(str(e))

    # A topic that the guest never came to, or that did not end, counts as failed.
    verdicts = {}
    results = share / "results"
    for line in results.read_text().splitlines() if results.exists() else []:
        if m := re.fullmatch(r"(PASS|FAIL) (\S+)", line):
            verdicts[m[2]] = m[1] == "PASS"
    if verdicts.get("durability"):
        try:
            print(replay.check(dict(disks)["log"], dict(disks)["data"], share / "durability.journal"))
        except replay.Lost as e:
            print(f"FAIL durability: {e}")
            verdicts["durability"] = False
    failed = [t for t in chosen if not verdicts.get(t)]
    for topic in failed:
        if topic not in verdicts:
            print(f"FAIL {topic}: not run to its end")
    if daemon and daemon.problems:
        failed.append("daemon")
        for problem in daemon.problems:
            print(f"FAIL daemon: {problem}")
    if failed:
        print(f"console, daemon.log and state are in {work}")
        if daemon and daemon.log.exists():
            print("last lines of daemon.log:")
            for line in daemon.log.read_text(errors="replace").splitlines()[-30:]:
                print("    " + line)
    elif not a.keep:
        shutil.rmtree(work)
    print(f"{len(chosen) + len(daemon.problems if daemon else []) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
