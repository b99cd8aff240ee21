"""Distant files: which ranges are requested together and in advance, and how many bytes real
servers send."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import threading
import time

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.proxy import Proxy
from common import storage
from common.errors import StorageError
from common.storage import vectors
from common.storage.source import Source
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.prepared.prepare import prepare
from weaver.read import files, remote
from weaver.read.ahead import lookahead
from weaver.read.root import root_tree

FILES = 2

# Requests for a file of two steps: both ends, and each step. An XRootD client also opens and closes
# it twice, and asks for its size and time at the end.
REQUESTS = {
    ("ours", "s3"): 4,
    ("ours", "http"): 4,
    ("ours", "root"): 8,
    ("uproot", "s3"): 10,
    ("uproot", "http"): 10,
    ("uproot", "root"): 12,
}

PFN = DataConfig.from_options(yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text()), "jec.yaml")

RANGES = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(1, 400)).map(lambda r: (r[0], r[0] + r[1])),
    max_size=30,
)


class Bytes(Source):
    """A source in memory that records the ranges it reads."""

    def __init__(self, content: bytes) -> None:
        self.uri, self.size, self._content = "memory", len(content), content
        self.ranges: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> bytes:
        self.ranges.append((start, stop))
        return self.check(self._content[start:stop], start, stop)


CONTENT = np.random.default_rng(1).bytes(5000)


@settings(deadline=None)
@given(RANGES, st.floats(0, 0.5), st.sampled_from([300, 10_000]))
def test_joined_requests_contain_each_range_in_one_piece(ranges, share, largest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "REQUEST_BYTES", largest)
        requests = remote.join(ranges, share)
    parts = remote.Parts(requests, [CONTENT[start:stop] for start, stop in requests])
    for start, stop in ranges:
        assert parts(start, stop - start) == CONTENT[start:stop]
    num_bytes = len({byte for start, stop in ranges for byte in range(start, stop)})
    assert sum(stop - start for start, stop in requests) <= (1 + share) * num_bytes
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(requests))


def test_requests_join_over_small_gaps_first_and_are_limited_in_size(monkeypatch):
    ranges = [(0, 100), (108, 200), (204, 300), (350, 400), (400, 450)]
    assert remote.join(ranges, 0.0) == [(0, 100), (108, 200), (204, 300), (350, 450)]
    assert remote.join(ranges, 0.02) == [(0, 100), (108, 300), (350, 450)]
    assert remote.join(ranges, 0.04) == [(0, 300), (350, 450)]
    monkeypatch.setattr(remote, "REQUEST_BYTES", 200)
    assert remote.join(ranges, 0.04) == [(0, 200), (204, 300), (350, 450)]


def test_parts_raise_key_error_outside_their_ranges():
    parts = remote.Parts([(10, 20), (30, 40)], [bytes(10), bytes(10)])
    for start, size in ((0, 5), (15, 6), (20, 1), (35, 10)):
        with pytest.raises(KeyError):
            parts(start, size)


def test_both_ends_of_a_file_are_read_once():
    source = Bytes(bytes(range(256)) * 4000)
    ends = remote.Ends(source)
    assert len(source.ranges) == 2
    before = list(source.ranges)
    assert ends(10, 100) == source._content[10:110]
    assert ends(source.size - 50, 100) == source._content[-50:]
    assert ends(source.size, 10) == b""
    assert source.ranges == before
    for _ in range(2):  # read once, then kept
        assert ends(500_000, 10) == source._content[500_000:500_010]
    assert source.ranges == [*before, (500_000, 500_010)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 900)), max_size=20))
def test_ranges_are_assembled_from_the_pieces_of_their_requests(places):
    ranges = [(start, start + size) for start, size in places]
    source = Bytes(CONTENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "VECTOR_ITEM", 100)
        patch.setattr(vectors, "VECTOR_BYTES", 250)
        patch.setattr(vectors, "VECTOR_ITEMS", 4)

        def read_pieces(pieces):
            is_plain = len(pieces) == 1
            assert is_plain or all(stop - start <= 100 for start, stop in pieces)
            assert is_plain or sum(stop - start for start, stop in pieces) <= 250
            assert len(pieces) <= 4
            return [source.read(*piece) for piece in pieces]

        contents = vectors.read_in_pieces(ranges, vectors.in_vectors, read_pieces)
    assert contents == [CONTENT[start:stop] for start, stop in ranges]
    assert source.read_ranges(ranges) == contents
    assert vectors.split_ranges([(0, 250), (300, 300)], 100) == [(0, 100), (100, 200), (200, 250)]


def test_the_threads_of_requests_are_reused():
    ranges = [(0, 10), (20, 30), (40, 50)]
    source = Bytes(CONTENT)
    threads = set()

    def read_pieces(pieces):
        threads.add(threading.current_thread())
        return [source.read(*piece) for piece in pieces]

    for _ in range(20):
        contents = vectors.read_in_pieces(ranges, vectors.one_each, read_pieces)
        assert contents == [CONTENT[start:stop] for start, stop in ranges]
    assert len(threads) <= vectors.REQUESTS + 1  # and the caller's


def test_a_failed_read_raises_after_its_other_requests_end():
    under_way = threading.Event()
    completed_requests = []

    def read_pieces(pieces):
        if pieces[0][0] == 0:
            assert under_way.wait(10)
            raise StorageError("lost")
        under_way.set()
        time.sleep(0.05)
        completed_requests.append(pieces)
        return [b"x" * 10]

    with pytest.raises(StorageError, match="lost"):
        vectors.read_in_pieces([(0, 10), (20, 30)], vectors.one_each, read_pieces)
    assert completed_requests == [[(20, 30)]]


def test_lookahead_reads_items_up_to_a_total_weight():
    consumed_items = []

    def items():
        for item in (1, 1, 1, 0, 1, 1, 1, 1):
            consumed_items.append(item)
            yield item

    counts = []
    for _ in lookahead(items(), lambda item: item, 2):
        counts.append(len(consumed_items))
    assert counts == [3, 4, 4, 4, 7, 8, 8, 8]


# ------------------------------------------------------------------------------------ real servers


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A folder of files with unused columns between the others, and the bytes of the used
    branches.
    """
    folder = tmp_path_factory.mktemp("sample")
    for number in range(FILES):
        columns = synthetic_jets(5000, seed=number)
        rng = np.random.default_rng(number)
        counts = rng.integers(0, 250, 5000)
        extra = {
            "SV": ak.zip({"pT": ak.unflatten(rng.random(counts.sum(), np.float32), counts)}),
            "other": rng.random(5000),
        }
        write_jets(folder / f"jets_{number}.root", {**extra, **columns}, basket=2500)
    branches = set(PFN.plan(for_training=True).branches.values())
    branch_bytes = 0
    size = 0
    for path in folder.iterdir():
        size += path.stat().st_size
        with uproot.open(path) as file:
            tree = file["AK4jets/jetTree"]
            branch_bytes += sum(tree[name].compressed_bytes for name in branches)
    assert size > 1.3 * branch_bytes
    return folder, branch_bytes


