"""`--prune-cache`: decoded jets go by age and size, never while something uses them."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

import pipeline
from clusters.run_lock import RunLock
from weaver.prepared import node_cache

DAY = 86400.0


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folder of runs and the cache of this machine."""
    monkeypatch.setenv(node_cache.CACHE_VARIABLE, str(tmp_path / "node"))
    (tmp_path / "runs" / "cache").mkdir(parents=True)
    (tmp_path / "node").mkdir()
    return tmp_path / "runs", tmp_path / "node"


def make_set(place, name, *, days=40.0, size=1000):
    folder = place / name
    folder.mkdir()
    (folder / "values.npy").write_bytes(bytes(size))
    (folder / "dataset.json").write_text("{}")
    when = time.time() - days * DAY
    for path in (folder / "dataset.json", folder):
        os.utime(path, (when, when))
    return folder


def prune(runs, *flags):
    try:
        return pipeline.main(["--prune-cache", "--output", str(runs), "--yes", *flags])
    except SystemExit as error:
        return int(error.code or 0)


def test_old_sets_are_removed_in_both_places(places, capsys):
    runs, node = places
    old = [make_set(runs / "cache", "a"), make_set(node, "b")]
    young = [make_set(runs / "cache", "c", days=2), make_set(node, "d", days=29)]
    (node / "networks").mkdir()  # which are small, and no decoded jets
    (node / "b.lock").touch()
    assert prune(runs, "--older-than", "30d") == 0
    assert [folder.exists() for folder in (*old, *young)] == [False, False, True, True]
    assert (node / "networks").exists()
    assert "2 sets" in capsys.readouterr().out
    assert not list(node.glob(".partial*"))


def test_large_sets_are_removed(places):
    runs, _ = places
    small, large = make_set(runs / "cache", "a"), make_set(runs / "cache", "b", size=5000)
    assert prune(runs, "--larger-than", "2K") == 0
    assert small.exists()
    assert not large.exists()


def test_a_set_that_was_just_used_stays(places, capsys):
    runs, _ = places
    fresh = make_set(runs / "cache", "a", days=0.001)
    assert prune(runs, "--older-than", "1m") == 0
    assert fresh.exists()
    assert f"kept: {fresh}" in capsys.readouterr().out


@pytest.mark.faults
@pytest.mark.parametrize("how", ["mapped", "open"])
def test_a_set_that_a_process_uses_stays(places, how):
    runs, node = places
    used_set, other = make_set(node, "a"), make_set(node, "b")
    take = "mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); file.close()"
    code = f"import mmap, time; file = open({str(used_set / 'values.npy')!r}, 'rb')\n"
    code += f"data = {take}\n" if how == "mapped" else ""
    if how == "mapped":
        code = code.replace("; file.close()", "\nfile.close()")
    code += "print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            assert prune(runs, "--older-than", "30d") == 0
        finally:
            process.kill()
    assert used_set.exists()
    assert not other.exists()
    assert prune(runs, "--older-than", "30d") == 0
    assert not used_set.exists()


@pytest.mark.faults
def test_a_set_that_is_being_copied_stays(places, capsys):
    runs, node = places
    folder = make_set(node, "a")
    with open(node / "a.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prune(runs, "--older-than", "30d") == 1
    assert folder.exists()
    assert str(folder) in capsys.readouterr().err


@pytest.mark.faults
def test_a_set_of_an_active_run_is_kept(places):
    runs, _ = places
    for name in ("living", "ended"):
        (runs / name / "data").mkdir(parents=True)
        (runs / name / "run.json").write_text(json.dumps({"run_id": name, "config": {}}))
        reference = {"dataset": f"../../cache/{name}"}
        (runs / name / "data" / "train.json").write_text(json.dumps(reference))
        make_set(runs / "cache", name)
        old = time.time() - 40 * DAY
        (runs / name / "local").mkdir()
        (runs / name / "local" / "lock").touch()
        os.utime(runs / name, (old, old))
    lock = RunLock("living", runs / "living" / "local")
    lock.take(lambda line: None)
    try:
        assert prune(runs, "--older-than", "30d") == 0
    finally:
        lock.release()
    assert [path.name for path in (runs / "cache").iterdir()] == ["living"]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--older-than", "30d", "--prune"),
        ("--older-than", "30d", "--s3-bucket", "s3://bucket/runs"),
    ],
    ids=["no limit", "two commands", "distant storage"],
)
def test_wrong_flags_are_refused(places, flags):
    assert prune(places[0], *flags) == 2


def test_links_are_not_followed(places):
    runs, node = places
    elsewhere = make_set(runs, "elsewhere")
    (node / "link").symlink_to(elsewhere)
    assert prune(runs, "--older-than", "30d") == 0
    assert elsewhere.exists()
