#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Call a JSON-RPC method of a running daemon: rpc.py [-s SOCK] METHOD [options].

Every method takes its parameters as --key value, where a value that is JSON is taken as JSON. The common ones also take them by
position and by the short options of SPDK's tool:

    rpc.py bdev_malloc_create 64 512 -b Malloc0
    rpc.py nvmf_create_transport -t tcp
    rpc.py nvmf_create_subsystem nqn.2016-06.io.spdk:cnode1 -a -s SN1
    rpc.py nvmf_subsystem_add_ns nqn.2016-06.io.spdk:cnode1 Malloc0
    rpc.py nvmf_subsystem_add_listener nqn.2016-06.io.spdk:cnode1 -t tcp -a 127.0.0.1 -s 4420
    rpc.py save_config > file; rpc.py load_config < file

Without a method, requests are read from standard input, one per line: a command line as above, or a JSON object {"method", "params"}.
"""
import argparse
import json
import os
import shlex
import socket
import sys
import time

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
DEFAULT_SOCKET = "/var/tmp/spdk.sock"
DEFAULT_PORT = 5260

# Positions first, then options. NAME:TYPE, where TYPE is str (also when none is given), int, json, words (separated by spaces),
# on (an option without a value that means true), off (the same for false) or mib (MiB, turned into blocks with block_size).
# "?" after a position: may be left out. "a.b" puts a member into an object.
ADDRESS = "-t/trtype:str -a/traddr:str -s/trsvcid:str -f/adrfam:str"
LISTEN = "nqn -t/listen_address.trtype -a/listen_address.traddr -s/listen_address.trsvcid -f/listen_address.adrfam"
BASE = "-p/tgt_name"
SHAPES = {
    "bdev_malloc_create": "num_blocks:mib block_size:int -b/name -u/uuid -p/physical_block_size:int -m/md_size:int"
    " -i/md_interleave:on -t/dif_type:int -d/dif_is_head_of_md:on -o/optimal_io_boundary:int",
    "bdev_malloc_delete": "name",
    "bdev_null_create": "name num_blocks:mib block_size:int -u/uuid -p/physical_block_size:int -m/md_size:int",
    "bdev_null_delete": "name",
    "bdev_null_resize": "name new_size:int",
    "bdev_aio_create": "filename name block_size:int? -r/readonly:on -f/fallocate:on -u/uuid",
    "bdev_aio_rescan": "name",
    "bdev_aio_delete": "name",
    "bdev_uring_create": "filename name block_size:int? -u/uuid",
    "bdev_uring_rescan": "name",
    "bdev_uring_delete": "name",
    "bdev_passthru_create": "-b/base_bdev_name -p/name -u/uuid",
    "bdev_passthru_delete": "name",
    "bdev_delay_create": "-b/base_bdev_name -d/name -r/avg_read_latency:int -t/p99_read_latency:int"
    " -w/avg_write_latency:int -n/p99_write_latency:int -u/uuid",
    "bdev_delay_delete": "name",
    "bdev_delay_update_latency": "delay_bdev_name latency_type latency_us:int",
    "bdev_error_create": "base_name -u/uuid",
    "bdev_error_delete": "name",
    "bdev_error_inject_error": "name io_type error_type -n/num:int -q/queue_depth:int -o/corrupt_offset:int -v/corrupt_value:int",
    "bdev_get_bdevs": "-b/name -t/timeout:int",
    "bdev_get_iostat": "-b/names:words -n/names:words -c/per_channel:on -r/reset_mode",
    "bdev_reset_iostat": "-b/name -m/mode",
    "bdev_enable_histogram": "name -e/enable:on -d/enable:off -o/opc",
    "bdev_get_histogram": "name",
    "bdev_set_qd_sampling_period": "name period:int",
    "bdev_set_qos_limit": "name --rw_ios_per_sec:int --rw_mbytes_per_sec:int --r_mbytes_per_sec:int --w_mbytes_per_sec:int",
    "bdev_examine": "-b/name",
    "bdev_set_options": "-p/bdev_io_pool_size:int -c/bdev_io_cache_size:int -e/bdev_auto_examine:on -d/bdev_auto_examine:off",
    "bdev_nvme_attach_controller": "-b/name " + ADDRESS + " -n/subnqn -q/hostnqn -i/hostaddr -c/hostsvcid -e/hdgst:on -d/ddgst:on"
    " -x/multipath --num-io-queues/num_io_queues:int -l/ctrlr_loss_timeout_sec:int -o/reconnect_delay_sec:int"
    " -u/fast_io_fail_timeout_sec:int",
    "bdev_nvme_detach_controller": "name " + ADDRESS + " -n/subnqn",
    "bdev_nvme_get_controllers": "-n/name",
    "bdev_nvme_reset_controller": "name -c/cntlid:int",
    "bdev_nvme_start_discovery": "-b/name " + ADDRESS + " -q/hostnqn -w/wait_for_attach:on -T/attach_timeout_ms:int"
    " -l/ctrlr_loss_timeout_sec:int -o/reconnect_delay_sec:int -u/fast_io_fail_timeout_sec:int",
    "bdev_nvme_stop_discovery": "-b/name",
    "bdev_nvme_set_hotplug": "-e/enable:on -d/enable:off -r/period_us:int",
    "nvmf_create_transport": "-t/trtype -q/max_queue_depth:int -m/max_io_qpairs_per_ctrlr:int -c/in_capsule_data_size:int"
    " -i/max_io_size:int -u/io_unit_size:int -a/max_aq_depth:int -n/num_shared_buffers:int -b/buf_cache_size:int"
    " -z/zcopy:on -o/c2h_success:off -y/sock_priority:int " + BASE,
    "nvmf_get_transports": "--trtype " + BASE,
    "nvmf_create_subsystem": "nqn -s/serial_number -d/model_number -m/max_namespaces:int -a/allow_any_host:on -r/ana_reporting:on"
    " -i/min_cntlid:int -I/max_cntlid:int -t/tgt_name",
    "nvmf_delete_subsystem": "nqn -t/tgt_name",
    "nvmf_get_subsystems": "nqn? -t/tgt_name",
    "nvmf_subsystem_add_ns": "nqn namespace.bdev_name -n/namespace.nsid:int -g/namespace.nguid -e/namespace.eui64 -u/namespace.uuid"
    " -a/namespace.anagrpid:int -i/namespace.no_auto_visible:on " + BASE,
    "nvmf_subsystem_remove_ns": "nqn nsid:int -t/tgt_name",
    "nvmf_subsystem_set_ns_ana_group": "nqn nsid:int anagrpid:int -t/tgt_name",
    "nvmf_ns_add_host": "nqn nsid:int host -t/tgt_name",
    "nvmf_ns_remove_host": "nqn nsid:int host -t/tgt_name",
    "nvmf_subsystem_add_host": "nqn host --psk --dhchap-key/dhchap_key --dhchap-ctrlr-key/dhchap_ctrlr_key -t/tgt_name",
    "nvmf_subsystem_remove_host": "nqn host -t/tgt_name",
    "nvmf_subsystem_allow_any_host": "nqn -e/allow_any_host:on -d/allow_any_host:off -t/tgt_name",
    "nvmf_subsystem_add_listener": LISTEN + " -k/secure_channel:on -n/ana_state -S/sock_impl " + BASE,
    "nvmf_subsystem_remove_listener": LISTEN + " " + BASE,
    "nvmf_subsystem_listener_set_ana_state": LISTEN + " -n/ana_state -g/anagrpid:int",
    "nvmf_subsystem_get_listeners": "nqn -t/tgt_name",
    "nvmf_subsystem_get_controllers": "nqn -t/tgt_name",
    "nvmf_subsystem_get_qpairs": "nqn -t/tgt_name",
    "nvmf_discovery_add_referral": "-t/address.trtype -a/address.traddr -s/address.trsvcid -f/address.adrfam -n/subnqn",
    "nvmf_discovery_remove_referral": "-t/address.trtype -a/address.traddr -s/address.trsvcid -f/address.adrfam -n/subnqn",
    "nvmf_set_max_subsystems": "-x/max_subsystems:int",
    "framework_get_config": "name",
    "framework_set_scheduler": "name -p/period:int",
    "spdk_kill_instance": "sig_name",
    "rpc_get_methods": "-c/current:on -i/include_aliases:on",
    "log_set_level": "level",
    "log_set_print_level": "level",
    "log_set_flag": "flag",
    "log_clear_flag": "flag",
    "notify_get_notifications": "-i/id:int -n/max:int",
    "sock_impl_get_options": "-i/impl_name",
    "sock_set_default_impl": "-i/impl_name",
}
# Strings that may look like numbers.
TEXT = {"name", "nqn", "host", "uuid", "trsvcid", "traddr", "serial_number", "model_number", "nguid", "eui64", "filename", "flag",
        "base_name", "base_bdev_name", "bdev_name", "hostnqn", "subnqn", "psk"}


class RpcFailure(Exception):
    """The daemon answered with an error, or not at all."""


class Client:
    """One connection: requests go out, answers come back in order."""

    def __init__(self, address, timeout, verbose):
        self.timeout, self.verbose, self.number, self.buffer = timeout, verbose, 0, ""
        self.decoder = json.JSONDecoder()
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.socket = self._connect(address)
                return
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise RpcFailure(f"cannot connect to {address}: {error.strerror or error}; is the daemon running, and is -s right?")
                time.sleep(0.05)

    def _connect(self, address):
        if os.path.exists(address) or "/" in address:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(self.timeout)
            sock.connect(address)
            return sock
        host, _, port = address.strip("[]").rpartition(":") if address.count(":") == 1 else (address, "", "")
        return socket.create_connection((host or port, int(port or DEFAULT_PORT) if host else DEFAULT_PORT), self.timeout)

    def call(self, method, params=None):
        """The result of one call."""
        self.number += 1
        request = {"jsonrpc": "2.0", "method": method, "id": self.number}
        if params:
            request["params"] = params
        if self.verbose:
            print("request:\n" + json.dumps(request, indent=2), file=sys.stderr)
        self.socket.sendall(json.dumps(request).encode())
        response = self._receive()
        if self.verbose:
            print("response:\n" + json.dumps(response, indent=2), file=sys.stderr)
        if "error" in response:
            raise RpcFailure("\n".join(["request:", json.dumps(request, indent=2), "Got JSON-RPC error response", "response:",
                                        json.dumps(response["error"], indent=2)]))
        return response["result"]

    def _receive(self):
        while True:
            text = self.buffer.lstrip()
            if text:
                try:
                    value, end = self.decoder.raw_decode(text)
                    self.buffer = text[end:]
                    return value
                except ValueError:
                    pass
            try:
                piece = self.socket.recv(65536)
            except socket.timeout:
                raise RpcFailure(f"no answer within {self.timeout} s (-t sets the limit)")
            if not piece:
                raise RpcFailure("the daemon closed the connection without an answer")
            self.buffer += piece.decode()


def convert(kind, text):
    """A value of the command line in its type."""
    if kind == "int":
        return int(text, 0)
    if kind == "mib":
        return float(text)
    if kind == "words":
        return text.split()
    if kind == "json":
        return json.loads(text)
    return text


def guess(key, text):
    """A value whose type is not declared: JSON if it is JSON."""
    if key in TEXT:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def store(params, key, value):
    """Puts a value under a key with dots."""
    *path, last = key.split(".")
    for part in path:
        params = params.setdefault(part, {})
    params[last] = value


def shape_of(method):
    """Positions [(key, type, optional)] and options {letter or word: (key, type)} of a method."""
    positions, options = [], {}
    for token in SHAPES.get(method, "").split():
        if token.startswith("-"):
            flag, _, rest = token.lstrip("-").partition("/")
            key, _, kind = (rest or flag).partition(":")
            options["-" + flag if len(flag) == 1 else "--" + flag.partition(":")[0]] = (key, kind or "str")
            for word in (key, key.rpartition(".")[2]):
                options.setdefault("--" + word, (key, kind or "str"))
                options.setdefault("--" + word.replace("_", "-"), (key, kind or "str"))
        else:
            key, _, kind = token.rstrip("?").partition(":")
            positions.append((key, kind or "str", token.endswith("?")))
            options.setdefault("--" + key.rpartition(".")[2], (key, "int" if kind == "mib" else kind or "str"))
    return positions, options


def parse_params(method, words):
    """Parameters from the words after the method."""
    positions, options = shape_of(method)
    params, blocks_from_mib, words = {}, None, list(words)
    while words:
        word = words.pop(0)
        if word.startswith("-") and len(word) > 1:
            word, _, attached = word.partition("=")
            if word not in options and not word.startswith("--"):
                raise RpcFailure(f"{method}: unknown option {word}; any parameter can be given as --name value")
            key, kind = options.get(word, (word.lstrip("-").replace("-", "_"), None))
            if kind in ("on", "off"):
                store(params, key, kind == "on")
            elif attached or (words and (kind or not words[0].startswith("--"))):
                text = attached or words.pop(0)
                store(params, key, convert(kind, text) if kind else guess(key, text))
            elif kind:
                raise RpcFailure(f"{method}: {word} needs a value")
            else:
                store(params, key, True)
        elif positions:
            key, kind, _ = positions.pop(0)
            if kind == "mib":
                blocks_from_mib = convert(kind, word)
            else:
                store(params, key, convert(kind, word))
        else:
            raise RpcFailure(f"{method}: '{word}' is one argument too many")
    if blocks_from_mib is not None:
        if "block_size" not in params:
            raise RpcFailure(f"{method}: the block size is missing")
        params["num_blocks"] = int(blocks_from_mib * 1024 * 1024) // params["block_size"]
    if method.startswith("nvmf_subsystem_") and params.get("nqn") == "discovery":
        params["nqn"] = DISCOVERY_NQN
    return params


def subsystem_config(client, name, batches=False):
    """Configuration of one subsystem."""
    return {"subsystem": name, "config": client.call("framework_get_config", {"name": name, "with_batches": batches})}


def save_config(client, _words=()):
    """Configuration of all subsystems."""
    return {"subsystems": [subsystem_config(client, s["subsystem"]) for s in client.call("framework_get_subsystems")]}


def load_config(client, text):
    """Applies a configuration: what may be called now, then the initialisation, then the rest."""
    subsystems = [[list(e) if isinstance(e, list) else [e] for e in s["config"]] for s in json.loads(text)["subsystems"] if s.get("config")]
    known = set(client.call("rpc_get_methods"))
    unknown = {e["method"] for s in subsystems for batch in s for e in batch} - known
    if unknown:
        raise RpcFailure("the daemon does not know: " + ", ".join(sorted(unknown)))
    while subsystems:
        allowed = set(client.call("rpc_get_methods", {"current": True}))
        for config in subsystems:
            for batch in config:
                for entry in [e for e in batch if e["method"] in allowed]:
                    client.call(entry["method"], entry.get("params"))
                    batch.remove(entry)
        subsystems = [left for left in ([b for b in config if b] for config in subsystems) if left]
        if "framework_start_init" in allowed:
            client.call("framework_start_init")
        elif subsystems:
            left = {e["method"] for s in subsystems for b in s for e in b}
            # As SPDK's tool: told, not an error, because a saved configuration always has some of these.
            print("skipped, because the daemon is initialised already: " + ", ".join(sorted(left)), file=sys.stderr)
            break
    return None


def file_option(words, letters, default):
    """The file named by an option of save_config and load_config."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*letters, dest="file")
    parser.add_argument("-i", "--indent", type=int, default=2)
    parser.add_argument("-n", "--name")
    known = parser.parse_args(words)
    return (open(known.file, "r" if default is sys.stdin else "w", encoding="utf-8") if known.file else default), known


