"""Find the baskets of a ROOT file's tree, from the file's own records.

This takes a few milliseconds, where a general reader takes tens. It supports the content of
JetNtuple and flat NanoAOD files, written by ROOT 6 or uproot: trees (version 20) whose branches
(version 13) have one number, or one list of numbers with a counter, for each entry. For other files
`read_tree` raises UnsupportedFile, and the caller uses uproot, which supports them or says why not.
The records are written by ROOT's streamers: big-endian; an object starts with its length and its
version, so that unused objects can be skipped.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from weaver.read.remote import Fetch
from weaver.read.root.inflate import inflate

HEAD = 4096  # bytes of a file that contain its header and its root directory's record
LARGE_FILE = 1_000_000  # ROOT adds it to the version of a file with 64-bit addresses
LARGE_KEY = 1000  # the same for records
LENGTH_FLAG = 0x4000_0000  # a flag in the length before an object
CLASS = 0x8000_0000  # a flag in a reference to a class whose name occurred before
NEW_CLASS = 0xFFFF_FFFF
CLASS_OFFSET = 2  # ROOT adds it to its references
REFERENCE_FLAG = 1 << 4  # a flag in an object that is followed by a process id
DIRECTORIES = ("TDirectory", "TDirectoryFile")
TREE_VERSION, BRANCH_VERSION = 20, 13
TYPES = {
    "TLeafF": "f4",
    "TLeafD": "f8",
    "TLeafI": "i4",
    "TLeafL": "i8",
    "TLeafS": "i2",
    "TLeafB": "i1",
    "TLeafO": "?",
}
DEPTH = 10  # levels of nested directories

_TREE_NUMBERS = struct.Struct(">qqqqqdiiiiIqqqqqq")
_BRANCH_NUMBERS = struct.Struct(">iiiiq")
_BRANCH_SIZES = struct.Struct(">iIiqqqq")
_LEAF = struct.Struct(">iii??I")
_KEY = struct.Struct(">ihiIhh")


class UnsupportedFile(Exception):
    """The file has a form that this reader does not support; uproot may."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """One branch: its type in the file, and its baskets.

    Basket i contains the entries first_entries[i] : first_entries[i + 1].
    """

    name: str
    dtype: np.dtype
    is_jagged: bool
    seeks: np.ndarray
    """Position in the file of each basket, (B,)."""
    sizes: np.ndarray
    """Number of bytes of each basket in the file, (B,)."""
    first_entries: np.ndarray
    """(B + 1,)."""
    uncompressed_bytes: int
    """Number of bytes of all baskets without compression."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree and some of its branches."""

    path: str
    """With its cycle."""
    num_entries: int
    branches: Mapping[str, Branch]


def read_tree(fetch: Fetch, choose: Callable[[list[str]], str], names: set[str]) -> Tree:
    """Read a tree of a file, with the branches `names`.

    fetch: (first byte, number of bytes) -> bytes of the file. choose: paths (with cycles) of all
    trees -> one of them. Raises UnsupportedFile; for damaged bytes also struct.error, IndexError,
    ValueError, OSError or zlib's errors.
    """
    head = Cursor(bytes(fetch(0, HEAD)))
    magic, version, begin = head.take(">4sii")
    if magic != b"root":
        raise UnsupportedFile("no ROOT file")
    head.take(">qqii" if version >= LARGE_FILE else ">iiii")  # the end, the list of free pieces
    (name_length,) = head.take(">i")
    keys = dict(_trees(fetch, begin + name_length, "", DEPTH))
    path = choose(list(keys))
    data, start = keys[path].content(fetch)
    return _parse_tree(path, Cursor(data, 0, start), names)


# ------------------------------------------------------------------------------------ directories


@dataclasses.dataclass(frozen=True)
class _Key:
    """One entry of a directory."""

    kind: str
    name: str
    cycle: int
    seek: int
    num_bytes: int
    uncompressed_bytes: int
    key_length: int

    def content(self, fetch: Fetch) -> tuple[bytes, int]:
        """Return the object's bytes, and the offset that ROOT's references within it include.

        Raises:
            UnsupportedFile: the record ends after the end of the file.
        """
        record = fetch(self.seek, self.num_bytes)
        if len(record) < self.num_bytes:
            raise UnsupportedFile("a record ends behind the file")
        data = inflate(memoryview(record)[self.key_length :], self.uncompressed_bytes)
        return bytes(data), self.key_length


