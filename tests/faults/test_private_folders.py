"""Folders where other users may write too: only folders that the user alone owns are trusted."""

import os
import stat

import numpy as np
import pytest

from common import private_folder, storage
from common.errors import InputError
from serving import server_folder
from weaver.prepared import columns

pytestmark = pytest.mark.faults


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A temporary folder that everybody may write to, as /tmp is."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delenv("JEC_CACHE", raising=False)
    return folder


@pytest.fixture
def prepared_set(tmp_path):
    """Prepared data of one column, on a shared disk."""
    folder = tmp_path / "disk/cache/0123"
    folder.mkdir(parents=True)
    np.save(folder / "scalars.npy", np.arange(4, dtype=np.float32))
    # without an entry for the column, so that its bytes are not looked at
    description = {"format": columns.FORMAT, "num_jets": 4, "columns": {}, "sequences": {}}
    storage.write_json(str(folder / "dataset.json"), description)
    return folder


def cache_of(folder):
    return folder / f"jec-cache-{os.getuid()}"


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_node_cache_is_made_for_this_user_alone(shared, prepared_set):
    copy = columns.local_copy(str(prepared_set), always=True)
    assert copy.parent == cache_of(shared)
    assert mode(cache_of(shared)) == 0o700
    assert (copy / "scalars.npy").read_bytes() == (prepared_set / "scalars.npy").read_bytes()


def test_a_cache_of_another_user_is_refused(shared, prepared_set, monkeypatch):
    cache = cache_of(shared)
    cache.mkdir(mode=0o700)
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    cache.rename(cache_of(shared))
    with pytest.raises(InputError, match=f"uid {own}.*JEC_CACHE"):
        columns.local_copy(str(prepared_set), always=True)
    assert list(cache_of(shared).iterdir()) == []


@pytest.mark.parametrize("open_to", [0o770, 0o707, 0o777, 0o720, 0o702])
def test_a_cache_that_others_can_write_is_refused(shared, prepared_set, open_to):
    cache_of(shared).mkdir()
    cache_of(shared).chmod(open_to)
    with pytest.raises(InputError, match=f"{open_to:04o}"):
        columns.local_copy(str(prepared_set), always=True)


def test_a_cache_that_is_a_link_is_refused(shared, prepared_set, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    cache_of(shared).symlink_to(elsewhere)
    with pytest.raises(InputError, match="link"):
        columns.local_copy(str(prepared_set), always=True)
    assert list(elsewhere.iterdir()) == []


def test_a_cache_that_is_a_file_is_refused(shared, prepared_set):
    cache_of(shared).write_text("")
    with pytest.raises(InputError, match="not a folder"):
        columns.local_copy(str(prepared_set), always=True)


def test_a_folder_that_the_user_names_is_checked_as_well(prepared_set, tmp_path, monkeypatch):
    folder = tmp_path / "named"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("JEC_CACHE", str(folder))
    with pytest.raises(InputError, match="JEC_CACHE"):
        columns.local_copy(str(prepared_set), always=True)


def test_data_on_a_disk_needs_no_cache(shared, prepared_set):
    cache_of(shared).write_text("in the way")
    assert columns.local_copy(str(prepared_set)) == prepared_set


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(shared, prepared_set, tmp_path):
    victim = tmp_path / "thesis.tex"
    victim.write_text("ten years of work")
    cache_of(shared).mkdir(mode=0o700)
    (cache_of(shared) / "0123.lock").symlink_to(victim)
    with pytest.raises(InputError, match=r"0123\.lock"):
        columns.local_copy(str(prepared_set), always=True)
    assert victim.read_text() == "ten years of work"


def test_a_lock_is_opened_without_truncation(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("owner")
    os.close(private_folder.open_lock(lock))
    assert lock.read_text() == "owner"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_results_have_the_permissions_of_the_users_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        storage.write_text(str(tmp_path / "run.json"), "{}")
        with columns.building(tmp_path / "cache/0123") as partial:
            storage.write_json(str(partial / "dataset.json"), {})
    finally:
        os.umask(before)
    assert mode(tmp_path / "run.json") == 0o666 & ~umask
    assert mode(tmp_path / "cache/0123") == 0o777 & ~umask


def test_a_servers_folder_of_another_user_is_neither_read_nor_removed(shared, monkeypatch):
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    folder = shared / f"jec-server-{own + 1}-x"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "lock").touch()
    record = {"pid": os.getpid(), "url": "http://127.0.0.1:1", "models": {"m": "/models/m"}}
    storage.write_json(str(folder / "server.json"), record)
    assert list(server_folder.running()) == []
    server_folder.remove_abandoned()
    assert folder.exists()
