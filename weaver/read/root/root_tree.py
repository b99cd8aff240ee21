"""Where the baskets of a ROOT file's tree lie, read from the file's own records.

That takes some milliseconds, where a general reader takes tens. It covers what JetNtuple and flat
NanoAOD files are made of, written by ROOT 6 or uproot: trees (version 20) whose branches (version
13) hold one number, or one list of numbers with a counter, for each entry. Whatever else there is,
`read_tree` raises Unusual, and the caller goes on with uproot, which knows everything and refuses
with reasons. The records are those of ROOT's streamers: big-endian; an object begins with its
length and its version, so that unused objects are passed over.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from weaver.read.remote import Fetch
from weaver.read.root.inflate import inflate

HEAD = 4096  # bytes of a file that hold its header and its root directory's record
LARGE_FILE = 1_000_000  # added to the version of a file with 64-bit addresses
LARGE_KEY = 1000  # the same for records
COUNTED = 0x4000_0000  # set in the length before an object
CLASS = 0x8000_0000  # set in a reference to a class that was named before
NEW_CLASS = 0xFFFF_FFFF
CLASS_OFFSET = 2  # ROOT counts references from here
REFERENCED = 1 << 4  # bit of an object that a process id follows
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
DEPTH = 10  # folders in folders

_TREE_NUMBERS = struct.Struct(">qqqqqdiiiiIqqqqqq")
_BRANCH_NUMBERS = struct.Struct(">iiiiq")
_BRANCH_SIZES = struct.Struct(">iIiqqqq")
_LEAF = struct.Struct(">iii??I")
_KEY = struct.Struct(">ihiIhh")


class Unusual(Exception):
    """Something that this reader leaves to uproot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """One branch: its type in the file, and its baskets.

    Basket i holds the entries first_entries[i] : first_entries[i + 1].
    """

    name: str
    dtype: np.dtype
    jagged: bool
    seeks: np.ndarray
    """Byte of the file at which each basket begins, (B,)."""
    sizes: np.ndarray
    """Its bytes in the file, (B,)."""
    first_entries: np.ndarray
    """(B + 1,)."""
    uncompressed: int
    """Bytes of all baskets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree and some of its branches."""

    path: str
    """With its cycle."""
    num_entries: int
    branches: Mapping[str, Branch]


def read_tree(fetch: Fetch, choose: Callable[[list[str]], str], names: set[str]) -> Tree:
    """The branches with these names of a tree of a file.

    fetch: (first byte, number of bytes) -> bytes of the file. choose: the paths (with cycles) of
    all trees -> one of them. Raises Unusual, or whatever comes of damaged bytes (struct.error,
    IndexError, ValueError, OSError, zlib's errors).
    """
    head = Cursor(bytes(fetch(0, HEAD)))
    magic, version, begin = head.take(">4sii")
    if magic != b"root":
        raise Unusual("no ROOT file")
    head.take(">qqii" if version >= LARGE_FILE else ">iiii")  # the end, the list of free pieces
    (name_length,) = head.take(">i")
    keys = dict(_trees(fetch, begin + name_length, "", DEPTH))
    chosen = choose(list(keys))
    data, start = keys[chosen].content(fetch)
    return _parse_tree(chosen, Cursor(data, 0, start), names)


# ------------------------------------------------------------------------------------ directories


@dataclasses.dataclass(frozen=True)
class _Key:
    """One entry of a directory."""

    kind: str
    name: str
    cycle: int
    seek: int
    stored: int
    uncompressed: int
    key_length: int

    def content(self, fetch: Fetch) -> tuple[bytes, int]:
        """The object's bytes, and what ROOT's references within it count from."""
        record = fetch(self.seek, self.stored)
        if len(record) < self.stored:
            raise Unusual("a record ends behind the file")
        data = inflate(memoryview(record)[self.key_length :], self.uncompressed)
        return bytes(data), self.key_length


