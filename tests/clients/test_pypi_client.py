"""The PyPI package `spdk`, unmodified, drives the daemon.

    pip install spdk==26.9
    LONGSHORE=target/release/longshore SPDK_RPC=$(which spdk-rpc) python3 -m unittest discover -s tests/clients
"""

import json
import os
import shlex
import socket
import subprocess
import unittest

from daemon import DaemonTest

CLIENT = shlex.split(os.environ.get("SPDK_RPC", "spdk-rpc"))
NQN = "nqn.2016-06.io.spdk:cnode1"
HOST = "nqn.2014-08.org.nvmexpress:uuid:6c6f6e67-0000-4000-8000-000000000001"


class Failed(Exception):
    """The client ended with a status other than 0; the text is what it printed."""


class ClientTest(DaemonTest):
    def wait_init(self):
        self.rpc("framework_wait_init")

    def client(self, *words, stdin=None):
        run = subprocess.run([*CLIENT, "-s", self.socket, *map(str, words)], input=stdin, capture_output=True, text=True,
                             timeout=60)
        if run.returncode != 0:
            raise Failed(f"{words}: {run.stdout}{run.stderr}\n{(self.folder / 'log').read_text()[-2000:]}")
        return run.stdout

    def rpc(self, *words):
        """The client's answer: JSON, or else the text."""
        out = self.client(*words)
        try:
            return json.loads(out)
        except json.JSONDecodeError:
            return out.strip()

    def refused(self, text, *words):
        with self.assertRaises(Failed) as caught:
            self.client(*words)
        self.assertIn(text, str(caught.exception))

    def names(self):
        return sorted(b["name"] for b in self.rpc("bdev_get_bdevs"))

    def create_every_kind(self):
        self.assertEqual(self.rpc("bdev_malloc_create", "-b", "M0", 16, 512), "M0")
        self.assertEqual(self.rpc("bdev_malloc_create", 8, 4096), "Malloc0")
        self.assertEqual(self.rpc("bdev_null_create", "N0", 64, 4096), "N0")
        self.assertEqual(self.rpc("bdev_uring_create", self.file("u"), "U0", 512), "U0")
        self.assertEqual(self.rpc("bdev_aio_create", self.file("a"), "A0", 512), "A0")
        self.assertEqual(self.rpc("bdev_passthru_create", "-b", "M0", "-p", "P0"), "P0")
        self.assertEqual(self.rpc("bdev_delay_create", "-b", "Malloc0", "-d", "D0", "-r", 10, "-t", 20, "-w", 10, "-n", 20), "D0")
        self.client("bdev_error_create", "N0")

    def create_subsystem(self):
        self.client("nvmf_create_transport", "-t", "TCP", "-q", 64, "-c", 8192)
        self.client("nvmf_create_subsystem", NQN, "-s", "LS0001", "-d", "Longshore", "-m", 8, "-r", "-i", 10, "-I", 200)
        self.client("nvmf_subsystem_add_host", NQN, HOST)
        # The client prints no namespace identifier; nvmf_get_subsystems shows them.
        self.client("nvmf_subsystem_add_ns", NQN, "P0", "-n", 1)
        self.client("nvmf_subsystem_add_ns", NQN, "U0", "-n", 3, "-g", "000102030405060708090a0b0c0d0e0f", "-i")
        self.client("nvmf_ns_add_host", NQN, 3, HOST)
        self.client("nvmf_subsystem_add_listener", NQN, "-t", "TCP", "-a", "127.0.0.1", "-f", "IPv4", "-s", self.port)
        self.client("nvmf_discovery_add_referral", "-t", "TCP", "-a", "127.0.0.1", "-f", "IPv4", "-s", 8009)

    def saved(self):
        return self.client("save_config")


class EveryBdevKind(ClientTest):
    def test_is_created_listed_and_deleted(self):
        self.start()
        self.assertEqual(self.names(), [])
        self.create_every_kind()
        self.assertEqual(self.names(), sorted(["M0", "Malloc0", "N0", "U0", "A0", "P0", "D0", "EE_N0"]))
        one = self.rpc("bdev_get_bdevs", "-b", "M0")[0]
        self.assertEqual((one["block_size"], one["num_blocks"], one["claimed"]), (512, 32768, True))
        self.refused("No such device", "bdev_get_bdevs", "-b", "absent")
        self.refused("File exists", "bdev_malloc_create", "-b", "M0", 16, 512)
        self.client("bdev_error_inject_error", "EE_N0", "read", "failure", "-n", 2)
        self.client("bdev_delay_update_latency", "D0", "avg_read", 50)
        self.client("bdev_null_resize", "N0", 128)
        self.client("bdev_set_qos_limit", "M0", "--rw-ios-per-sec", 20000)
        self.assertEqual(self.rpc("bdev_get_bdevs", "-b", "M0")[0]["assigned_rate_limits"]["rw_ios_per_sec"], 20000)
        self.client("bdev_enable_histogram", "M0", "--histogram")
        self.assertIn("tick_rate", self.rpc("bdev_get_iostat", "--names", "M0"))
        for kind, name in [("error", "EE_N0"), ("delay", "D0"), ("passthru", "P0"), ("aio", "A0"), ("uring", "U0"),
                           ("null", "N0"), ("malloc", "Malloc0"), ("malloc", "M0")]:
            self.client(f"bdev_{kind}_delete", name)
            self.assertNotIn(name, self.names())
        self.refused("No such device", "bdev_malloc_delete", "M0")


