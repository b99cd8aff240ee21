"""Storage on disk, on a real S3 endpoint (moto's) and on a real XRootD server behaves the same."""

import errno
import os
import re
import threading
from pathlib import Path

import pytest

from common import storage
from common.errors import AccessError, InputError, StorageError


@pytest.fixture(params=["directory", "s3", "root"])
def place(request, tmp_path):
    if request.param == "directory":
        return str(tmp_path / "place")
    if request.param == "root":
        return request.getfixturevalue("xrootd_server").uri + f"/{tmp_path.name}/place"
    return request.getfixturevalue("s3_bucket") + "/place"


def test_bytes_json_and_text_are_stored_and_listed(place):
    assert not storage.exists(place)
    storage.write_json(storage.join(place, "a", "x.json"), {"n": 1})
    storage.write_bytes(storage.join(place, "a", "y.bin"), b"123")
    storage.write_text(storage.join(place, "ab", "z.txt"), "z")
    assert storage.read_json(storage.join(place, "a/x.json")) == {"n": 1}
    assert [(storage.name(e.uri), e.size) for e in storage.entries(storage.join(place, "a"))] == [
        ("x.json", 10 + 3),
        ("y.bin", 3),
    ]
    assert storage.exists(storage.join(place, "a"))
    assert not storage.exists(storage.join(place, "a", "x"))


def test_missing_files_are_input_errors(place):
    with pytest.raises(InputError, match="/nothing"):
        storage.read_bytes(storage.join(place, "nothing"))
    with pytest.raises(InputError, match="/nothing"):
        storage.download(storage.join(place, "nothing"), "unused")


def test_a_star_does_not_cross_a_slash(place):
    for name in ("t/1.root", "t/2.root", "t/deep/3.root", "t/1.txt"):
        storage.write_bytes(storage.join(place, name), b"")
    assert [storage.name(e.uri) for e in storage.glob(storage.join(place, "t/*.root"))] == [
        "1.root",
        "2.root",
    ]
    assert [storage.name(e.uri) for e in storage.glob(storage.join(place, "t/*/[34].root"))] == [
        "3.root"
    ]
    assert len(storage.glob(storage.join(place, "t"))) == 4


def test_folders_are_uploaded_and_downloaded(place, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "one").write_bytes(b"1" * 100)
    # large: a multipart upload
    (source / "sub" / "two").write_bytes(
        b"2" * (40 * 2**20) if storage.is_s3(place) else b"2" * (9 * 2**20)
    )
    storage.upload(source, place)
    back = storage.download(place, tmp_path / "back")
    assert (back / "one").read_bytes() == b"1" * 100
    assert (back / "sub" / "two").read_bytes() == (source / "sub" / "two").read_bytes()
    assert storage.delete(place) == 2
    assert storage.entries(place) == []


def test_fingerprint_changes_with_content(place):
    uri = storage.join(place, "f")
    storage.write_bytes(uri, b"one")
    before = storage.fingerprint(storage.entries(place))
    assert storage.fingerprint(storage.entries(place)) == before
    storage.write_bytes(uri, b"three")
    assert storage.fingerprint(storage.entries(place)) != before


def test_readers_never_see_an_incomplete_file(tmp_path):
    uri, stop, sizes = str(tmp_path / "f"), threading.Event(), set()
    storage.write_bytes(uri, b"0" * 10**6)

    def read_repeatedly():
        while not stop.is_set():
            sizes.add(len(storage.read_bytes(uri)))

    reader = threading.Thread(target=read_repeatedly)
    reader.start()
    for i in range(30):
        storage.write_bytes(uri, bytes([i]) * 10**6)
    stop.set()
    reader.join()
    assert sizes == {10**6}
    assert os.listdir(tmp_path) == ["f"]


def test_s3_errors_name_the_bucket_and_the_endpoint(s3_bucket):
    with pytest.raises(InputError, match="'elsewhere' at http"):
        storage.read_bytes("s3://elsewhere/key")
    with pytest.raises(InputError, match="s3://"):
        storage.entries("s3://")


def test_ranges_are_complete_and_in_order(place):
    content = bytes(range(256)) * 40
    uri = storage.join(place, "numbers")
    storage.write_bytes(uri, content)
    ranges = [(5000, 5010), (0, 1), (7, 7), (10_239, 10_240), (100, 9000)]
    with storage.open_source(uri) as source:
        assert source.size == len(content)
        assert source.read_ranges(ranges) == [content[start:stop] for start, stop in ranges]
        with pytest.raises(StorageError, match="10,240"):
            source.read(10_000, 10_300)
    with storage.open_file(uri) as file:
        file.seek(-3, os.SEEK_END)
        assert (file.read(), file.read(1)) == (content[-3:], b"")
        assert file.seek(256) == 256
        assert file.read(3) == b"\0\1\2"


