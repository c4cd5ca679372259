"""A daemon of its own for each test, in a scratch folder; nothing else of the machine is touched."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

DAEMON = Path(os.environ.get("LONGSHORE", "target/release/longshore")).resolve()
START_SECONDS = 30


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class DaemonTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="longshore-client."))
        self.addCleanup(shutil.rmtree, self.folder)
        self.socket = self.folder / "rpc.sock"
        self.port = free_port()
        self.daemon = None
        self.addCleanup(self.stop)

    def start(self, *options):
        log = open(self.folder / "log", "ab")
        self.addCleanup(log.close)
        self.daemon = subprocess.Popen([DAEMON, "-r", self.socket, "-m", "0x1", *options], stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self.daemon.poll() is not None or time.monotonic() > end:
                self.fail(f"no RPC socket: {self.log()}")
            time.sleep(0.01)
        if "--wait-for-rpc" not in options:
            self.wait_init()

    def wait_init(self):
        raise NotImplementedError

    def log(self):
        return (self.folder / "log").read_text()[-2000:]

    def stop(self):
        if self.daemon is None:
            return
        self.daemon.send_signal(signal.SIGTERM)
        try:
            status = self.daemon.wait(20)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            status = self.daemon.wait()
        self.daemon = None
        self.assertEqual(status, 0, self.log())

    def file(self, name):
        path = self.folder / name
        with open(path, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, 16 << 20)
        return path