def run(client, words):
    """Runs one command and prints what it answers."""
    method, words = words[0], words[1:]
    if method in ("save_config", "save_subsystem_config"):
        out, options = file_option(words, ("-f", "--file"), sys.stdout)
        value = save_config(client) if method == "save_config" else subsystem_config(client, options.name)
        print(json.dumps(value, indent=options.indent or None), file=out, flush=True)
        return
    if method == "load_config":
        source, _ = file_option(words, ("-j", "--json_file", "--json-file"), sys.stdin)
        load_config(client, source.read())
        return
    show(client.call(method, parse_params(method, words)))


def show(result):
    """Prints a result; plain success says nothing."""
    if result is True:
        return
    print(json.dumps(result, indent=2), flush=True)


def run_lines(client, lines):
    """Requests from standard input."""
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("{"):
            request = json.loads(line)
            print(json.dumps(client.call(request["method"], request.get("params")), indent=2), flush=True)
        else:
            run(client, shlex.split(line))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--server", dest="server", default=DEFAULT_SOCKET, help="socket path, or host[:port] (default: %(default)s)")
    parser.add_argument("-t", "--timeout", type=float, default=60.0, help="seconds to wait for the daemon and for an answer")
    parser.add_argument("-v", "--verbose", action="store_true", help="print requests and answers on standard error")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="METHOD [options]")
    args = parser.parse_args()
    if not args.words and sys.stdin.isatty():
        parser.error("a method is missing")
    try:
        client = Client(args.server, args.timeout, args.verbose)
        if args.words:
            run(client, args.words)
        else:
            run_lines(client, sys.stdin)
    except RpcFailure as failure:
        print(failure)
        return 1
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
