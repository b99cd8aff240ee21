"""A full disk: an error of one line with the folder, and the work resumes once there is space."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
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
from tests.disks import fill, small_disk
from weaver.fit import disk_need
from weaver.fit.checkpoint import TrialFolder, TrialProgress
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
    with small_disk(tmp_path / "disk", "size=1m") as folder:
        yield folder


def state(value, size=20_000):
    return {"model": {"w": torch.full((size,), value)}, "configuration": {}}


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(disk):
    folder = TrialFolder(str(disk / "trial"))
    folder.save(state(1.0), TrialProgress(epoch=1))
    other = fill(disk, leave=8192)
    with pytest.raises(StorageError, match=re.escape(str(disk / "trial"))) as error:
        folder.save(state(2.0), TrialProgress(epoch=2))
    assert re.search(r"\d+\.\d kB needed", str(error.value))
    assert error.value.retryable
    assert [path.name for path in (disk / "trial").iterdir()] == ["checkpoint.pt"]
    other.unlink()
    checkpoint, progress = folder.load({})
    assert (progress.epoch, float(checkpoint["model"]["w"][0])) == (1, 1.0)
    folder.save(state(2.0), TrialProgress(epoch=2))
    assert folder.load({})[1].epoch == 2


def test_the_status_says_that_the_disk_is_full(disk):
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
    estimate = re.search(r"up to (\d\.\d) MB, but only 1\.0 MB are free", "\n".join(lines))
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
def test_a_full_disk_in_any_library_is_an_error_of_one_line(tmp_path, capsys, number):
    def body():
        raise OSError(number, os.strerror(number), str(tmp_path / "model.onnx"))

    assert cli.run_main(body) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line


def test_a_used_up_quota_and_a_full_disk_have_different_messages(tmp_path):
    texts = {
        space.sentence(OSError(number, os.strerror(number)), tmp_path) for number in space.FULL
    }
    assert len(texts) == 2
    assert any("quota" in text for text in texts)


@pytest.mark.parametrize("free", [0, 12 * 1024], ids=["full", "12 kB left"])
@pytest.mark.parametrize("is_begun", [False, True], ids=["made", "written"])
def test_a_full_disk_under_a_searchs_database_is_an_error_of_one_line(disk, is_begun, free):
    """SQLite has an error of its own, and Optuna one around it, which names no file."""
    import optuna

    address = f"sqlite:///{disk}/search/study.db"
    (disk / "search").mkdir()
    if is_begun:
        optuna.create_study(storage=address, study_name="a")
    other = fill(disk, leave=free)

    def search():
        with space.catch_full_disk(disk / "search"):
            for number in range(100):
                optuna.create_study(storage=address, study_name=f"{number}")

    with pytest.raises(StorageError, match=re.escape(f"in {disk}/search")) as error:
        search()
    assert "the disk is full" in str(error.value)
    assert error.value.retryable
    other.unlink()
    study = optuna.create_study(storage=address, study_name="after")
    study.add_trial(optuna.create_trial(value=1.0))
    assert study.best_value == 1.0


def test_a_locked_record_is_no_full_disk(tmp_path):
    connection = sqlite3.connect(tmp_path / "study.db", timeout=0)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.execute("BEGIN EXCLUSIVE")
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "study.db", timeout=0)) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
        space.catch_full_disk(tmp_path),
    ):
        other.execute("SELECT x FROM t")
    connection.close()


def test_a_full_disk_behind_the_error_of_a_library_is_found(tmp_path):
    def write():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("could not write the archive") from error

    def run():
        with space.catch_full_disk(tmp_path):
            write()

    with pytest.raises(StorageError, match=re.escape(str(tmp_path))):
        run()


def test_a_training_without_room_for_its_checkpoints_is_not_begun(disk):
    # 20,000 weights: three checkpoints of 240 kB with Adam's numbers, three files of 80 kB
    need = disk_need.trial_bytes(20_000)
    assert need == 3 * 240_000 + 3 * 80_000 + 10**6
    with pytest.raises(StorageError, match=re.escape(space.size_text(need))) as error:
        disk_need.require_for_training(str(disk / "trial"), need)
    assert error.value.retryable
    disk_need.require_for_training(str(disk / "trial"), 10**6)
    # existing files are replaced, and need no more room
    (disk / "trial").mkdir()
    (disk / "trial" / "checkpoint.pt").write_bytes(bytes(900_000))
    disk_need.require_for_training(str(disk / "trial"), 10**6)
    disk_need.require_for_training("s3://bucket/runs/trial", 2**60)


def test_the_estimated_need_covers_the_files_of_a_training(tmp_path):
    """Of a network whose weights matter more than the records."""
    weights = torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.Adam(weights.parameters())
    weights(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    folder = TrialFolder(str(tmp_path / "trial"))
    for epoch in (1, 2):
        content = {"model": weights.state_dict(), "optimizer": optimizer.state_dict()}
        folder.save({**content, "configuration": {}}, TrialProgress(epoch=epoch))
    folder.save_best(weights.state_dict(), TrialProgress(epoch=2), {})
    parameters = sum(tensor.numel() for tensor in weights.state_dict().values())
    size = sum(path.stat().st_size for path in (tmp_path / "trial").iterdir())
    # beside these there is the copy for weaver-core, and one file more while it is written
    assert size < disk_need.trial_bytes(parameters) < 2 * size


def test_other_errors_of_the_system_are_not_changed():
    with pytest.raises(OSError, match="Input/output"), space.catch_full_disk():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_free_space_is_measured_at_the_nearest_existing_folder(tmp_path):
    free = space.free_bytes(tmp_path / "a/b/c")
    assert abs(free - shutil.disk_usage(tmp_path).free) < 2**30
    assert not storage.exists(str(tmp_path / "a"))
    with pytest.raises(StorageError, match="a copy"):
        space.require_free(tmp_path / "a", 2**60, "a copy")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (3_200_000, "3.2 MB")],
)
def test_sizes_in_words(size, text):
    assert space.size_text(size) == text
