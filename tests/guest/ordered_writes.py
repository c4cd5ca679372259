#!/usr/bin/env python3
"""In the guest: writes to the NVMe disk from several threads, flushes meanwhile, and puts a mark into the write
log after each flush, with a journal of what must be durable at that mark.

    ordered_writes.py DISK DM-NAME JOURNAL MARKS

A journal line is {"mark": name, "durable": [[block, version]...], "issued": [[block, version]...]}: at the mark, and
from there on, each durable block has at least that version; before it, no block has more than the issued one.
Changes only: a line adds to those before it.
"""

import json
import mmap
import os
import random
import subprocess
import sys
import threading

import blocks

WRITERS = 6
REGION = 256  # blocks that one writer has for itself: two writes to one block are never in flight together
LONGEST = 24  # blocks of one write: past the 64 KiB that arrive in one R2T of some targets
STEP = 40     # acknowledged writes between two marks


class Ledger:
    """Versions issued, acknowledged and durable."""

    def __init__(self):
        self.lock = threading.Condition()
        self.issued = {}
        self.acknowledged = {}
        self.durable = {}
        self.writes = 0
        self.failure = None
        self.enough = False

    def issue(self, first, count):
        with self.lock:
            versions = [self.issued.get(b, 0) + 1 for b in range(first, first + count)]
            self.issued.update(zip(range(first, first + count), versions))
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
    """Half of the writers force each write to the medium (FUA), half leave that to the flush."""
    forced = number % 2 == 1
    rng = random.Random(number)
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, LONGEST * blocks.SIZE)
    try:
        while not ledger.enough:
            count = rng.choice((1, 1, 2, 4, LONGEST))
            first = number * REGION + rng.randrange(REGION - count + 1)
            versions = ledger.issue(first, count)
            for i, version in enumerate(versions):
                buffer[i * blocks.SIZE:(i + 1) * blocks.SIZE] = blocks.content(first + i, version)
            view = memoryview(buffer)[:count * blocks.SIZE]
            done = os.pwritev(fd, [view], first * blocks.SIZE, os.RWF_DSYNC if forced else 0)
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
            line = {"mark": f"m{number}", "durable": changes(durable, told_durable), "issued": changes(issued, told_issued)}
            told_durable, told_issued = durable, issued
            out.write(json.dumps(line) + "\n")
    os.close(fd)
    print(f"{ledger.writes} writes, {int(marks) + 1} marks, {len(ledger.issued)} blocks")


if __name__ == "__main__":
    main()
