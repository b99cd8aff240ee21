"""A full disk under whatever writes: libraries, temporary files, shared memory, output, children.

Each is one sentence that names the folder that is full, also where another one was to be written.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from clusters.local import LocalCluster
from common import cli, scratch, storage
from common.errors import FULL_DISK, PASSING_FAILURE, FullDiskError, InputError, StorageError
from common.layout import RunFolder
from common.pids import is_alive
from common.project import ROOT
from common.storage import space
from components import step
from serving import server_folder, server_processes, triton
from tests.clusters.contract import service
from tests.clusters.test_local import experiment, job, run
from tests.disks import fill, small_disk
from weaver.fit import metrics_log
from weaver.fit.tensorboard import TensorBoard

pytestmark = pytest.mark.faults

LARGE = 2**21
"""Bytes that do not fit on the disk."""
INODES = 40


@pytest.fixture
def disk(tmp_path):
    """A real disk of 1 MB that is empty."""
    with small_disk(tmp_path / "disk", f"size=1m,nr_inodes={INODES}") as folder:
        yield folder


@pytest.fixture
def temporary(disk, monkeypatch):
    """The disk, as the place of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    monkeypatch.setenv("TMPDIR", str(disk))
    return disk


# ------------------------------------------------------------------------------------- libraries


def with_torch(path):
    import torch

    torch.save(torch.zeros(LARGE // 4), path)


def with_onnx(path):
    import onnx

    weights = onnx.numpy_helper.from_array(np.zeros(LARGE // 4, np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [weights])
    onnx.save_model(onnx.helper.make_model(graph), path)


def with_external_data(path):
    import onnx

    weights = onnx.numpy_helper.from_array(np.zeros(LARGE // 4, np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [weights])
    model = onnx.helper.make_model(graph)
    onnx.save_model(model, path, save_as_external_data=True, location="weights")


def with_uproot(path):
    import uproot

    with uproot.recreate(path) as file:
        file["t"] = {"a": np.random.default_rng(1).random(LARGE // 8)}


def with_h5py(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(LARGE // 8)


def with_arrow(path):
    import pyarrow
    import pyarrow.parquet

    values = np.random.default_rng(1).random(LARGE // 8)
    pyarrow.parquet.write_table(pyarrow.table({"a": values}), path)


def with_matplotlib(path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().imshow(np.random.default_rng(1).random((900, 900)), interpolation="none")
    figure.savefig(path, format="png", dpi=600)


def with_numpy(path):
    np.savez(path, a=np.zeros(LARGE // 8))


def with_sqlite(path):
    import sqlite3

    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (?)", (bytes(LARGE),))


def with_python(path):
    with open(path, "wb") as file:
        file.write(bytes(LARGE))


WRITERS = [with_torch, with_onnx, with_external_data, with_uproot, with_h5py, with_arrow]
WRITERS += [with_matplotlib, with_numpy, with_sqlite, with_python]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_the_error_names_the_full_folder_for_every_library(disk, tmp_path, writer):
    """Also where the block writes elsewhere as well, and the error does not say which file."""
    fill(disk, leave=8192)
    other = tmp_path / "elsewhere"
    other.mkdir()
    with pytest.raises(FullDiskError) as error, space.catch_full_disk(other, disk):
        writer(str(disk / "file"))
    assert re.search(rf"free in {re.escape(str(disk))}[;/]", str(error.value))
    assert error.value.retryable


@pytest.mark.parametrize("text", ["write failed", "PytorchStreamWriter failed writing file data/0"])
def test_a_write_that_failed_on_a_disk_with_room_is_no_full_disk(tmp_path, text):
    with pytest.raises(RuntimeError, match=text), space.catch_full_disk(tmp_path):
        raise RuntimeError(text)


def test_a_disk_without_inodes_is_full(disk):
    with contextlib.suppress(OSError):
        for number in range(INODES):
            (disk / str(number)).touch()
    with pytest.raises(FullDiskError, match=f"inodes.*in {re.escape(str(disk))}"):
        storage.write_text(str(disk / "metrics.json"), "{}")
    assert space.is_full(disk)
    (disk / "0").unlink()
    storage.write_text(str(disk / "metrics.json"), "{}")


# ---------------------------------------------------------------- temporary files, copies, output


def test_the_error_names_a_full_temporary_folder_and_not_the_target(temporary, tmp_path):
    """The advice is TMPDIR; the room counts that was there before the folder went."""

    def write():
        with space.catch_full_disk(tmp_path), scratch.folder("jec-test-") as folder:
            with_python(folder / "values")

    with pytest.raises(FullDiskError, match=re.escape(f" in {temporary}")) as error:
        write()
    assert "TMPDIR" in str(error.value)
    assert list(temporary.iterdir()) == []


def test_a_standardisation_that_fills_the_temporary_folder_is_an_error(temporary, tmp_path):
    import uproot

    from weaver.config.data_config import DataConfig
    from weaver.prepared import prepare

    with uproot.recreate(tmp_path / "jets.root") as file:
        file["t"] = {"a": np.random.default_rng(5).random(400_000)}
    config = tmp_path / "d.yaml"
    config.write_text(
        "treename: t\npreprocess: {method: auto, data_fraction: 1}\n"
        "inputs: {scalars: {length: null, vars: [a]}}\n"
        "labels: {type: custom, value: {target: a}}\n"
    )
    with pytest.raises(FullDiskError, match=re.escape(f" in {temporary}")):
        prepare.prepare(
            str(tmp_path / "jets.root"),
            DataConfig.load(str(config)),
            str(tmp_path / "runs"),
            for_training=True,
            report=lambda line: None,
        )
    assert list((tmp_path / "runs" / "cache").iterdir()) == []
    assert list(temporary.iterdir()) == []


def test_a_copy_names_its_target(disk, tmp_path):
    source = tmp_path / "model.onnx"
    source.write_bytes(bytes(LARGE))
    with pytest.raises(FullDiskError, match=re.escape(f"cannot write {disk}/model.onnx")) as error:
        storage.download(str(source), disk / "model.onnx")
    assert "2.1 MB needed" in str(error.value)
    assert list(disk.iterdir()) == []


def test_output_to_a_full_disk_ends_with_the_exit_code_of_failures(disk):
    fill(disk)
    code = "from common.cli import run_main; raise SystemExit(run_main(lambda: print('x' * 9000)))"
    with (disk / "log").open("wb") as log:
        process = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert f" in {disk}" in line


def test_a_program_that_cannot_print_its_last_lines_keeps_its_exit_code(disk):
    fill(disk)
    code = (
        "import sys; from common.cli import run_job; from common.errors import FullDiskError\n"
        "def body():\n    print('x'); raise FullDiskError('full')\n"
        "sys.exit(run_job(body))"
    )
    with (disk / "log").open("wb") as log:
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=60, check=False)
    assert process.returncode == FULL_DISK


# ------------------------------------------------------------------------------- trials and jobs


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FullDiskError("full"), FULL_DISK),
        (OSError(28, "No space left on device"), FULL_DISK),
        (StorageError("SlowDown"), PASSING_FAILURE),
        (InputError("no such trial"), 2),
    ],
)
def test_the_exit_code_of_a_job_says_whether_it_is_retryable(error, code, capsys):
    def body():
        raise error

    assert cli.run_job(body) == code
    assert capsys.readouterr().err.startswith("error: ")


def shell(text):
    return job("job", ["sh", "-c", text])


def run_job(folder, text):
    LocalCluster(folder).run_job(shell(text), deadline=60, report=lambda line: None)


def test_a_failed_jobs_error_becomes_that_of_its_step(tmp_path):
    text = "cannot write /data/x: the disk is full: 0 bytes free in /data"
    with pytest.raises(FullDiskError) as error:
        run_job(tmp_path, f"echo 'error: {text}'; echo bye; exit {FULL_DISK}")
    assert str(error.value) == text


@pytest.mark.parametrize("end", [f"exit {FULL_DISK}", "kill -BUS $$"], ids=["74", "SIGBUS"])
def test_a_job_whose_log_could_not_be_written_is_explained_by_the_full_disk(disk, end):
    """As is one that was killed because a file in memory, such as a queue's, took no more."""
    folder = disk / "run" / "local" / "jobs" / "job"
    text = f"head -c {LARGE} /dev/zero > {disk}/other; {end}"
    with pytest.raises(FullDiskError, match=re.escape(f" in {folder};")) as error:
        run_job(disk, text)
    assert error.value.retryable


@pytest.mark.parametrize(("code", "may_pass"), [(PASSING_FAILURE, True), (1, False)])
def test_a_retryable_job_makes_its_step_retryable(tmp_path, code, may_pass):
    with pytest.raises(Exception, match="job job failed") as error:
        run_job(tmp_path, f"exit {code}")
    assert error.value.retryable is may_pass


TRIAL = """
import sys
from pathlib import Path
arguments = dict(part[2:].split("=", 1) for part in sys.argv[1:])
with Path(arguments["log"]).open("a") as log:
    log.write(arguments["x"] + "\\n")
if Path(arguments["full"]).exists():
    print("error: cannot write /x: the disk is full: 0 bytes free in /x")
    sys.exit(74)
with open(arguments["metrics"], "a") as log:
    log.write(f"2026-01-01T00:00:00Z AvgLoss={float(arguments['x']):.9f}\\n")
"""


def test_a_search_ends_at_a_full_disk_and_its_trial_resumes_later(tmp_path):
    """No other trial is tried; the resumed search has the trials of one that was never stopped."""
    program = tmp_path / "trial.py"
    program.write_text(TRIAL)

    def search(name):
        manifest = experiment(program, trials=2, parallel=1)
        spec = manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]["pytorchReplicaSpecs"]
        arguments = spec["Master"]["template"]["spec"]["containers"][0]["args"]
        arguments += [f"--log={tmp_path / name}", f"--full={tmp_path / 'full'}"]
        result = run(tmp_path / "runs" / name, manifest)
        return [(trial.name, trial.status, trial.parameters) for trial in result.trials]

    undisturbed = search("undisturbed")
    (tmp_path / "full").touch()
    with pytest.raises(FullDiskError, match=" in /x"):
        search("full-disk")
    assert len((tmp_path / "full-disk").read_text().split()) == 1
    (tmp_path / "full").unlink()
    assert search("full-disk") == undisturbed
    first, again, _ = (tmp_path / "full-disk").read_text().split()
    assert first == again


def test_a_step_that_begins_on_a_full_disk_still_writes_its_status(disk):
    """Of a run that other steps came before: they leave the room that was kept for it."""
    run = types.SimpleNamespace(uri=str(disk / "run"), folder=RunFolder(str(disk / "run")))
    step.with_status("prepare", run, lambda: None)
    other = fill(disk)
    with pytest.raises(FullDiskError):
        step.with_status("search", run, lambda: None)
    entry = step.read_status(run.uri).steps["search"]
    assert (entry.state, entry.retryable) == ("failed", True)
    assert f" in {disk}" in entry.reason
    other.unlink()
    step.with_status("search", run, lambda: None)
    assert step.read_status(run.uri).steps["search"].state == "done"
    step.free_reserve(str(disk / "run"))
    assert [path.name for path in (disk / "run").iterdir()] == ["status.json"]


# --------------------------------------------------------------------------------------- trainings


def test_tensorboard_on_a_full_disk_is_one_error_and_never_waits(disk, capsys):
    fill(disk, leave=8192)
    record = {"epoch": 0, "train_loss": 1.0, "val_loss": 1.0, "metrics": {}}
    hook = threading.excepthook

    def write():
        import torch

        with TensorBoard(str(disk / "tensorboard")) as board:
            for _ in range(500):
                board.epoch(record, torch.linspace(0, 1, 1000))

    with pytest.raises(FullDiskError, match=re.escape(f" in {disk}/tensorboard")):
        write()
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is hook


def test_the_metrics_file_of_a_trial_is_whole_again_after_a_full_disk(disk):
    metrics = {f"metric{number}": 0.5 for number in range(400)}
    history = [{"time": metrics_log.now(), "metrics": metrics}]
    other = fill(disk, leave=4096)
    with pytest.raises(FullDiskError, match=re.escape(str(disk / "metrics.log"))):
        metrics_log.write(disk / "metrics.log", history)
    other.unlink()
    metrics_log.write(disk / "metrics.log", history)
    assert (disk / "metrics.log").read_text() == metrics_log.lines(history)


# ---------------------------------------------------------------------------------------- servers


def test_a_server_whose_temporary_folder_is_full_is_not_started(temporary, tmp_path):
    fill(temporary, leave=16384)
    with pytest.raises(FullDiskError, match=re.escape(f" in {temporary};")) as error:
        triton.start_models({"m": str(tmp_path)}, log=tmp_path / "log", kind="triton")
    assert "TMPDIR" in str(error.value)
    assert [path.name for path in temporary.iterdir()] == ["other"]


def test_a_server_that_cannot_be_recorded_is_stopped(monkeypatch, tmp_path):
    pids = []

    def start(attempt, http_port):
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        process = server_processes.launch(sleep, os.environ, folder=attempt.folder, log=attempt.log)
        pids.append(process.pid)
        return process.pid, 8000

    def record(folder, running):
        raise FullDiskError("full")

    monkeypatch.setattr(triton._Start, "start_on_port", start)
    monkeypatch.setattr(server_folder.ServerFolder, "record", record)
    with pytest.raises(FullDiskError):
        triton.start_models({"m": str(tmp_path)}, log=tmp_path / "log", kind="kserve-server")
    assert not is_alive(pids[0])


class ServersThatFillTheDisk:
    """Servers whose logs take the last room of the disk."""

    def __init__(self, disk):
        self.disk = disk
        self.running = set()

    def start(self, repository, *, log, **options):
        log.parent.mkdir(parents=True)
        self.other = fill(self.disk)
        self.running.add(4242)
        return types.SimpleNamespace(pid=4242, url="http://127.0.0.1:1", kind="triton")

    def stop(self, pid):
        self.running.remove(pid)


def test_a_service_that_cannot_be_recorded_is_stopped(disk):
    """No later command would find it."""
    servers = ServersThatFillTheDisk(disk)
    cluster = LocalCluster(disk / "runs", servers=servers)
    with pytest.raises(FullDiskError, match=re.escape(f"in {disk}/runs/")):
        cluster.deploy(
            service(),
            check=lambda service: None,
            backup="",
            deadline=5,
            report=lambda line: None,
        )
    assert not servers.running


TRITON = (
    "failed to load 'pfn' version 1: Internal: Unable to initialize shared memory key 'k' to"
    " requested size (1048576 bytes). Each Python backend model instance requires at least 1 MB of"
    " shared memory. Error: No space left on device"
)
"""What Triton 2.65 said with a /dev/shm of 300 kB."""


def test_full_shared_memory_is_recognised_in_a_servers_log(tmp_path):
    error = space.error_of_program(TRITON, tmp_path)
    assert "in /dev/shm, 1.0 MB needed" in str(error)
    assert "--shm-size" in str(error)
    assert space.error_of_program("failed to load 'pfn': no such file", tmp_path) is None


@pytest.mark.slow
@pytest.mark.skipif(bool(triton.triton_unusable(Path("/tmp"))), reason="no Triton here")
def test_a_server_without_shared_memory_is_an_error_of_one_line(tmp_path):
    """In a mount namespace of its own, whose /dev/shm has 300 kB."""
    import onnx

    repository = tmp_path / "models" / "m"
    (repository / "1").mkdir(parents=True)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 2])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save_model(model, repository / "1" / "model.onnx")
    (repository / "config.pbtxt").write_text(
        'name: "m"\nbackend: "onnxruntime"\nmax_batch_size: 8\n'
        'input [{name: "x", data_type: TYPE_FP32, dims: [2]}]\n'
        'output [{name: "y", data_type: TYPE_FP32, dims: [2]}]\n'
    )
    mount = "mount -t tmpfs -o size=300k tmpfs /dev/shm"
    command = f"{mount} && exec {sys.executable} -m serving.serve {tmp_path / 'models'}"
    process = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if "unshare" in process.stderr:
        pytest.skip("only root may have a mount namespace of its own")
    assert process.returncode == 1, process.stderr
    assert "in /dev/shm" in process.stderr.splitlines()[-1]


def test_a_process_killed_for_its_memory_does_not_count_as_a_full_disk(tmp_path):
    from clusters.processes import Replicas

    replicas = Replicas(shell("true"), folder=tmp_path, root=ROOT, threads=1)
    assert replicas.full_disk(-signal.SIGKILL) is None
    assert replicas.full_disk(-signal.SIGBUS) is None
