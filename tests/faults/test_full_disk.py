"""A full disk: one sentence with the folder, and what was started goes on once there is space."""

import errno
import os
import re
import shutil
import subprocess
import types

import numpy as np
import pytest
import torch

from common import cli, storage
from common.errors import StorageError
from common.layout import RunFolder
from common.storage import space
from components import step
from weaver.fit.checkpoint import Progressed, TrialFolder
from weaver.prepared import columns, prepare

pytestmark = pytest.mark.faults

YAML = """\
treename: t
inputs:
  scalars:
    length: null
    vars:
      - [a, null]
      - [b, null]
labels:
  type: custom
  value:
    target: a + b
"""


@pytest.fixture
def disk(tmp_path):
    """A real disk of 1 MB that is empty."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, leave=0):
    """Fill the disk but for some bytes; returns the file that does."""
    path = disk / "other"
    with path.open("wb") as file:
        file.write(b"\0" * (space.free_bytes(disk) - leave))
    return path


def state(value, size=20_000):
    return {"model": {"w": torch.full((size,), value)}, "configuration": {}}


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(disk):
    folder = TrialFolder(str(disk / "trial"))
    folder.save(state(1.0), Progressed(epoch=1))
    other = fill(disk, leave=8192)
    with pytest.raises(StorageError, match=re.escape(str(disk / "trial"))) as error:
        folder.save(state(2.0), Progressed(epoch=2))
    assert re.search(r"\d+\.\d kB needed", str(error.value))
    assert error.value.retryable
    assert [path.name for path in (disk / "trial").iterdir()] == ["checkpoint.pt"]
    other.unlink()
    loaded, progressed = folder.load({})
    assert (progressed.epoch, float(loaded["model"]["w"][0])) == (1, 1.0)
    folder.save(state(2.0), Progressed(epoch=2))
    assert folder.load({})[1].epoch == 2


def test_the_true_reason_is_in_the_status(disk):
    run = types.SimpleNamespace(uri=str(disk / "run"), folder=RunFolder(str(disk / "run")))

    def work():
        with (disk / "run" / "model.onnx").open("wb") as file:
            try:
                file.write(b"\0" * 2**21)
            finally:
                file.truncate(4096)

    with pytest.raises(StorageError):
        step.with_status("export", run, work)
    entry = step.read_status(run.uri).steps["export"]
    assert (entry.state, entry.retryable) == ("failed", True)
    assert "the disk is full" in entry.reason
    step.with_status("export", run, lambda: None)
    assert step.read_status(run.uri).steps["export"].state == "done"


def test_preparing_on_a_full_disk_leaves_nothing_and_works_once_there_is_space(disk, tmp_path):
    import uproot

    from weaver.config.data_config import DataConfig

    path = tmp_path / "jets.root"
    values = np.random.default_rng(5).random(100_000, dtype=np.float32)
    with uproot.recreate(path) as file:
        file["t"] = {"a": values, "b": values}
    config = tmp_path / "d.yaml"
    config.write_text(YAML)
    lines = []

    def run():
        config_ = DataConfig.load(str(config))
        return prepare.prepare(
            str(path), config_, str(disk), for_training=True, report=lines.append
        )

    with pytest.raises(StorageError, match=re.escape(f"{disk}/cache/")):
        run()
    # said before it is begun: 100,000 jets of two inputs and a label are 1.2 MB
    estimate = re.search(r"may take (\d\.\d) MB, and 1\.0 MB are free", lines[0])
    assert 0.8 <= float(estimate[1]) <= 2
    assert list((disk / "cache").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    assert run().num_jets == 100_000


def test_a_copy_that_cannot_fit_is_not_begun(disk, tmp_path):
    source = tmp_path / "cache/0123"
    source.mkdir(parents=True)
    (source / "scalars.npy").write_bytes(b"\0" * 2**21)
    (source / "dataset.json").write_text("{}")
    with pytest.raises(StorageError, match=r"2\.1 MB"):
        columns.local_copy(str(source), disk / "node", always=True)
    assert [path.name for path in (disk / "node").iterdir()] == ["0123.lock"]


@pytest.mark.parametrize("number", space.FULL)
def test_a_full_disk_anywhere_is_one_sentence(tmp_path, capsys, number):
    def body():
        raise OSError(number, os.strerror(number), str(tmp_path / "model.onnx"))

    assert cli.run_main(body) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line


def test_a_quota_is_told_from_a_full_disk(tmp_path):
    texts = {
        space.sentence(OSError(number, os.strerror(number)), tmp_path) for number in space.FULL
    }
    assert len(texts) == 2
    assert any("quota" in text for text in texts)


def test_other_errors_of_the_system_stay_what_they_are():
    with pytest.raises(OSError, match="Input/output"), space.explained():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_room_is_that_of_the_nearest_folder(tmp_path):
    free = space.free_bytes(tmp_path / "a/b/c")
    assert abs(free - shutil.disk_usage(tmp_path).free) < 2**30
    assert not storage.exists(str(tmp_path / "a"))
    with pytest.raises(StorageError, match="a copy"):
        space.require(tmp_path / "a", 2**60, "a copy")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (3_200_000, "3.2 MB")],
)
def test_sizes_in_words(size, text):
    assert space.shown(size) == text