def _trees(fetch: Fetch, at: int, path: str, depth: int) -> Iterator[tuple[str, _Key]]:
    """Path with cycle -> key, of the trees in a directory and at most `depth` below it."""
    record = Cursor(bytes(fetch(at, 64)))
    version, _, _, keys_size, _ = record.take(">hIIii")
    seek = record.take(">qqq" if version > LARGE_KEY else ">iii")[2]
    listed = Cursor(bytes(fetch(seek, keys_size)))
    _key(listed)
    for _ in range(listed.take(">i")[0]):
        key = _key(listed)
        if key.kind == "TTree":
            yield f"{path}{key.name};{key.cycle}", key
        elif key.kind in DIRECTORIES:
            if not depth:
                raise Unusual("folders within folders")
            yield from _trees(fetch, key.seek + key.key_length, f"{path}{key.name}/", depth - 1)
        elif key.kind == "TNtuple":
            raise Unusual("a tree of another kind")


def _key(cursor: Cursor) -> _Key:
    stored, version, uncompressed, _, key_length, cycle = cursor.take(_KEY)
    seek, _ = cursor.take(">qq" if version > LARGE_KEY else ">ii")
    kind = cursor.text()
    name = cursor.text()
    cursor.text()  # title
    return _Key(kind, name, cycle, seek, stored, uncompressed, key_length)


# --------------------------------------------------------------------------------- tree, branches


class Cursor:
    """A place in a record. `shift`: what references within it count from."""

    def __init__(self, data: bytes, at: int = 0, shift: int = 0) -> None:
        """Read from `at` on; `shift` is where the data begin in the file."""
        self.data = data
        self.at = at
        self.shift = shift

    def take(self, form: str | struct.Struct) -> tuple:
        """The numbers here, in the form of module struct."""
        form = struct.Struct(form) if isinstance(form, str) else form
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def text(self) -> str:
        """The counted text here."""
        (length,) = self.take(">B")
        if length == 255:  # a longer one: its length follows
            (length,) = self.take(">I")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode(errors="surrogateescape")

    def array(self, dtype: str, count: int) -> np.ndarray:
        """A counted array after the byte that says whether there is one."""
        numbers = np.frombuffer(self.data, dtype, count, self.at + 1)
        self.at += 1 + numbers.nbytes
        return numbers

    def begin(self) -> tuple[int, int]:
        """The version of an object that begins here, and where it ends."""
        length, version = self.take(">IH")
        if not length & COUNTED:
            raise Unusual("an object without its length")
        return version, self.at - 2 + (length & ~COUNTED)

    def skip(self) -> None:
        """Pass over an object."""
        self.at = self.begin()[1]

    def plain_object(self) -> None:
        """Pass over the part that every object of ROOT has."""
        version, _, bits = self.take(">HII")
        if version & (COUNTED >> 16):
            raise Unusual("an object with a length of its own")
        if bits & REFERENCED:
            self.at += 2

    def object_name(self) -> str:
        """The name of a named object, whose end is then reached."""
        end = self.begin()[1]
        self.plain_object()
        name = self.text()
        self.at = end
        return name

    def object_title(self) -> str:
        """The title of a named object, whose end is then reached."""
        end = self.begin()[1]
        self.plain_object()
        self.text()
        title = self.text()
        self.at = end
        return title

    def objects(self) -> Iterator[tuple[str, Cursor]]:
        """The objects of an array that begins here: class, and a place at the object's beginning.

        The array's end is then reached.
        """
        end = self.begin()[1]
        self.plain_object()
        self.text()
        count, _ = self.take(">ii")
        for _ in range(count):
            (length,) = self.take(">I")
            if length == NEW_CLASS or not length & COUNTED:
                if length:
                    raise Unusual("an array that refers to an object elsewhere")
                continue
            after = self.at + (length & ~COUNTED)
            kind = self.class_name()
            yield kind, Cursor(self.data, self.at, self.shift)
            self.at = after
        self.at = end

    def class_name(self) -> str:
        """The class of an object, which stands here or, after its first use, is referred to."""
        (tag,) = self.take(">I")
        if tag == NEW_CLASS:
            end = self.data.index(0, self.at)
            name = bytes(self.data[self.at : end]).decode()
            self.at = end + 1
            return name
        if not tag & CLASS:
            raise Unusual("an object without a class")
        definition = Cursor(self.data, (tag & ~CLASS) - CLASS_OFFSET - self.shift)
        if definition.at < 0 or definition.take(">I")[0] != NEW_CLASS:
            raise Unusual("a reference to no class")
        definition.at -= 4
        return definition.class_name()


