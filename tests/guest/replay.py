"""Replays a dm-log-writes log and checks it against the journal of ordered_writes.py.

The log holds every write in the order in which it became durable: those without FUA when the flush that covers
them completed, those with FUA as they completed. Its format is in the kernel's
Documentation/admin-guide/device-mapper/log-writes.rst: a super block in the first sector, then for each entry one
sector of header and the data, in sectors of the super block's size.
"""

import json
import os
import struct
from pathlib import Path

import blocks

SUPER = struct.Struct("<QQQI")
MAGIC = 0x6A736677736872
ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of mark text
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

DATA_BYTES = 64 << 20
LOG_BYTES = 2 << 30  # sparse
LAST_MARK = "dm-log-writes-end"  # the kernel's own, when the device is removed in order


class Lost(Exception):
    """The log breaks a promise; the text says which."""


def make_disks(folder):
    """The disks that the topic needs: [(serial, path)]."""
    disks = []
    for serial, size in (("data", DATA_BYTES), ("log", LOG_BYTES)):
        path = Path(folder) / f"{serial}.img"
        path.unlink(missing_ok=True)
        with open(path, "wb") as f:
            os.truncate(f.fileno(), size)
        disks.append((serial, path))
    return disks


def entries(path):
    """Yields (number, flags, byte offset, data or None, mark text)."""
    with open(path, "rb") as f:
        magic, version, count, sector_size = SUPER.unpack(f.read(SUPER.size))
        if magic != MAGIC or version != 1:
            raise Lost(f"{path} is not a write log: magic {magic:#x}, version {version}")
        at = sector_size
        for number in range(count):
            f.seek(at)
            header = f.read(sector_size)
            if len(header) < sector_size:
                raise Lost(f"the log ends at entry {number} of {count}")
            sector, sectors, flags, text_bytes = ENTRY.unpack_from(header)
            at += sector_size
            data = None
            if not flags & DISCARD and sectors:
                data = f.read(sectors * sector_size)
                at += sectors * sector_size
            text = header[ENTRY.size:ENTRY.size + text_bytes].decode() if flags & MARK else ""
            if flags & DISCARD:
                data = bytes(sectors * sector_size)
            yield number, flags, sector * sector_size, data, text


class Replay:
    """The medium as it would be after a crash at this point of the log."""

    def __init__(self, journal):
        self.image = {}      # content of each block on the medium
        # The version of each block on the medium: [least, greatest], which differ only where it is zeroed, because
        # zeroes do not say which of the versions that were made by writing zeroes they are.
        self.versions = {}
        self.zeroed = {}
        self.durable = {}    # the least version that each block must have from here on
        self.issued = {}     # the greatest that it may have before the next mark
        self.changed = set()
        self.journal = journal
        self.next_mark = 0
        self.checks = 0
        self._allow()

    def _allow(self):
        if self.next_mark < len(self.journal):
            self.issued.update(map(tuple, self.journal[self.next_mark]["issued"]))
            for block, version in self.journal[self.next_mark].get("zeroed", []):
                self.zeroed.setdefault(block, [0]).append(version)

    def write(self, offset, data):
        while data:
            block, within = divmod(offset, blocks.SIZE)
            piece = data[:blocks.SIZE - within]
            old = self.image.get(block, bytes(blocks.SIZE))
            self.image[block] = old[:within] + piece + old[within + len(piece):]
            self.changed.add(block)
            offset += len(piece)
            data = data[len(piece):]

    def check(self, where):
        """At a flush or FUA entry and at a mark: no block torn, lost, stale, or from nowhere."""
        self.checks += 1
        for block in self.changed:
            issued = self.issued.get(block, 0)
            before, _ = self.versions.get(block, (0, 0))
            try:
                found = blocks.version(block, self.image[block])
            except ValueError as e:
                raise Lost(f"{where}: {e}") from None
            if found is None:
                may_be = [v for v in self.zeroed.get(block, [0]) if v >= before]
                if not may_be:
                    raise Lost(f"{where}: block {block} had version {before} and is zeroed, which nobody asked for")
                self.versions[block] = (may_be[0], may_be[-1])
                continue
            if found < before:
                raise Lost(f"{where}: block {block} went back from version {before} to {found}")
            if found > issued:
                raise Lost(f"{where}: block {block} has version {found}, but only {issued} was written by then")
            self.versions[block] = (found, found)
        self.changed.clear()

    def mark(self, text, where):
        if self.next_mark == len(self.journal) or text != self.journal[self.next_mark]["mark"]:
            raise Lost(f"{where}: unexpected mark {text!r}")
        self.check(where)
        self.durable.update(map(tuple, self.journal[self.next_mark]["durable"]))
        for block, least in self.durable.items():
            found = self.versions.get(block, (0, 0))[1]
            if found < least:
                raise Lost(f"{where}: block {block} was acknowledged and flushed as version {least}, "
                           f"but a crash here leaves version {found}")
        self.next_mark += 1
        self._allow()


def check(log, device, journal_path):
    """Replays the whole log. Returns one line for the reader, raises Lost if a promise is broken.

    `device` is the disk that was recorded: at the end the replay equals it, or the replay itself is wrong.
    """
    with open(journal_path) as f:
        journal = [json.loads(line) for line in f]
    replay = Replay(journal)
    flushes = forced = writes = 0
    ended = False
    for number, flags, offset, data, text in entries(log):
        where = f"entry {number} of the log (after mark {replay.next_mark - 1})"
        if flags & MARK and text == LAST_MARK:
            ended = True
            continue
        if flags & MARK:
            replay.mark(text, where)
            continue
        if data:
            writes += 1
            replay.write(offset, data)
        flushes += bool(flags & FLUSH)
        forced += bool(flags & FUA)
        if flags & (FLUSH | FUA):
            replay.check(where)
    if not ended:
        raise Lost("the log was not closed")
    if replay.next_mark != len(journal):
        raise Lost(f"the log has {replay.next_mark} of {len(journal)} marks")
    for block, version in replay.issued.items():
        found = replay.versions.get(block, (0, 0))[1]
        if found != version:
            raise Lost(f"at the end, with nothing in flight, block {block} is version {found}, not {version}")
    with open(device, "rb") as f:
        for block, content in replay.image.items():
            f.seek(block * blocks.SIZE)
            if f.read(blocks.SIZE) != content:
                raise Lost(f"block {block} of the replay is not what the device has")
    if not flushes or not forced:
        raise Lost(f"nothing was tried: {flushes} flushes and {forced} FUA writes reached the device")
    return (f"durability: {writes} writes, {flushes} flushes, {forced} FUA writes replayed; "
            f"{replay.checks} points in time checked, {len(journal)} of them against what was acknowledged")
