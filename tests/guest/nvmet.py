#!/usr/bin/env python3
"""In the guest: meets a topic's requests with the kernel's own target instead of the daemon (run.py --target nvmet),
so that a topic that fails on the daemon can be tried on a target that others wrote. One request per start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("/sys/kernel/config/nvmet")
STATE = Path("/run/nvmet")
PORT = ROOT / "ports/1"
ANA = {"optimized": "optimized", "non_optimized": "non-optimized", "inaccessible": "inaccessible"}


def subsystem(params):
    return ROOT / "subsystems" / params["nqn"]


def listen(name):
    (PORT / "subsystems" / name).symlink_to(ROOT / "subsystems" / name)


def unlisten():
    names = [link.name for link in (PORT / "subsystems").iterdir()]
    for name in names:
        (PORT / "subsystems" / name).unlink()
    return names


def remove_namespace(path):
    (path / "enable").write_text("0")
    path.rmdir()


def remove_subsystem(path):
    link = PORT / "subsystems" / path.name
    if link.is_symlink():
        link.unlink()
    for namespace in (path / "namespaces").iterdir():
        remove_namespace(namespace)
    path.rmdir()


def fresh():
    subprocess.run(["modprobe", "-a", "nvmet", "nvmet-tcp"], check=True)
    if PORT.exists():
        unlisten()
        for path in (ROOT / "subsystems").iterdir():
            remove_subsystem(path)
        (PORT / "ana_groups/1/ana_state").write_text("optimized")
    else:
        PORT.mkdir()
        for key, value in dict(trtype="tcp", adrfam="ipv4", traddr="127.0.0.1", trsvcid="4420").items():
            (PORT / f"addr_{key}").write_text(value)
    subprocess.run(["rm", "-rf", STATE], check=True)
    STATE.mkdir()


def call(method, p):
    match method:
        case "nvmf_create_transport":
            pass
        case "nvmf_create_subsystem":
            subsystem(p).mkdir()
            (subsystem(p) / "attr_allow_any_host").write_text("1")
        case "nvmf_delete_subsystem":
            remove_subsystem(subsystem(p))
        case "bdev_uring_create":
            (STATE / f"{p['name']}.path").write_text(p["filename"])
        case "bdev_uring_delete":
            (STATE / f"{p['name']}.path").unlink()
        case "bdev_uring_rescan":
            for device in ROOT.glob("subsystems/*/namespaces/*/device_path"):
                if Path(device.read_text().strip()).name == p["name"]:
                    device.with_name("revalidate_size").write_text("1")
        case "nvmf_subsystem_add_ns":
            n = p["namespace"]
            path = subsystem(p) / "namespaces" / str(n["nsid"])
            path.mkdir()
            (path / "device_path").write_text((STATE / f"{n['bdev_name']}.path").read_text())
            (path / "enable").write_text("1")
        case "nvmf_subsystem_remove_ns":
            remove_namespace(subsystem(p) / "namespaces" / str(p["nsid"]))
        case "nvmf_subsystem_add_listener":
            listen(p["nqn"])
        case "nvmf_subsystem_listener_set_ana_state":
            (PORT / "ana_groups/1/ana_state").write_text(ANA[p["ana_state"]])
        case _:
            raise ValueError(f"no counterpart of {method}")


def answer(verb, *words):
    match verb:
        case "fresh":
            fresh()
        case "rpc":
            call(words[0], json.loads(" ".join(words[1:]) or "{}"))
        case "file":
            path = STATE / words[0]
            with open(path, "ab") as f:
                os.posix_fallocate(f.fileno(), 0, int(words[1]))
            return str(path)
        case "save":
            pass
        case "kill9":
            # the last subsystem to leave closes the port and its connections
            (STATE / "listening").write_text("\n".join(unlisten()))
        case "start-config" | "start-load":
            for name in (STATE / "listening").read_text().split():
                listen(name)
        case _:
            raise ValueError(f"no counterpart of {verb}")
    return ""


if __name__ == "__main__":
    try:
        print("ok", answer(*sys.argv[1:]))
    except (OSError, ValueError) as e:
        print("error", f"{type(e).__name__}: {e}")