def _trees(fetch: Fetch, at: int, path: str, depth: int) -> Iterator[tuple[str, _Key]]:
    """Yield (path with cycle, key) of the trees in a directory, and up to `depth` levels below."""
    record = Cursor(bytes(fetch(at, 64)))
    version, _, _, keys_size, _ = record.take(">hIIii")
    seek = record.take(">qqq" if version > LARGE_KEY else ">iii")[2]
    directory = Cursor(bytes(fetch(seek, keys_size)))
    _key(directory)
    for _ in range(directory.take(">i")[0]):
        key = _key(directory)
        if key.kind == "TTree":
            yield f"{path}{key.name};{key.cycle}", key
        elif key.kind in DIRECTORIES:
            if not depth:
                raise UnsupportedFile("folders within folders")
            yield from _trees(fetch, key.seek + key.key_length, f"{path}{key.name}/", depth - 1)
        elif key.kind == "TNtuple":
            raise UnsupportedFile("a tree of another kind")


def _key(cursor: Cursor) -> _Key:
    num_bytes, version, uncompressed_bytes, _, key_length, cycle = cursor.take(_KEY)
    seek, _ = cursor.take(">qq" if version > LARGE_KEY else ">ii")
    kind = cursor.text()
    name = cursor.text()
    cursor.text()  # title
    return _Key(kind, name, cycle, seek, num_bytes, uncompressed_bytes, key_length)


# --------------------------------------------------------------------------------- tree, branches


class Cursor:
    """A reading position in a record. Its methods raise UnsupportedFile for unknown forms."""

    def __init__(self, data: bytes, at: int = 0, shift: int = 0) -> None:
        """Start at `at`; `shift` is the offset that references within the record include."""
        self.data = data
        self.at = at
        self.shift = shift

    def take(self, form: str | struct.Struct) -> tuple:
        """Read numbers, in a format of the module struct."""
        form = struct.Struct(form) if isinstance(form, str) else form
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def text(self) -> str:
        """Read a text with its length."""
        (length,) = self.take(">B")
        if length == 255:  # for a longer text the length follows
            (length,) = self.take(">I")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode(errors="surrogateescape")

    def array(self, dtype: str, count: int) -> np.ndarray:
        """Read an array of `count` numbers, after a byte that says whether there is one."""
        numbers = np.frombuffer(self.data, dtype, count, self.at + 1)
        self.at += 1 + numbers.nbytes
        return numbers

    def begin(self) -> tuple[int, int]:
        """Read the start of an object; returns its version, and the position of its end.

        Raises:
            UnsupportedFile: the object has no length.
        """
        length, version = self.take(">IH")
        if not length & LENGTH_FLAG:
            raise UnsupportedFile("an object without its length")
        return version, self.at - 2 + (length & ~LENGTH_FLAG)

    def skip(self) -> None:
        """Skip an object."""
        self.at = self.begin()[1]

    def plain_object(self) -> None:
        """Skip the part that all objects of ROOT have (TObject).

        Raises:
            UnsupportedFile: this part has a length of its own.
        """
        version, _, bits = self.take(">HII")
        if version & (LENGTH_FLAG >> 16):
            raise UnsupportedFile("an object with a length of its own")
        if bits & REFERENCE_FLAG:
            self.at += 2

    def object_name(self) -> str:
        """Read a named object; returns its name."""
        end = self.begin()[1]
        self.plain_object()
        name = self.text()
        self.at = end
        return name

    def object_title(self) -> str:
        """Read a named object; returns its title."""
        end = self.begin()[1]
        self.plain_object()
        self.text()
        title = self.text()
        self.at = end
        return title

    def objects(self) -> Iterator[tuple[str, Cursor]]:
        """Read an array of objects; yields (class, cursor at the object's start) of each.

        Raises:
            UnsupportedFile: the array refers to an object elsewhere, or an object is not readable.
        """
        end = self.begin()[1]
        self.plain_object()
        self.text()
        count, _ = self.take(">ii")
        for _ in range(count):
            (length,) = self.take(">I")
            if length == NEW_CLASS or not length & LENGTH_FLAG:
                if length:
                    raise UnsupportedFile("an array that refers to an object elsewhere")
                continue
            after = self.at + (length & ~LENGTH_FLAG)
            kind = self.class_name()
            yield kind, Cursor(self.data, self.at, self.shift)
            self.at = after
        self.at = end

    def class_name(self) -> str:
        """Read the class of an object: its name, or a reference to an earlier one.

        Raises:
            UnsupportedFile: there is no class, or a reference to none.
        """
        (tag,) = self.take(">I")
        if tag == NEW_CLASS:
            end = self.data.index(0, self.at)
            name = bytes(self.data[self.at : end]).decode()
            self.at = end + 1
            return name
        if not tag & CLASS:
            raise UnsupportedFile("an object without a class")
        definition = Cursor(self.data, (tag & ~CLASS) - CLASS_OFFSET - self.shift)
        if definition.at < 0 or definition.take(">I")[0] != NEW_CLASS:
            raise UnsupportedFile("a reference to no class")
        definition.at -= 4
        return definition.class_name()


