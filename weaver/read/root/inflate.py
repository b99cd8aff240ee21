"""Decompression of ROOT's records.

zlib's format, CMS's usual one, is decompressed with libdeflate (package deflate), the fastest
library we measured, or, where that is not installed, with zlib's own. Both let other threads run
meanwhile and check the checksum of their result.
"""

from __future__ import annotations

import functools
import importlib.util
import zlib
from collections.abc import Callable

HEAD = 9  # bytes before a compressed block: method, version, compressed and uncompressed size
CHECKSUM = 8  # bytes of it before the data of LZ4
Buffer = bytes | bytearray | memoryview


def inflate(data: Buffer, size: int) -> Buffer:
    """The `size` bytes of a record whose stored bytes are `data`.

    These are one or more compressed blocks, or the bytes themselves. Raises ValueError, or the
    library's own error, for damaged bytes and for an unknown compression.
    """
    if len(data) == size:
        return data
    parts: list[Buffer] = []
    at = 0
    while at < len(data):
        method = bytes(data[at : at + 2])
        stored = int.from_bytes(data[at + 3 : at + 6], "little")
        full = int.from_bytes(data[at + 6 : at + 9], "little")
        at += HEAD + stored
        parts.append(_library(method)(data[at - stored : at], full))
        if len(parts[-1]) != full:
            raise ValueError("a compressed block is not as long as it says")
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(whole) != size:
        raise ValueError("a record is not as long as it says")
    return whole


def zlib_library() -> str:
    """The library for zlib's streams, by the name of its package."""
    return "deflate" if importlib.util.find_spec("deflate") else "zlib"


@functools.cache
def _library(method: bytes) -> Callable[[Buffer, int], Buffer]:
    """A function (compressed bytes, their uncompressed size) -> bytes."""
    if method == b"ZL":
        if zlib_library() == "deflate":
            import deflate

            return deflate.zlib_decompress
        # a buffer of at least one byte, which zlib asks for
        return lambda data, size: zlib.decompress(data, zlib.MAX_WBITS, max(size, 1))
    import uproot.compression as kinds

    if method == b"L4":
        import xxhash

        def lz4(data: Buffer, size: int) -> Buffer:
            content = bytes(data[CHECKSUM:])
            if xxhash.xxh64(content).intdigest() != int.from_bytes(data[:CHECKSUM], "big"):
                raise ValueError("the checksum of a compressed block is wrong")
            return kinds.LZ4(1).decompress(content, size)

        return lz4
    if method in (b"XZ", b"ZS"):
        kind = {b"XZ": kinds.LZMA, b"ZS": kinds.ZSTD}[method](1)
        return lambda data, size: kind.decompress(bytes(data), size)
    raise ValueError(f"a block compressed as {method!r}")
