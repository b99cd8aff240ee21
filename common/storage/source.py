"""Read parts of a file in any storage: `read_ranges`, and a file object that uses it."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence

from common.errors import StorageError
from common.storage import vectors
from common.storage.vectors import REQUESTS, Range

__all__ = ["REQUESTS", "Range", "Source", "SourceFile"]


class Source(ABC):
    """An open file of which byte ranges are read. Close it, or use it as a context manager.

    Its methods may be called from several threads.
    """

    uri: str
    size: int
    """Bytes of the file."""

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes start:stop, all of them, in one request that is retried if it fails.

        Raises StorageError if they cannot be read or the file has changed since it was opened, and
        InputError if the file has been removed or may not be read.
        """

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read the bytes of each range, in the order of the ranges, by several requests at once."""
        return vectors.read_in_pieces(
            ranges, vectors.one_each, lambda pieces: [self.read(*piece) for piece in pieces]
        )

    def close(self) -> None:  # noqa: B027 - most backends hold nothing
        """Free the file's resources. Nothing can be read afterwards."""

    def __enter__(self) -> Source:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def check(self, content: bytes, start: int, stop: int) -> bytes:
        """Return the content of start:stop, if it is whole. Raises StorageError where it is not."""
        if len(content) != stop - start:
            raise StorageError(
                f"{self.uri}: {len(content):,} bytes came of the {stop - start:,} from byte"
                f" {start:,} on; the file has {self.size:,}"
            )
        return content


class SourceFile(io.RawIOBase):
    """A source as a file object, for libraries that read one. Closing it closes the source."""

    def __init__(self, source: Source) -> None:
        """Read from the start of the source."""
        self.source = source
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, and return it."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.source.size}
        self._position = max(origin[whence] + offset, 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes; return the number of bytes."""
        stop = min(self._position + len(buffer), self.source.size)
        if stop <= self._position:
            return 0
        content = self.source.read(self._position, stop)
        buffer[: len(content)] = content
        self._position = stop
        return len(content)

    def close(self) -> None:
        """Close the source as well."""
        if not self.closed:
            self.source.close()
        super().close()