def _parse_tree(path: str, cursor: Cursor, names: set[str]) -> Tree:
    """The tree at `cursor`, with those of its branches that have these names."""
    if cursor.begin()[0] != TREE_VERSION:
        raise Unusual("a tree of another version of ROOT")
    for _ in range(4):  # name, and attributes of line, fill and marker
        cursor.skip()
    entries, *_, ranges, _, _, _, _, _, _ = cursor.take(_TREE_NUMBERS)
    # two arrays of 8-byte numbers, the bounds and sizes of cluster ranges, each after one byte
    cursor.at += 2 * (1 + 8 * ranges)
    cursor.skip()  # features
    branches = {}
    for kind, place in cursor.objects():
        # only the name is read first: most branches are not needed
        ahead = Cursor(place.data, place.at, place.shift)
        end = ahead.begin()[1]
        if kind != "TBranch":
            # objects, whose branches within may have any name
            if any(_counted(name) in place.data[place.at : end] for name in names):
                raise Unusual("a branch of objects")
            continue
        name = ahead.object_name()
        if name in names and name not in branches:  # of two of one name the first one counts
            branches[name] = _parse_branch(name, place, entries)
    missing = names - branches.keys()
    if missing:
        raise Unusual(f"no simple branch {sorted(missing)[0]}")
    return Tree(path=path, num_entries=entries, branches=branches)


def _counted(text: str) -> bytes:
    """A text as `Cursor.text` reads it."""
    content = text.encode(errors="surrogateescape")
    return bytes([len(content)]) + content if len(content) < 255 else content


def _parse_branch(name: str, cursor: Cursor, entries: int) -> Branch:
    """The branch at `cursor` of a tree with so many entries."""
    if cursor.begin()[0] != BRANCH_VERSION:
        raise Unusual("a branch of another version of ROOT")
    cursor.skip()  # name
    cursor.skip()  # attributes of fill
    count = cursor.take(_BRANCH_NUMBERS)[3]
    cursor.skip()  # features
    _, room, _, own_entries, first, uncompressed, _ = cursor.take(_BRANCH_SIZES)
    if any(True for _ in cursor.objects()):
        raise Unusual("a branch of branches")
    leaves = list(cursor.objects())
    cursor.skip()  # baskets within the tree's own record
    # ROOT keeps room for more baskets than there are.
    sizes = cursor.array(">i4", room)[:count].astype(np.int64)
    starts = cursor.array(">i8", room)[: count + 1].astype(np.int64)
    seeks = cursor.array(">i8", room)[:count].astype(np.int64)
    own = len(leaves) == 1 and own_entries == entries and not first
    if not own or len(starts) != count + 1 or starts[0] or starts[-1] != entries:
        raise Unusual("entries that are not in baskets of their own")
    if (np.diff(starts) <= 0).any() or (seeks <= 0).any() or (sizes <= 0).any():
        raise Unusual("baskets out of order")
    dtype, jagged = _parse_leaf(*leaves[0])
    return Branch(
        name=name,
        dtype=dtype,
        jagged=jagged,
        seeks=seeks,
        sizes=sizes,
        first_entries=starts,
        uncompressed=uncompressed,
    )


def _parse_leaf(kind: str, cursor: Cursor) -> tuple[np.dtype, bool]:
    """The type of a leaf's numbers, and whether there are several of them for an entry."""
    if kind not in TYPES:
        raise Unusual("a leaf of another type")
    cursor.begin()
    if cursor.begin()[0] != 2:
        raise Unusual("a leaf of another version of ROOT")
    title = cursor.object_title()
    length, size, _, _, unsigned, counter = cursor.take(_LEAF)
    dtype = np.dtype(f">{TYPES[kind]}")
    dtype = np.dtype(f">u{dtype.itemsize}") if unsigned and dtype.kind == "i" else dtype
    # of `x[1]` as of `x` there is one number, but an array of it
    dimensions = title.count("[") - (counter != 0)
    if length != 1 or dimensions > 0 or size != dtype.itemsize:
        raise Unusual("several numbers under one name")
    return dtype, counter != 0
