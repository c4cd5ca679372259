"""The calls of opi-spdk-bridge and of ceph-nvmeof, byte for byte as those programs send them, get the types that they read.

    LONGSHORE=target/release/longshore python3 -m unittest discover -s tests/clients
"""

import json
import socket
import subprocess
import sys
import unittest
from pathlib import Path

from daemon import DaemonTest

NQN = "nqn.2016-06.io.spdk:cnode1"
HOST = "nqn.2014-08.org.nvmexpress:uuid:6c6f6e67-0000-4000-8000-000000000001"
DISCOVERY = "nqn.2014-08.org.nvmexpress.discovery"
RPC = Path(__file__).resolve().parents[2] / "scripts" / "rpc.py"


class Refused(Exception):
    def __init__(self, error):
        super().__init__(error)
        self.code, self.message = error["code"], error["message"]


class RawTest(DaemonTest):
    def setUp(self):
        super().setUp()
        self.id = 0

    def wait_init(self):
        self.call("framework_wait_init")

    def request(self, method, params):
        self.id += 1
        request = {"jsonrpc": "2.0", "id": self.id, "method": method}
        if params is not None:
            request["params"] = params
        return json.dumps(request).encode()

    def result(self, text):
        answer = json.loads(text)
        self.assertEqual(answer["id"], self.id)
        self.assertEqual(answer["jsonrpc"], "2.0")
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    def call(self, method, params=None):
        """One connection per call: write, close the sending side, read to the end."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(str(self.socket))
            s.sendall(self.request(method, params))
            s.shutdown(socket.SHUT_WR)
            text = b""
            while piece := s.recv(65536):
                text += piece
        return self.result(text)

    def refused(self, code, message, method, params=None):
        with self.assertRaises(Refused) as caught:
            self.call(method, params)
        self.assertEqual((caught.exception.code, caught.exception.message), (code, message))

    def assertHas(self, value, **kinds):
        for key, kind in kinds.items():
            self.assertIsInstance(value[key], kind, f"{key} of {value}")


class OpiBridge(RawTest):
    def test_block_devices(self):
        self.start()
        version = self.call("spdk_get_version")
        self.assertHas(version, version=str)
        self.assertHas(version["fields"], major=int, minor=int, patch=int, suffix=str)
        make = {
            "bdev_aio_create": {"name": "OpiAio", "block_size": 512, "filename": str(self.file("aio"))},
            "bdev_malloc_create": {"num_blocks": 64, "block_size": 512, "md_size": 8, "md_interleave": True, "name": "OpiMalloc",
                                   "uuid": "11111111-2222-4333-8444-555555555555"},
            "bdev_null_create": {"block_size": 512, "num_blocks": 64, "name": "OpiNull"},
        }
        for method, params in make.items():
            self.assertEqual(self.call(method, params), params["name"])
        self.assertEqual(self.call("bdev_malloc_create", {"num_blocks": 64, "block_size": 512, "md_interleave": True, "name": "M2"}), "M2")
        every = self.call("bdev_get_bdevs")
        self.assertEqual(len(every), 4)
        for bdev in every:
            self.assertHas(bdev, name=str, block_size=int, num_blocks=int, uuid=str)
        one = self.call("bdev_get_bdevs", {"name": "OpiMalloc"})
        self.assertEqual([b["uuid"] for b in one], ["11111111-2222-4333-8444-555555555555"])
        stat = self.call("bdev_get_iostat", {"name": "OpiNull"})
        self.assertHas(stat, tick_rate=int, ticks=int)
        self.assertHas(stat["bdevs"][0], name=str, bytes_read=int, num_read_ops=int, bytes_written=int, num_write_ops=int, bytes_unmapped=int,
                       num_unmap_ops=int, read_latency_ticks=int, write_latency_ticks=int, unmap_latency_ticks=int)
        limits = {"rw_ios_per_sec": 5000, "rw_mbytes_per_sec": 10, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0}
        self.assertIs(self.call("bdev_set_qos_limit", {"name": "OpiNull", **limits}), True)
        self.assertIs(self.call("bdev_set_qos_limit", {"name": "OpiNull", **dict.fromkeys(limits, 0)}), True)
        for method in make:
            self.assertIs(self.call(method.replace("create", "delete"), {"name": make[method]["name"]}), True)
        self.refused(-19, "No such device", "bdev_null_delete", {"name": "OpiNull"})

    def test_subsystems(self):
        self.start()
        self.call("bdev_null_create", {"block_size": 512, "num_blocks": 64, "name": "N"})
        self.assertIs(self.call("nvmf_create_transport", {"trtype": "TCP", "io_unit_size": 8192, "max_io_qpairs_per_ctrlr": 4,
                                                          "in_capsule_data_size": 0}), True)
        self.assertIs(self.call("nvmf_create_subsystem", {"nqn": NQN, "serial_number": "", "model_number": "", "allow_any_host": False,
                                                          "max_namespaces": 0}), True)
        address = {"trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": str(self.port), "adrfam": "ipv4"}
        self.assertIs(self.call("nvmf_subsystem_add_listener", {"nqn": NQN, "secure_channel": False, "listen_address": address}), True)
        self.assertEqual(self.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"nsid": 0, "bdev_name": "N"}}), 1)
        self.assertIs(self.call("nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST}), True)
        self.refused(-95, "Operation not supported", "nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST + "x", "psk": "/tmp/key"})
        self.refused(-95, "Operation not supported", "nvmf_subsystem_add_listener",
                     {"nqn": NQN, "secure_channel": True, "listen_address": {**address, "trsvcid": "1"}})
        subsystem = next(s for s in self.call("nvmf_get_subsystems") if s["nqn"] == NQN)
        self.assertHas(subsystem, subtype=str, listen_addresses=list, allow_any_host=bool, hosts=list, serial_number=str, model_number=str,
                       max_namespaces=int, min_cntlid=int, max_cntlid=int, namespaces=list)
        self.assertEqual(subsystem["namespaces"][0]["name"], "N")
        stats = self.call("nvmf_get_stats")
        self.assertHas(stats, tick_rate=int, poll_groups=list)
        self.assertHas(stats["poll_groups"][0], name=str, admin_qpairs=int, io_qpairs=int, current_admin_qpairs=int, current_io_qpairs=int,
                       pending_bdev_io=int, transports=list)
        self.assertIs(self.call("nvmf_subsystem_remove_ns", {"nqn": NQN, "nsid": 1}), True)
        self.assertIs(self.call("nvmf_subsystem_remove_listener", {"nqn": NQN, "secure_channel": False, "listen_address": address}), True)
        self.assertIs(self.call("nvmf_delete_subsystem", {"nqn": NQN}), True)


class CephNvmeof(RawTest):
    def test_a_gateway(self):
        self.start()
        transport = {"trtype": "tcp", "in_capsule_data_size": 8192, "max_io_qpairs_per_ctrlr": 7, "max_queue_depth": 128,
                     "max_io_size": 131072, "io_unit_size": 131072, "zcopy": False}
        self.assertIs(self.call("nvmf_create_transport", transport), True)
        self.call("spdk_get_version")
        self.assertIs(self.call("nvmf_delete_subsystem", {"nqn": DISCOVERY}), True)
        self.assertIs(self.call("nvmf_create_subsystem", {
            "nqn": NQN, "serial_number": "Ceph123", "model_number": "Ceph bdev Controller", "max_namespaces": 256, "min_cntlid": 1,
            "max_cntlid": 2040, "ana_reporting": True}), True)
        self.call("bdev_malloc_create", {"name": "R", "num_blocks": 2048, "block_size": 512})
        namespace = {"bdev_name": "R", "nsid": 5, "anagrpid": 1, "uuid": "11111111-2222-4333-8444-555555555555", "no_auto_visible": True}
        self.assertEqual(self.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": namespace}), 5)
        self.assertIs(self.call("nvmf_subsystem_set_ns_ana_group", {"nqn": NQN, "nsid": 5, "anagrpid": 2}), True)
        self.assertIs(self.call("nvmf_subsystem_set_ns_ana_group", {"nqn": NQN, "nsid": 5, "anagrpid": 1, "transit_anagrpid": 0}), True)
        address = {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": str(self.port), "adrfam": "IPv4"}
        self.assertIs(self.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": address}), True)
        for state in [{"ana_state": "inaccessible"}, {"ana_state": "optimized", "anagrpid": 1}]:
            self.assertIs(self.call("nvmf_subsystem_listener_set_ana_state", {"nqn": NQN, "listen_address": address, **state}), True)
        states = self.call("nvmf_subsystem_get_listeners", {"nqn": NQN})[0]["ana_states"]
        self.assertEqual([s["ana_state"] for s in states[:2]], ["optimized", "inaccessible"])
        self.assertIs(self.call("nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST}), True)
        self.refused(-95, "Operation not supported", "nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST + "x", "dhchap_key": "k"})
        self.assertIs(self.call("nvmf_ns_add_host", {"nqn": NQN, "nsid": 5, "host": HOST}), True)
        self.assertIs(self.call("nvmf_ns_remove_host", {"nqn": NQN, "nsid": 5, "host": HOST}), True)
        self.assertIs(self.call("nvmf_subsystem_allow_any_host", {"nqn": NQN, "allow_any_host": True}), True)
        for params in [{}, {"nqn": NQN}]:
            subsystem = next(s for s in self.call("nvmf_get_subsystems", params) if s["nqn"] == NQN)
            self.assertHas(subsystem, subtype=str, serial_number=str, model_number=str, allow_any_host=bool, max_namespaces=int)
            self.assertHas(subsystem["hosts"][0], nqn=str)
            self.assertHas(subsystem["namespaces"][0], nsid=int, bdev_name=str, uuid=str, nguid=str, anagrpid=int)
        self.assertEqual(self.call("nvmf_subsystem_get_controllers", {"nqn": NQN}), [])
        self.assertEqual(self.call("nvmf_subsystem_get_qpairs", {"nqn": NQN}), [])
        self.assertHas(self.call("bdev_get_iostat", {"name": "R"})["bdevs"][0], max_read_latency_ticks=int, min_write_latency_ticks=int,
                       bytes_copied=int, io_error=dict)
        self.call("bdev_set_qos_limit", {"name": "R", "rw_ios_per_sec": 2000})
        self.call("bdev_set_qos_limit", {"name": "R", "r_mbytes_per_sec": 5})
        limits = self.call("bdev_get_bdevs", {"name": "R"})[0]["assigned_rate_limits"]
        self.assertEqual((limits["rw_ios_per_sec"], limits["r_mbytes_per_sec"]), (2000, 5))
        flags = self.call("log_get_flags")
        nvmf = [flag for flag in flags if flag.startswith("nvmf")]
        self.assertTrue(nvmf)
        for flag in nvmf:
            self.assertIs(self.call("log_set_flag", {"flag": flag}), True)
            self.assertIs(self.call("log_clear_flag", {"flag": flag}), True)
        for which in ["log_get_level", "log_get_print_level"]:
            level = self.call(which)
            self.assertIs(self.call(which.replace("get", "set"), {"level": level}), True)
        threads = self.call("thread_get_stats")["threads"]
        self.assertTrue(any("poll" in t["name"] for t in threads))
        self.assertHas(threads[0], busy=int, idle=int)
        self.assertIs(self.call("nvmf_subsystem_remove_host", {"nqn": NQN, "host": HOST}), True)
        self.assertIs(self.call("nvmf_subsystem_remove_listener", {"nqn": NQN, "listen_address": address}), True)
        self.assertIs(self.call("nvmf_subsystem_remove_ns", {"nqn": NQN, "nsid": 5}), True)
        self.assertIs(self.call("nvmf_delete_subsystem", {"nqn": NQN}), True)


class OwnScript(RawTest):
    """scripts/rpc.py, with the words of SPDK's tool."""

    def script(self, *words, stdin=None):
        run = subprocess.run([sys.executable, RPC, "-s", self.socket, "-t", "30", *map(str, words)], input=stdin or "", capture_output=True,
                             text=True, timeout=60)
        return run.returncode, run.stdout

    def good(self, *words, stdin=None):
        status, out = self.script(*words, stdin=stdin)
        self.assertEqual(status, 0, out)
        return out

    def build(self):
        self.assertEqual(json.loads(self.good("bdev_malloc_create", 16, 512, "-b", "M0")), "M0")
        self.good("bdev_passthru_create", "-b", "M0", "-p", "P0")
        self.good("nvmf_create_transport", "-t", "tcp", "-u", 8192, "-o")
        self.good("nvmf_create_subsystem", NQN, "-s", "LS1", "-m", 4)
        self.good("nvmf_subsystem_add_ns", NQN, "P0", "-n", 2)
        self.good("nvmf_subsystem_add_host", NQN, HOST)
        self.good("nvmf_subsystem_add_listener", NQN, "-t", "tcp", "-a", "127.0.0.1", "-s", self.port)

    def test_builds_saves_and_loads(self):
        self.start()
        self.build()
        subsystem = json.loads(self.good("nvmf_get_subsystems", NQN))[0]
        self.assertEqual([n["nsid"] for n in subsystem["namespaces"]], [2])
        first = self.good("save_config")
        self.stop()
        self.start("--wait-for-rpc")
        self.good("load_config", stdin=first)
        self.assertEqual(self.good("save_config"), first)

    def test_errors_are_printed_and_end_with_status_1(self):
        self.start()
        status, out = self.script("bdev_null_delete", "absent")
        self.assertEqual(status, 1)
        self.assertIn("Got JSON-RPC error response\nresponse:", out)
        self.assertIn('"code": -19', out)
        self.assertEqual(self.script("bdev_null_delete", "a", "b")[0], 1)

    def test_any_method_takes_any_parameter(self):
        self.start()
        self.good("bdev_null_create", "--name", "N", "--num_blocks", 64, "--block-size", 512)
        self.good("bdev_set_qos_limit", "--name", "N", "--rw_ios_per_sec", 1000)
        out = self.good(stdin='bdev_get_bdevs -b N\n{"method": "log_get_level"}\n# nothing\n')
        self.assertIn('"rw_ios_per_sec": 1000', out)
        self.assertIn('"NOTICE"', out)


if __name__ == "__main__":
    unittest.main()
