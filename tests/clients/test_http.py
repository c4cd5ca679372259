"""JSON-RPC over HTTP and metrics, as programs that cannot reach a unix socket use them: urllib here, the calls of Cinder's and
spdk-csi's clients (a POST with basic authentication, the answer's `result` or `error`), and Telegraf's (a POST, any 2xx)."""

import base64
import http.client
import json
import unittest
import urllib.error
import urllib.request

from daemon import DaemonTest, free_port

USER, PASSWORD = "spdkuser", "spdk:pass"


class Http(DaemonTest):
    def setUp(self):
        super().setUp()
        self.rpc_port, self.metrics_port = free_port(), free_port()
        self.auth = self.folder / "auth"
        self.auth.write_text(f"{USER}:{PASSWORD}\n")
        self.auth.chmod(0o600)

    def wait_init(self):
        self.assertTrue(self.call("framework_wait_init"))

    def run_daemon(self):
        self.start("--rpc-http", f"127.0.0.1:{self.rpc_port}", "--rpc-http-auth", self.auth, "--metrics", str(self.metrics_port))

    def request(self, body, password=PASSWORD):
        pair = base64.b64encode(f"{USER}:{password}".encode()).decode()
        fields = {"Content-Type": "application/json", "Authorization": f"Basic {pair}"}
        return urllib.request.Request(f"http://127.0.0.1:{self.rpc_port}/", body, fields, method="POST")

    def call(self, method, params=None):
        body = {"jsonrpc": "2.0", "id": 1, "method": method}
        if params is not None:
            body["params"] = params
        with urllib.request.urlopen(self.request(json.dumps(body).encode()), timeout=30) as answer:
            self.assertEqual(answer.status, 200)
            answer = json.load(answer)
        self.assertEqual(answer["id"], 1)
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer["result"]

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            self.assertEqual(answer.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
            return answer.read().decode()

    def test_volumes_are_made_and_exported_as_cinder_does(self):
        self.run_daemon()
        self.assertEqual(self.call("bdev_malloc_create", {"name": "M", "num_blocks": 8192, "block_size": 512}), "M")
        self.assertEqual(self.call("bdev_get_bdevs", {"name": "M"})[0]["num_blocks"], 8192)
        self.call("nvmf_create_transport", {"trtype": "TCP"})
        nqn = "nqn.2014-08.org.spdk:cnode1"
        self.call("nvmf_create_subsystem", {"nqn": nqn, "serial_number": "1", "allow_any_host": True})
        self.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": "M"}})
        address = {"trtype": "tcp", "traddr": "127.0.0.1", "adrfam": "ipv4", "trsvcid": str(self.port)}
        self.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})
        self.assertEqual([s["nqn"] for s in self.call("nvmf_get_subsystems")][1:], [nqn])
        with self.assertRaisesRegex(RuntimeError, "No such device"):
            self.call("bdev_get_bdevs", {"name": "nope"})
        text = self.metrics()
        self.assertIn('ceph_nvmeof_bdev_capacity_bytes{bdev_name="M"} 4194304\n', text)
        self.assertIn(f'ceph_nvmeof_subsystem_namespace_count{{nqn="{nqn}"}} 1\n', text)
        self.assertTrue(self.call("nvmf_delete_subsystem", {"nqn": nqn}))

    def test_wrong_credentials_are_refused_and_the_handler_of_urllib_finds_its_way(self):
        self.run_daemon()
        body = b'{"id":1,"method":"spdk_get_version"}'
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(self.request(body, "guess"), timeout=30)
        self.assertEqual(caught.exception.code, 401)
        caught.exception.close()
        # Asks without credentials first and repeats when it is told the realm.
        store = urllib.request.HTTPPasswordMgr()
        store.add_password("longshore", f"http://127.0.0.1:{self.rpc_port}/", USER, PASSWORD)
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(store))
        with opener.open(f"http://127.0.0.1:{self.rpc_port}/", body, timeout=30) as answer:
            self.assertIn("result", json.load(answer))

    def test_one_connection_carries_many_calls(self):
        self.run_daemon()
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.rpc_port, timeout=30)
        self.addCleanup(connection.close)
        for i in range(50):
            body = json.dumps({"id": i, "method": "spdk_get_version"})
            connection.request("POST", "/rpc", body, {"Authorization": f"Basic {pair}"})
            self.assertEqual(json.load(connection.getresponse())["id"], i)
        connection.request("POST", "/", "x" * (256 * 1024 + 1), {"Authorization": f"Basic {pair}"})
        self.assertEqual(connection.getresponse().status, 413)

    def test_credentials_that_others_may_read_are_refused(self):
        self.auth.chmod(0o644)
        with self.assertRaises(AssertionError) as caught:
            self.run_daemon()
        self.assertIn("chmod 600", str(caught.exception))
        self.daemon.wait()
        self.daemon = None
        with self.assertRaises(AssertionError) as caught:
            self.start("--rpc-http", f"0.0.0.0:{self.rpc_port}")
        self.assertIn("--rpc-http-auth", str(caught.exception))
        self.daemon.wait()
        self.daemon = None


if __name__ == "__main__":
    unittest.main()