@pytest.fixture(params=["s3", "xrootd", "http"])
def distant(request, sample, monkeypatch):
    """The sample on a server behind a proxy: its pattern, and the proxy."""
    folder, _ = sample
    if request.param == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        for path in folder.iterdir():
            storage.upload(str(path), f"{bucket}/{path.name}")
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        with Proxy(int(endpoint.rpartition(":")[2])) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
            storage.forget_client()
            yield f"{bucket}/*.root", proxy
        storage.forget_client()
        return
    server = request.getfixturevalue(f"{'web' if request.param == 'http' else 'xrootd'}_server")
    place = server.data / "remote"
    place.mkdir(exist_ok=True)
    for path in folder.iterdir():
        shutil.copyfile(path, place / path.name)
    with Proxy(server.port) as proxy:
        if request.param == "xrootd":
            yield f"root://localhost:{proxy.port}//remote/*.root", proxy
        else:
            yield f"http://localhost:{proxy.port}/remote/*.root", proxy


def digests(uri: str) -> dict[str, str]:
    """SHA-256 of each prepared column."""
    return {
        storage.name(entry.uri): hashlib.sha256(storage.read_bytes(entry.uri)).hexdigest()
        for entry in storage.glob(f"{uri}/*.npy")
    }


@pytest.mark.parametrize("decoder", ["ours", "uproot"])
def test_each_source_gives_equal_columns_with_few_bytes(
    distant, sample, tmp_path, monkeypatch, decoder
):
    if decoder == "uproot":
        monkeypatch.setattr(files, "_simple_tree", lambda *_: None)
    pattern, proxy = distant
    folder, branch_bytes = sample
    options = {"for_training": True, "report": lambda line: None, "step_bytes": 2**20}
    disk = prepare(f"{folder}/*.root", PFN, str(tmp_path / "disk"), **options)
    entries = files.find(pattern)
    proxy.reset()
    reference = prepare(entries, PFN, str(tmp_path / "distant"), **options)

    assert reference.num_jets == disk.num_jets > 0
    assert digests(reference.uri) == digests(disk.uri)
    assert len(digests(disk.uri)) > 5
    counts = proxy.counts
    scheme = pattern.partition(":")[0]
    assert counts.received <= 1.15 * branch_bytes, counts
    assert counts.requests <= REQUESTS[decoder, scheme] * FILES, counts


