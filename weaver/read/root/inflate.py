"""Decompress ROOT's records.

zlib's format, which CMS usually uses, is decompressed with libdeflate (package deflate), the
fastest library that we measured, or, if it is not installed, with zlib. Both release Python's lock,
and verify the checksum of the result.
"""

from __future__ import annotations

import functools
import importlib.util
import zlib
from collections.abc import Callable

HEAD = 9  # bytes before a compressed block: method, version, compressed and uncompressed size
CHECKSUM = 8  # bytes of the checksum before LZ4 data
Buffer = bytes | bytearray | memoryview


def inflate(data: Buffer, size: int) -> Buffer:
    """Decompress a record to its `size` bytes.

    data: one or more compressed blocks, or the uncompressed bytes. Raises ValueError, or the
    library's own error, for damaged bytes and for an unknown compression.
    """
    if len(data) == size:
        return data
    parts: list[Buffer] = []
    at = 0
    while at < len(data):
        method = bytes(data[at : at + 2])
        compressed_size = int.from_bytes(data[at + 3 : at + 6], "little")
        full = int.from_bytes(data[at + 6 : at + 9], "little")
        at += HEAD + compressed_size
        parts.append(_library(method)(data[at - compressed_size : at], full))
        if len(parts[-1]) != full:
            raise ValueError("a compressed block is not as long as it says")
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(whole) != size:
        raise ValueError("a record is not as long as it says")
    return whole


def zlib_library() -> str:
    """Return the name of the package that decompresses zlib's format."""
    return "deflate" if importlib.util.find_spec("deflate") else "zlib"


@functools.cache
def _library(method: bytes) -> Callable[[Buffer, int], Buffer]:
    """Return (compressed bytes, their uncompressed size) -> bytes, for a method of ROOT."""
    if method == b"ZL":
        if zlib_library() == "deflate":
            import deflate

            return deflate.zlib_decompress
        # zlib requires a buffer of at least one byte
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
