#!/usr/bin/env python3
"""In the guest: writes to the NVMe disk from several threads, flushes meanwhile, and puts a mark into the write
log after each flush, with a journal of what must be durable at that mark.

    ordered_writes.py DISK DM-NAME JOURNAL MARKS

A journal line is {"mark": name, "durable": [[block, version]...], "issued": [[block, version]...], "zeroed": [...]}: at
the mark, and from there on, each durable block has at least that version; before it, no block has more than the issued
one; the versions listed as zeroed were made by a command that writes zeroes. Changes only: a line adds to those before it.
"""

import ctypes
import fcntl
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import threading

import blocks

SECTOR = 512  # the namespace's block size
WRITERS = 6
REGION = 256  # blocks that one writer has for itself: two writes to one block are never in flight together
LONGEST = 24  # blocks of one write: past the 64 KiB that arrive in one R2T of some targets
STEP = 40     # acknowledged writes between two marks
ZERO_RANGE = 0x10  # of fallocate: the NVMe command Write Zeroes
libc = ctypes.CDLL(None, use_errno=True)
NVME_IOCTL_ID = 0x4E40
NVME_IOCTL_IO_CMD = 0xC0484E43
PASSTHROUGH = struct.Struct("<BBHIIIQQIIIIIIIIII")
NVME_WRITE, FUA = 0x01, 1 << 30


def write_forced(fd, namespace, address, lba, lbas):
    """One NVMe write with FUA. RWF_DSYNC would not do: after the write the kernel sends a flush as well, and of two
    flushes that overlap, the recording device may put the second's writes before the first's."""
    command = bytearray(PASSTHROUGH.pack(NVME_WRITE, 0, 0, namespace, 0, 0, 0, address, 0, lbas * SECTOR,
                                         lba & 0xFFFFFFFF, lba >> 32, (lbas - 1) | FUA, 0, 0, 0, 0, 0))
    status = fcntl.ioctl(fd, NVME_IOCTL_IO_CMD, command)
    if status != 0:
        raise OSError(f"NVMe write with FUA: status {status:#x}")


class Ledger:
    """Versions issued, acknowledged and durable."""

    def __init__(self):
        self.lock = threading.Condition()
        self.issued = {}
        self.acknowledged = {}
        self.durable = {}
        self.zeroed = []
        self.writes = 0
        self.failure = None
        self.enough = False

    def issue(self, first, count, zeroes):
        with self.lock:
            versions = [self.issued.get(b, 0) + 1 for b in range(first, first + count)]
            new = list(zip(range(first, first + count), versions))
            self.issued.update(new)
            if zeroes:
                self.zeroed += new
            return versions

    def acknowledge(self, first, versions, forced):
        with self.lock:
            done = dict(zip(range(first, first + len(versions)), versions))
            self.acknowledged.update(done)
            if forced:
                self.durable.update(done)
            self.writes += 1
            self.lock.notify_all()

    def fail(self, error):
        with self.lock:
            self.failure = error
            self.lock.notify_all()


def write(disk, ledger, number):
    """Half of the writers force each write to the medium (FUA), half leave that to the flush; these also write zeroes."""
    forced = number % 2 == 1
    rng = random.Random(number)
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, LONGEST * blocks.SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    namespace = fcntl.ioctl(fd, NVME_IOCTL_ID)
    try:
        while not ledger.enough:
            count = rng.choice((1, 1, 2, 4, LONGEST))
            first = number * REGION + rng.randrange(REGION - count + 1)
            zeroes = not forced and rng.random() < 0.1
            versions = ledger.issue(first, count, zeroes)
            if zeroes:
                at, length = ctypes.c_int64(first * blocks.SIZE), ctypes.c_int64(count * blocks.SIZE)
                if libc.fallocate(fd, ZERO_RANGE, at, length) != 0:
                    raise OSError(ctypes.get_errno(), "fallocate")
            else:
                for i, version in enumerate(versions):
                    buffer[i * blocks.SIZE:(i + 1) * blocks.SIZE] = blocks.content(first + i, version)
                if forced:
                    per_block = blocks.SIZE // SECTOR
                    write_forced(fd, namespace, address, first * per_block, count * per_block)
                else:
                    view = memoryview(buffer)[:count * blocks.SIZE]
                    done = os.pwritev(fd, [view], first * blocks.SIZE)
                    if done != len(view):
                        raise OSError(f"short write: {done} of {len(view)} bytes")
            ledger.acknowledge(first, versions, forced)
    except BaseException as e:
        ledger.fail(e)
    finally:
        os.close(fd)


def changes(new, old):
    return sorted([b, v] for b, v in new.items() if old.get(b) != v)


def main():
    disk, mapped, journal, marks = sys.argv[1:]
    ledger = Ledger()
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    writers = [threading.Thread(target=write, args=(disk, ledger, n)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    told_durable, told_issued = {}, {}
    with open(journal, "w") as out:
        for number in range(int(marks) + 1):
            last = number == int(marks)
            with ledger.lock:
                goal = ledger.writes + STEP
                ledger.lock.wait_for(lambda: ledger.failure or ledger.writes >= goal)
                if ledger.failure:
                    raise SystemExit(f"write failed: {ledger.failure}")
                if last:
                    ledger.enough = True
            if last:  # with nothing in flight: everything is durable, and equal, not only new enough
                for writer in writers:
                    writer.join()
            with ledger.lock:
                acknowledged = dict(ledger.acknowledged)
            os.fsync(fd)
            with ledger.lock:
                for block, version in acknowledged.items():
                    ledger.durable[block] = max(ledger.durable.get(block, 0), version)
                durable = dict(ledger.durable)
            subprocess.run(["dmsetup", "message", mapped, "0", "mark", f"m{number}"], check=True)
            with ledger.lock:
                issued = dict(ledger.issued)
                zeroed, ledger.zeroed = ledger.zeroed, []
            line = {"mark": f"m{number}", "durable": changes(durable, told_durable),
                    "issued": changes(issued, told_issued), "zeroed": zeroed}
            told_durable, told_issued = durable, issued
            out.write(json.dumps(line) + "\n")
    os.close(fd)
    print(f"{ledger.writes} writes, {int(marks) + 1} marks, {len(ledger.issued)} blocks")


if __name__ == "__main__":
    main()