def _parse_tree(path: str, cursor: Cursor, names: set[str]) -> Tree:
    """Parse the tree at `cursor`, with the branches `names`."""
    if cursor.begin()[0] != TREE_VERSION:
        raise UnsupportedFile("a tree of another version of ROOT")
    for _ in range(4):  # name, and attributes of line, fill and marker
        cursor.skip()
    entries, *_, ranges, _, _, _, _, _, _ = cursor.take(_TREE_NUMBERS)
    # two arrays of 8-byte numbers, the bounds and sizes of cluster ranges, each after one byte
    cursor.at += 2 * (1 + 8 * ranges)
    cursor.skip()  # features
    branches = {}
    for kind, place in cursor.objects():
        # read only the name first, because most branches are not needed
        ahead = Cursor(place.data, place.at, place.shift)
        end = ahead.begin()[1]
        if kind != "TBranch":
            # a branch of objects has branches of its own, with any names
            if any(_encode_text(name) in place.data[place.at : end] for name in names):
                raise UnsupportedFile("a branch of objects")
            continue
        name = ahead.object_name()
        if name in names and name not in branches:  # the first of several with the same name
            branches[name] = _parse_branch(name, place, entries)
    missing = names - branches.keys()
    if missing:
        raise UnsupportedFile(f"no simple branch {sorted(missing)[0]}")
    return Tree(path=path, num_entries=entries, branches=branches)


def _encode_text(text: str) -> bytes:
    """Encode a text with its length, in the form that `Cursor.text` reads."""
    content = text.encode(errors="surrogateescape")
    return bytes([len(content)]) + content if len(content) < 255 else content


def _parse_branch(name: str, cursor: Cursor, entries: int) -> Branch:
    """Parse the branch at `cursor`, of a tree with this number of entries."""
    if cursor.begin()[0] != BRANCH_VERSION:
        raise UnsupportedFile("a branch of another version of ROOT")
    cursor.skip()  # name
    cursor.skip()  # attributes of fill
    count = cursor.take(_BRANCH_NUMBERS)[3]
    cursor.skip()  # features
    _, room, _, own_entries, first, uncompressed_bytes, _ = cursor.take(_BRANCH_SIZES)
    if any(True for _ in cursor.objects()):
        raise UnsupportedFile("a branch of branches")
    leaves = list(cursor.objects())
    cursor.skip()  # baskets within the tree's own record
    # the arrays have room for more baskets than there are
    sizes = cursor.array(">i4", room)[:count].astype(np.int64)
    starts = cursor.array(">i8", room)[: count + 1].astype(np.int64)
    seeks = cursor.array(">i8", room)[:count].astype(np.int64)
    own = len(leaves) == 1 and own_entries == entries and not first
    if not own or len(starts) != count + 1 or starts[0] or starts[-1] != entries:
        raise UnsupportedFile("entries that are not in baskets of their own")
    if (np.diff(starts) <= 0).any() or (seeks <= 0).any() or (sizes <= 0).any():
        raise UnsupportedFile("baskets out of order")
    dtype, is_jagged = _parse_leaf(*leaves[0])
    return Branch(
        name=name,
        dtype=dtype,
        is_jagged=is_jagged,
        seeks=seeks,
        sizes=sizes,
        first_entries=starts,
        uncompressed_bytes=uncompressed_bytes,
    )


def _parse_leaf(kind: str, cursor: Cursor) -> tuple[np.dtype, bool]:
    """Parse a leaf; returns the type of its numbers, and whether an entry has a list of them."""
    if kind not in TYPES:
        raise UnsupportedFile("a leaf of another type")
    cursor.begin()
    if cursor.begin()[0] != 2:
        raise UnsupportedFile("a leaf of another version of ROOT")
    title = cursor.object_title()
    length, size, _, _, is_unsigned, counter = cursor.take(_LEAF)
    dtype = np.dtype(f">{TYPES[kind]}")
    dtype = np.dtype(f">u{dtype.itemsize}") if is_unsigned and dtype.kind == "i" else dtype
    # `x[1]` has one number for each entry, as `x` has, but is an array
    dimensions = title.count("[") - (counter != 0)
    if length != 1 or dimensions > 0 or size != dtype.itemsize:
        raise UnsupportedFile("several numbers under one name")
    return dtype, counter != 0
