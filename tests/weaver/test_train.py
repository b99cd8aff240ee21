"""`python -m weaver.train` as the cluster runs it: a process that is killed, stopped and restarted,
and whose files may lie on S3.
"""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
import uproot

from common import storage
from tests.waiting import wait_until
from tests.weaver.trials import ROOT, command, finish, history, same, start, weights
from weaver.fit.metrics_log import lines
from weaver.train import main

# 25 steps an epoch of about 0.1 s: long enough to hit a running process, short enough for a test.
WORDS = {"num_epochs": 10, "batch_size": 22, "options": {"dropout": 0.1}}


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The folder of a trial that ran without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(command(prepared, folder, **WORDS))
    messages = finish(process)
    assert process.returncode == 0, messages
    return folder


def test_the_same_command_after_a_kill_ends_with_the_same_weights(prepared, whole, tmp_path):
    words = command(prepared, tmp_path / "trial", metrics_log=tmp_path / "metrics.log", **WORDS)
    process = start(words)
    wait_until(lambda: len(history(tmp_path / "trial")) >= 1, process=process, seconds=100)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert len(history(tmp_path / "trial")) < WORDS["num_epochs"]

    again = start(words)
    messages = finish(again)
    assert again.returncode == 0, messages
    assert "epoch 1/10" not in messages
    assert same(weights(tmp_path / "trial"), weights(whole))
    assert same(weights(tmp_path / "trial", "best.pt"), weights(whole, "best.pt"))
    assert (tmp_path / "metrics.log").read_text() == lines(history(tmp_path / "trial"))


def test_sigterm_writes_a_checkpoint_and_exits_with_143(prepared, whole, tmp_path):
    words = command(prepared, tmp_path, **WORDS)
    process = start(words)
    wait_until(lambda: len(history(tmp_path)) >= 1, process=process, seconds=100)
    process.terminate()
    messages = finish(process)
    assert process.returncode == 143, messages
    assert "stopped by a signal in epoch" in messages
    # this process may use another number of threads, so the last bits may differ
    assert main(words) == 0
    assert len(history(tmp_path)) == WORDS["num_epochs"]
    np.testing.assert_allclose(
        [r["val_loss"] for r in history(tmp_path)],
        [r["val_loss"] for r in history(whole)],
        rtol=1e-4,
    )


def test_a_trial_folder_on_s3_has_the_same_files(prepared, tmp_path, s3):
    trial = f"{s3}/run/trials/one/"
    words = [word for word in command(prepared, trial, num_epochs=2) if "tensorboard" not in word]
    assert main(words) == 0
    names = {storage.name(entry.uri).split(".")[0] for entry in storage.entries(trial)}
    for_weaver_core = {"_best_epoch_state", "_epoch-0_state", "_epoch-1_state"}
    own = {"checkpoint", "best", "options", "history", "metrics", "events"}
    assert names == own | for_weaver_core
    assert len(storage.read_json(f"{s3}/run/trials/one/history.json")) == 2
    assert main(words) == 0  # finished


def test_network_and_data_config_may_lie_on_s3(prepared, tmp_path, s3):
    storage.upload(prepared.data_config, f"{s3}/config/data.yaml")
    storage.upload(ROOT / "networks" / "pfn_regressor_open.py", f"{s3}/config/network.py")
    words = [
        word
        for word in command(prepared, tmp_path, num_epochs=1)
        if not word.startswith(("--data-config", "--network-config"))
    ]
    assert (
        main(
            [
                *words,
                f"--data-config={s3}/config/data.yaml",
                f"--network-config={s3}/config/network.py",
            ]
        )
        == 0
    )


@pytest.mark.parametrize("name", ["predictions.npz", "deeper/predictions.root"])
def test_predictions_are_written_with_labels_and_observers(prepared, whole, tmp_path, name):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    words = [
        word
        for word in command(prepared, whole, **WORDS)
        if not word.startswith(("--data-train", "--data-val"))
    ]
    assert (
        main(
            [
                *words,
                "--predict",
                f"--data-test={prepared.test}",
                f"--predict-output={tmp_path}/{name}",
            ]
        )
        == 0
    )
    path = tmp_path / name
    result = (
        np.load(path) if path.suffix == ".npz" else uproot.open(path)["Events"].arrays(library="np")
    )
    columns = {
        key: np.asarray(result[key])
        for key in (
            "output",
            "target",
            "jetPt",
            "genJetPt",
            "genJetEta",
            "partonFlav",
            "hadronFlav",
        )
    }
    assert {len(column) for column in columns.values()} == {182}
    np.testing.assert_allclose(
        columns["target"], np.log(columns["genJetPt"] / columns["jetPt"]), rtol=1e-4, atol=1e-5
    )
    assert np.corrcoef(columns["output"], columns["target"])[0, 1] > 0.1
    # predicting changes nothing in the trial's folder
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_predicting_without_a_trial_is_refused(prepared, tmp_path, capsys):
    words = [
        *command(prepared, tmp_path),
        "--predict",
        f"--data-test={prepared.test}",
        f"--predict-output={tmp_path}/x.npz",
    ]
    assert main(words) == 2
    assert "the trial has not finished an epoch" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(prepared, whole, tmp_path, capsys):
    shutil.copy(whole / "best.pt", tmp_path)
    text = (ROOT / "networks" / "pfn_regressor_open.py").read_text()
    deeper = text.replace(
        'range(options["num_conv_layers"])', 'range(options["num_conv_layers"] + 1)'
    )
    assert deeper != text
    (tmp_path / "network.py").write_text(deeper)
    words = [
        word for word in command(prepared, tmp_path) if not word.startswith("--network-config")
    ]
    words += [
        f"--network-config={tmp_path}/network.py",
        "--predict",
        f"--data-test={prepared.test}",
        f"--predict-output={tmp_path}/x.npz",
    ]
    assert main(words) == 2
    assert "holds the weights of another network" in capsys.readouterr().err


def test_gpus_that_do_not_exist_are_a_warning(prepared, tmp_path, capsys):
    assert main(command(prepared, tmp_path, num_epochs=1, gpus="0")) == 0
    assert (
        capsys.readouterr().err.count(
            "warning: --gpus 0 was asked for, but this machine has no CUDA GPU; the CPU is used"
        )
        == 1
    )


def test_the_allocator_hint_is_printed_once_and_only_where_it_helps(
    prepared, tmp_path, capsys, monkeypatch
):
    from weaver.fit.allocator import ENVIRONMENT

    assert main(command(prepared, tmp_path / "without", num_epochs=1)) == 0
    without = capsys.readouterr().err.count("hint: ")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert main(command(prepared, tmp_path / "with", num_epochs=1)) == 0
    assert capsys.readouterr().err.count("hint: ") == 0
    assert without == (1 if os.uname().sysname == "Linux" else 0)


@pytest.fixture(scope="module")
def server():
    """A local S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """The address of an empty bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "jec",
        "AWS_SECRET_ACCESS_KEY": "jec",
    }.items():
        monkeypatch.setenv(name, value)
    storage.forget_client()
    storage.s3.client().create_bucket(Bucket="jets")
    yield "s3://jets"
    storage.delete("s3://jets/")
    storage.s3.client().delete_bucket(Bucket="jets")
    storage.forget_client()