def test_ranges_beyond_the_limits_of_an_xrootd_server_are_read_one_by_one(
    xrootd_server, monkeypatch
):
    content = np.random.default_rng(2).bytes(7_000_000)
    (xrootd_server.data / "large.bin").write_bytes(content)
    ranges = [(5, 10), (50, 90), (100, 3_000_000), (3_500_000, 6_900_000)]
    with storage.open_source(f"{xrootd_server.uri}/large.bin") as source:
        pieces = []
        read_range = source.read
        monkeypatch.setattr(
            source, "read", lambda *piece: pieces.append(piece) or read_range(*piece)
        )
        for largest in (vectors.VECTOR_ITEM, 4_000_000):  # what the server takes, and more
            monkeypatch.setattr(vectors, "VECTOR_ITEM", largest)
            monkeypatch.setattr(vectors, "VECTOR_BYTES", 2 * largest)
            expected = [content[start:stop] for start, stop in ranges]
            assert source.read_ranges(ranges) == expected
    # at first the two small ones in one vector, then each for itself
    assert sorted(pieces) == sorted([*ranges[2:], *ranges])


def test_a_tree_is_read_from_the_ends_of_a_file(sample):
    """Opening takes one read more than that of the ends, at most."""
    folder, _ = sample
    source = Bytes((folder / "jets_0.root").read_bytes())
    ends = remote.Ends(source)
    tree = root_tree.read_tree(ends, lambda paths: paths[0], {"jetPt"})
    assert tree.num_entries == 5000
    assert len(source.ranges) <= 3


def test_a_lost_server_ends_the_preparation_and_leaves_no_data(
    distant, tmp_path, monkeypatch, no_pauses
):
    """Reads that wait for a file that cannot be opened also end at once."""
    pattern, proxy = distant
    entries = files.find(pattern)
    reads = []
    read_ranges = remote.RemoteFile._read

    def read_or_disconnect(self, ranges):
        reads.append(ranges)
        if len(reads) == 2:
            proxy.close()
        return read_ranges(self, ranges)

    addresses = []
    open_source = storage.open_source
    monkeypatch.setattr(remote.RemoteFile, "_read", read_or_disconnect)
    monkeypatch.setattr(
        storage, "open_source", lambda *which: addresses.append(which) or open_source(*which)
    )
    with pytest.raises(StorageError, match=r"localhost|127\.0\.0\.1"):
        prepare(
            entries,
            PFN,
            str(tmp_path),
            for_training=True,
            report=lambda line: None,
            step_bytes=2**20,
        )
    assert not list((tmp_path / "cache").glob("*/dataset.json"))
    # each file is opened once to inspect it, and once to decode it
    assert len(addresses) <= 2 * FILES
