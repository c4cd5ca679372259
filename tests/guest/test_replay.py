"""The replay finds what it is there to find: made-up logs, each with one fault."""

import json
import tempfile
import unittest
from pathlib import Path

import blocks
import replay

SECTOR = 512
PER_BLOCK = blocks.SIZE // SECTOR


class Log:
    """Writes a log, the device as it would be, and a journal."""

    def __init__(self):
        self.entries = []
        self.device = {}
        self.journal = []

    def write(self, block, version, flags=0, content=None):
        data = blocks.content(block, version) if content is None else content
        self.device[block] = data
        self.entries.append((block * PER_BLOCK, PER_BLOCK, flags, data))
        return self

    def flush(self):
        self.entries.append((0, 0, replay.FLUSH, b""))
        return self

    def mark(self, durable, issued, zeroed=()):
        name = f"m{len(self.journal)}"
        self.journal.append({"mark": name, "durable": list(durable.items()), "issued": list(issued.items()), "zeroed": zeroed})
        return self.text(name)

    def text(self, name):
        self.entries.append((0, 0, replay.MARK, name.encode()))
        return self

    def check(self):
        with tempfile.TemporaryDirectory() as folder:
            log, data, journal = (Path(folder) / name for name in ("log", "data", "journal"))
            out = replay.SUPER.pack(replay.MAGIC, 1, len(self.entries), SECTOR).ljust(SECTOR, b"\0")
            for sector, sectors, flags, payload in self.entries:
                text = payload if flags & replay.MARK else b""
                out += (replay.ENTRY.pack(sector, sectors, flags, len(text)) + text).ljust(SECTOR, b"\0")
                out += b"" if text else payload
            log.write_bytes(out)
            with open(data, "wb") as f:
                for block, content in self.device.items():
                    f.seek(block * blocks.SIZE)
                    f.write(content)
            journal.write_text("".join(json.dumps(line) + "\n" for line in self.journal))
            return replay.check(log, data, journal)


class ReplayTest(unittest.TestCase):
    def good(self):
        return (Log().write(1, 1).write(2, 1).flush().mark({1: 1, 2: 1}, {1: 2, 2: 1, 3: 1})
                .write(3, 1, replay.FUA).write(1, 2).flush().mark({1: 2, 3: 1}, {}))

    def lost(self, log, text):
        with self.assertRaisesRegex(replay.Lost, text):
            log.check()

    def test_a_log_that_keeps_its_promises_passes(self):
        self.assertIn("2 of them against", self.good().text(replay.LAST_MARK).check())

    def test_a_write_that_came_after_its_flush_is_lost(self):
        self.lost(Log().write(1, 1).flush().mark({1: 1, 2: 1}, {1: 1, 2: 1}).write(2, 1), "block 2 was acknowledged and flushed")

    def test_a_flush_that_was_not_passed_down_is_lost(self):
        self.lost(Log().write(2, 1, replay.FUA).mark({1: 1}, {1: 1, 2: 1}).write(1, 1).flush(), "block 1 was acknowledged")

    def test_an_older_version_over_a_newer_one_is_found(self):
        self.lost(Log().write(1, 2).flush().write(1, 1).flush().mark({1: 1}, {1: 2}), "went back from version 2 to 1")

    def test_torn_foreign_and_unwritten_content_is_found(self):
        torn = blocks.content(1, 1)[:2048] + blocks.content(1, 2)[2048:]
        self.lost(Log().write(1, 1, content=torn).flush(), "torn")
        self.lost(Log().write(1, 1, content=blocks.content(2, 1)).flush(), "content of block 2")
        self.lost(Log().write(1, 5).flush().mark({}, {1: 1}), "has version 5, but only 1")

    def test_zeroes_count_where_they_were_asked_for_only(self):
        zero = bytes(blocks.SIZE)
        log = Log().write(1, 1).write(2, 1, replay.FUA).flush().write(1, 2, content=zero).flush().mark({1: 2, 2: 1}, {1: 2, 2: 1}, [[1, 2]])
        self.assertIn("1 of them", log.text(replay.LAST_MARK).check())
        self.lost(Log().write(1, 1).flush().write(1, 1, content=zero).flush().mark({1: 1}, {1: 1}), "nobody asked for")
        self.lost(Log().write(1, 1).flush().mark({1: 2}, {1: 2}, [[1, 2]]), "flushed as version 2")
        self.lost(Log().write(1, 1, content=zero).flush().mark({1: 2}, {1: 2}, [[1, 1]]), "flushed as version 2")

    def test_a_cut_log_is_found(self):
        self.lost(self.good(), "not closed")
        log = self.good().text(replay.LAST_MARK)
        log.journal.append({"mark": "m2", "durable": [], "issued": []})
        self.lost(log, "2 of 3 marks")

    def test_a_log_without_flush_or_fua_proves_nothing(self):
        self.lost(Log().write(1, 1).flush().mark({1: 1}, {1: 1}).text(replay.LAST_MARK), "nothing was tried")


if __name__ == "__main__":
    unittest.main()