def test_a_file_that_changes_while_it_is_read_is_refused(s3_bucket):
    uri = storage.join(s3_bucket, "f")
    storage.write_bytes(uri, b"one")
    with storage.open_source(uri) as source:
        storage.write_bytes(uri, b"three")
        with pytest.raises(StorageError, match="changed"):
            source.read(0, 3)


def test_writing_leaves_no_temporary_file(place):
    storage.write_bytes(storage.join(place, "a/b"), b"1")
    storage.write_bytes(storage.join(place, "a/b"), b"22")
    storage.upload(__file__, storage.join(place, "a/c"))
    assert [(storage.name(e.uri), e.size) for e in storage.entries(place)] == [
        ("b", 2),
        ("c", os.path.getsize(__file__)),
    ]
    assert storage.exists(storage.join(place, "a"))
    assert storage.delete(storage.join(place, "a/b")) == 1
    assert not storage.exists(storage.join(place, "a/b"))
    assert storage.delete(storage.join(place, "nothing")) == 0


def test_invalid_paths_on_disk_are_input_errors(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    attempts = [
        lambda: storage.write_text(str(tmp_path / "file" / "below"), "1"),
        lambda: storage.write_text(str(tmp_path / "folder"), "1"),
        lambda: storage.open_source(str(tmp_path / "folder")),
        lambda: storage.read_bytes(str(tmp_path / "folder")),
        lambda: storage.read_bytes(str(tmp_path / ("x" * 300))),
        lambda: storage.read_bytes(str(tmp_path / "a\0b")),
        lambda: storage.glob(str(tmp_path / "a\0b")),
        lambda: storage.read_text(str(tmp_path / "file")),
    ]
    for attempt in attempts:
        with pytest.raises(InputError, match=re.escape(str(tmp_path))):
            attempt()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_text(str(tmp_path / "a"), "1")
    assert os.listdir(tmp_path) == []


def test_the_name_of_an_existing_file_is_no_pattern(place):
    for name in ("a[1].root", "a1.root"):
        storage.write_text(f"{place}/{name}", name)
    assert [entry.uri for entry in storage.glob(f"{place}/a[1].root")] == [f"{place}/a[1].root"]
    storage.delete(f"{place}/a[1].root")
    assert [entry.uri for entry in storage.glob(f"{place}/a[1].root")] == [f"{place}/a1.root"]


@pytest.mark.parametrize("uri", ["s3://a b/x", "s3://bucket"])
def test_invalid_s3_addresses_are_input_errors(s3_server, no_pauses, tmp_path, uri):
    for use in (storage.read_bytes, lambda uri: storage.s3.download(uri, str(tmp_path / "x"))):
        with pytest.raises(InputError, match=re.escape(uri)):
            use(uri)
    assert no_pauses == []


@pytest.fixture
def unreadable(tmp_path, monkeypatch) -> Path:
    """A folder with a file that root cannot read either, as on AFS without a token."""
    folder = tmp_path / "unreadable"
    folder.mkdir()
    (folder / "a.root").touch()

    def refused_below(function):
        def refuse(path, *arguments, **options):
            is_listed = function.__name__ == "scandir" and Path(path) == folder
            if is_listed or folder in Path(path).parents:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *arguments, **options)

        return refuse

    for function in (os.stat, os.lstat, os.scandir):
        monkeypatch.setattr(os, function.__name__, refused_below(function))
    return folder


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: storage.exists(f"{folder}/run.json"),
        lambda folder: storage.glob(f"{folder}/*.root"),
        lambda folder: storage.glob(f"{folder}/a.root"),
        lambda folder: storage.entries(str(folder)),
        lambda folder: storage.entries(str(folder.parent)),
    ],
    ids=["exists", "glob", "glob of a file", "entries", "entries above"],
)
def test_an_unreadable_folder_is_not_an_empty_one(unreadable, use):
    with pytest.raises(AccessError, match=re.escape(str(unreadable))):
        use(unreadable)


def test_lost_and_found_of_a_disk_is_left_out(unreadable, monkeypatch):
    monkeypatch.setattr(storage.local, "LOST_AND_FOUND", unreadable.name)
    (unreadable.parent / "b.root").touch()
    (entry,) = storage.entries(str(unreadable.parent))
    assert entry.uri == str(unreadable.parent / "b.root")


@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_PROFILE", "no-such"), ("AWS_ENDPOINT_URL", "foo")]
)
def test_invalid_settings_of_aws_are_refused_by_name(s3_server, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    storage.forget_client()
    try:
        for use in (storage.glob, storage.read_bytes, storage.exists):
            with pytest.raises(InputError, match=f"{variable}: .*{value}"):
                use("s3://bucket/x")
    finally:
        storage.forget_client()