class ASubsystem(ClientTest):
    def test_is_created_changed_and_deleted(self):
        self.start()
        self.create_every_kind()
        self.create_subsystem()
        discovery, subsystem = self.rpc("nvmf_get_subsystems")
        self.assertEqual(discovery["subtype"], "Discovery")
        self.assertEqual(subsystem["nqn"], NQN)
        self.assertEqual(subsystem["serial_number"], "LS0001")
        self.assertEqual([n["nsid"] for n in subsystem["namespaces"]], [1, 3])
        self.assertEqual(subsystem["namespaces"][1]["nguid"], "000102030405060708090A0B0C0D0E0F")
        self.assertEqual([h["nqn"] for h in subsystem["hosts"]], [HOST])
        self.assertEqual(subsystem["listen_addresses"],
                         [{"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port)}])
        socket.create_connection(("127.0.0.1", self.port), 5).close()
        self.client("nvmf_subsystem_listener_set_ana_state", NQN, "-n", "inaccessible", "-t", "tcp", "-a", "127.0.0.1",
                    "-f", "ipv4", "-s", self.port)
        states = self.rpc("nvmf_subsystem_get_listeners", NQN)[0]["ana_states"]
        self.assertEqual({s["ana_state"] for s in states}, {"inaccessible"})
        self.client("nvmf_ns_remove_host", NQN, 3, HOST)
        self.client("nvmf_subsystem_remove_ns", NQN, 3)
        self.client("nvmf_subsystem_allow_any_host", NQN, "--allow-any-host")
        self.client("nvmf_subsystem_remove_host", NQN, HOST)
        self.assertEqual(self.rpc("nvmf_subsystem_get_controllers", NQN), [])
        self.assertEqual(self.rpc("nvmf_subsystem_get_qpairs", NQN), [])
        self.assertEqual(len(self.rpc("nvmf_get_stats")["poll_groups"]), 1)
        self.refused("Subsystem with NQN 'nqn.2016-06.io.spdk:absent' not found", "nvmf_subsystem_remove_ns",
                     "nqn.2016-06.io.spdk:absent", 1)
        self.client("nvmf_subsystem_remove_listener", NQN, "-t", "TCP", "-a", "127.0.0.1", "-f", "IPv4", "-s", self.port)
        self.client("nvmf_delete_subsystem", NQN)
        self.assertEqual(len(self.rpc("nvmf_get_subsystems")), 1)

    def test_is_attached_by_the_daemons_own_initiator(self):
        self.start()
        self.create_every_kind()
        self.create_subsystem()
        self.assertEqual(self.client("bdev_nvme_attach_controller", "-b", "X", "-t", "tcp", "-a", "127.0.0.1", "-f", "ipv4",
                                     "-s", self.port, "-n", NQN, "-q", HOST).split(), ["Xn1", "Xn3"])
        self.assertEqual(self.rpc("bdev_nvme_get_controllers")[0]["name"], "X")
        self.assertEqual(self.rpc("nvmf_subsystem_get_controllers", NQN)[0]["hostnqn"], HOST)
        self.client("bdev_nvme_detach_controller", "X")
        self.assertNotIn("Xn1", self.names())


class AConfiguration(ClientTest):
    def test_saved_and_loaded_is_the_same(self):
        self.start()
        self.create_every_kind()
        self.create_subsystem()
        self.client("bdev_set_qos_limit", "M0", "--rw-ios-per-sec", 20000)
        first = self.saved()
        self.assertIn('"nvmf_subsystem_add_listener"', first)
        self.stop()
        self.start()
        self.client("load_config", stdin=first)
        self.assertEqual(self.saved(), first)

    def test_saved_and_given_at_start_is_the_same(self):
        self.start()
        self.create_every_kind()
        self.create_subsystem()
        first = self.saved()
        self.stop()
        (self.folder / "saved.json").write_text(first)
        self.start("-c", self.folder / "saved.json")
        self.assertEqual(self.saved(), first)

    def test_waits_for_framework_start_init(self):
        self.start("--wait-for-rpc")
        self.refused("framework_start_init", "bdev_malloc_create", "-b", "M0", 16, 512)
        self.client("bdev_set_options", "-p", 4096, "-c", 128)
        self.client("framework_start_init")
        self.assertEqual(self.rpc("bdev_malloc_create", "-b", "M0", 16, 512), "M0")
        self.assertIn('"bdev_io_pool_size": 4096', self.saved())


class Scripts(ClientTest):
    def test_many_calls_from_standard_input(self):
        self.start()
        out = self.client(stdin="bdev_malloc_create -b A 8 512\nbdev_malloc_create -b B 8 512\nbdev_get_bdevs\n")
        self.assertIn('"B"', out)

    def test_the_client_can_end_the_daemon(self):
        self.start()
        self.client("spdk_kill_instance", "SIGTERM")
        self.assertEqual(self.daemon.wait(20), 0)
        self.daemon = None


if __name__ == "__main__":
    unittest.main()
