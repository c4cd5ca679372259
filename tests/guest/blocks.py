"""What the durability topic writes: 4 KiB blocks that say which block they are and which version of it.

Shared by the writer in the guest and the check on the host, so that both mean the same.
"""

import hashlib
import struct

SIZE = 4096
HEAD = struct.Struct("<8sQQ")
MAGIC = b"LSHBLOCK"


def content(block, version):
    head = HEAD.pack(MAGIC, block, version)
    return head + hashlib.shake_128(head).digest(SIZE - len(head))


def version(block, data):
    """The version that `data` is of `block`; None if it is all zeroes. ValueError if it is neither."""
    if not any(data):
        return None
    magic, of, found = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"block {block} has no header: {data[:16].hex()}")
    if of != block:
        raise ValueError(f"block {block} has the content of block {of}, version {found}")
    if data != content(block, found):
        raise ValueError(f"block {block} is torn: it begins as version {found}")
    return found
