"""The cache of a machine, and the temporary caches of single commands."""

from __future__ import annotations

import os

import pytest

from tests.weaver.conftest import DATA
from weaver import train
from weaver.fit.options import parse
from weaver.prepared import node_cache
from weaver.prepared.node_cache import CACHE_VARIABLE, temporary_cache


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_the_temporary_cache_of_a_command_is_removed_with_it(temporary, monkeypatch, before):
    if before:
        monkeypatch.setenv(CACHE_VARIABLE, before)
    with temporary_cache():
        cache = node_cache.node_cache()
        assert cache.parent == temporary
        (cache / "data").write_text("jets")
        with temporary_cache():  # its ranks share it
            assert node_cache.node_cache() == cache
        assert (cache / "data").exists()
    assert os.environ.get(CACHE_VARIABLE) == before
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("flags", "own"), [((), False), (("--no-cache",), True)])
def test_no_cache_gives_a_training_a_temporary_cache(temporary, monkeypatch, flags, own):
    caches = []

    def start(options, argv):
        caches.append(node_cache.node_cache())
        return 0

    monkeypatch.setattr(train, "_start", start)
    command = ["--data-train", "a.root", "--data-config", str(DATA / "jec_pfn_open.yaml")]
    command += ["--network-config", "networks/pfn_regressor_open.py", "--model-prefix", "m"]
    assert parse([*command, *flags]).cache is not own
    assert train.main([*command, *flags]) == 0
    assert caches[0].name.startswith(node_cache.TEMPORARY_PREFIX) is own
    assert caches[0].exists() is not own
