"""Commands of published scripts for weaver-core 0.5.3 train here too; unusable input ends with one
error line that names it.
"""

from __future__ import annotations

import json
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
import uproot

from tests.weaver.trials import history
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import _first_files
from weaver.fit import launch
from weaver.fit.options import DEMO_FILES, parse
from weaver.predict import output_path
from weaver.prepared.prepare import prepare
from weaver.train import main

NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        layers = torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs)
        self.last = torch.nn.Sequential(*layers)

    def forward(self, {arguments}):
        return self.last(torch.cat([flat, points.mean(dim=2)], dim=1))

def get_model(data_config, outputs=1, **kwargs):
    assert set(kwargs) <= {{'for_inference'}}, kwargs
    names = list(data_config.input_names)
    shapes = {{name: (1, *shape[1:]) for name, shape in data_config.input_shapes.items()}}
    axes = {{name: {{0: 'N'}} for name in [*names, 'out']}}
    info = {{'input_names': names, 'input_shapes': shapes, 'output_names': ['out']}}
    return Net(outputs), {{**info, 'dynamic_axes': axes}}

def get_loss(data_config, **kwargs):
    return torch.nn.{loss}()
"""
CONFIG = """
treename: jets
preprocess: {{method: {method}, data_fraction: 1.0}}
new_variables: {{logx: np.log(x)}}
inputs:
  flat: {{length: null, vars: [logx, [x, null]]}}
  points: {{length: 3, vars: [[lists, null]]}}
labels: {{type: custom, value: {{{label}}}}}
observers: [x, lists]
"""
JETS = 44


def columns(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, JETS)
    return {
        "x": rng.uniform(1, 9, JETS).astype("f4"),
        "y": rng.uniform(0, 1, JETS).astype("f4"),
        "kind": rng.integers(0, 3, JETS).astype("i4"),
        "pair": rng.uniform(0, 1, (JETS, 2)).astype("f4"),
        "number": np.arange(JETS),
        "lists": ak.unflatten(rng.uniform(0, 1, counts.sum()).astype("f4"), counts),
    }


def write(path: Path, columns: dict) -> Path:
    with uproot.recreate(path) as file:
        types = {}
        for name, values in columns.items():
            is_numpy = isinstance(values, np.ndarray)
            types[name] = (
                np.dtype((values.dtype, values.shape[1:])) if is_numpy else values.type.content
            )
        file.mktree("jets", types).extend(columns)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("JEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("train", "val"), 1):
        write(tmp_path / f"{name}.root", columns(seed))
    return tmp_path


def words(
    place: Path,
    *more: str,
    label: str = "t: y",
    method: str = "manual",
    loss: str = "MSELoss",
    arguments: str = "flat, points",
    prefix: str = "trial",
) -> list[str]:
    (place / "c.yaml").write_text(CONFIG.format(label=label, method=method))
    (place / "net.py").write_text(NETWORK.format(loss=loss, arguments=arguments))
    return [
        "--data-config=c.yaml",
        "--network-config=net.py",
        f"--model-prefix={prefix}",
        "--num-epochs=1",
        "--batch-size=10",
        "--gpus=",
        "--tensorboard-log-dir=none",
        *more,
    ]


DATA = ("--data-train=train.root", "--data-val=val.root")


def events(path: Path) -> ak.Array:
    with uproot.open(path) as file:
        assert file.classnames()["Events;1"] == "TTree"
        return file["Events"].arrays()


# ------------------------------------------------------------------------- preprocess: auto


def test_auto_preprocess_with_test_data_prediction_and_export(place):
    """weaver-core stores the numbers beside the data config; here the trial stores them."""
    flags = ["--regression-mode", "--predict-output=out/first.root", "--data-test=val.root"]
    assert main(words(place, *DATA, *flags, method="auto")) == 0
    first = events(place / "out/first.root")
    assert len(first) == JETS
    predict = ["--predict", "--regression-mode", "--data-test=val.root"]
    assert main(words(place, *predict, "--predict-output=out/again.root", method="auto")) == 0
    np.testing.assert_array_equal(first["output"], events(place / "out/again.root")["output"])
    assert first["lists"].to_list() == columns(2)["lists"].to_list()

    assert main(words(place, "--export-onnx=out/m.onnx", method="auto")) == 0
    info = json.loads((place / "out/preprocess.json").read_text())["flat"]["var_infos"]["logx"]
    low, middle, high = np.percentile(np.log(columns(1)["x"]), [16, 50, 84])
    assert info["median"] == pytest.approx(middle)
    assert info["norm_factor"] == pytest.approx(1 / max(high - middle, middle - low))


def test_without_derived_standardisation_the_error_says_what_to_pass(place, capsys):
    flags = ["--predict", "--data-test=val.root", "--predict-output=p.root", "--regression-mode"]
    assert main(words(place, *flags, method="auto", prefix="none")) == 2
    messages = capsys.readouterr().err
    for part in ("c.yaml leaves the standardisation (logx", "--data-train", "*.auto.yaml"):
        assert part in messages


# ----------------------------------------------------------------------- labels and outputs


def test_classes_of_a_custom_label(place, capsys):
    flags = ["-o", "outputs", "3", "--data-test=val.root", "--predict-output=out/p.root"]
    arguments = words(place, *DATA, *flags, label="truth: kind", loss="CrossEntropyLoss")
    assert main(arguments) == 0
    assert "highest accuracy" in capsys.readouterr().err
    predictions = events(place / "out/p.root")
    np.testing.assert_array_equal(predictions["truth"], columns(2)["kind"])
    scores = np.asarray(predictions["output"])
    assert scores.shape == (JETS, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("label", "outputs", "reason"),
    [
        ("t: y", 3, "label 't' is 0."),
        ("t: kind", 2, "label 't' goes up to 2, but the network has 2 outputs"),
        ("t: kind - 1", 3, "label 't' is -1 for a jet"),
        ("t: pair", 3, "label 't' has (2,) numbers for each jet"),
    ],
)
def test_labels_that_are_not_class_numbers_are_refused_with_the_reason(
    place, capsys, label, outputs, reason
):
    arguments = words(
        place, *DATA, "-o", "outputs", str(outputs), label=label, loss="CrossEntropyLoss"
    )
    assert main(arguments) == 2
    assert reason in capsys.readouterr().err


def test_several_targets_for_each_jet(place, capsys):
    """As weaver-core: AvgMSE adds up the errors of a jet's targets."""
    flags = ["--regression-mode", "-o", "outputs", "2"]
    assert main(words(place, *DATA, *flags, label="t: pair")) == 0
    metrics = history(place / "trial")[0]["metrics"]
    assert metrics["AvgMSE"] == pytest.approx(2 * metrics["AvgLoss"], rel=1e-5)
    assert main(words(place, *DATA, "--regression-mode", label="t: pair", prefix="other")) == 2
    assert "the label 't' has the shape (N, 2)" in capsys.readouterr().err


def test_the_best_epoch_of_a_classification_has_the_highest_accuracy(place):
    flags = ["-o", "outputs", "3", "--num-epochs=6", "--start-lr=0.05"]
    assert main(words(place, *DATA, *flags, label="t: kind", loss="CrossEntropyLoss")) == 0
    accuracies = [record["metrics"]["AvgAcc"] for record in history(place / "trial")]
    best = torch.load(place / "trial/best.pt", weights_only=True)
    assert best["epoch"] == int(np.argmax(accuracies))


# ---------------------------------------------------------------------------- what does not fit


def test_a_forward_that_does_not_take_the_inputs_is_reported_in_one_line(place, capsys):
    assert main(words(place, *DATA, "--regression-mode", arguments="flat")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in ("net.py", "forward", "flat (N, 2)", "points (N, 1, 3)", "TypeError"):
        assert part in line
    assert main(words(place, *DATA, "--regression-mode", prefix="good")) == 0
    predict = ["--predict", "--data-test=val.root", "--predict-output=p.root", "--regression-mode"]
    assert main(words(place, *predict, arguments="flat", prefix="good")) == 2
    assert "forward does not take the inputs" in capsys.readouterr().err


def test_a_nan_target_in_validation_is_reported_with_its_label(place, capsys):
    jets = columns(2)
    jets["y"][5] = np.nan
    write(place / "val.root", jets)
    assert main(words(place, *DATA, "--regression-mode")) == 1
    messages = capsys.readouterr().err
    assert "the validation jets hold values that are not finite: label 't' is NaN" in messages
    assert "in 1 jet" in messages
    assert "--start-lr" not in messages


def test_a_corrected_command_runs_after_a_failed_one(place, capsys):
    wrong = words(place, *DATA, "--regression-mode", "-p", "weight_deca", "0.1")
    assert main(wrong) == 2
    assert main(wrong) == 1  # it would fail again
    assert "this trial failed before" in capsys.readouterr().err
    assert main(words(place, *DATA, "--regression-mode", "-p", "weight_decay", "0.1")) == 0


def test_fewer_jets_than_a_batch_are_refused(place, capsys):
    assert main([*words(place, *DATA, "--regression-mode"), "--batch-size=45"]) == 2
    assert "44 training jets do not fill one batch of 45" in capsys.readouterr().err


# ------------------------------------------------------ selections, folds and trying a command


def test_an_extra_selection_on_prepared_data_is_refused(place, capsys):
    arguments = words(place, "--data-val=val.root", "--regression-mode")
    config = DataConfig.load("c.yaml")
    prepared = prepare("train.root", config, str(place / "storage"), for_training=True)
    arguments += ["--data-train", prepared.uri]
    assert main([*arguments, "--extra-selection-train", "x > 5"]) == 2
    messages = capsys.readouterr().err
    assert prepared.uri in messages
    assert "--extra-selection-" in messages


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--extra-selection-train", "x >"], "--extra-selection-train"),
        (["--extra-selection-val", "nothing > 5"], "'nothing'"),
        (["--extra-selection-test", "x > 5 and"], "--extra-selection-test"),
        (["--cross-validation", "nothing%2"], "'nothing'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_an_invalid_selection_is_refused_with_its_flag_or_name(place, capsys, flags, reason):
    test = ["--data-test=val.root", "--predict-output=p.root"]
    assert main(words(place, *DATA, "--regression-mode", *test, *flags)) == 2
    assert reason in capsys.readouterr().err


def test_validation_with_other_inputs_or_labels_is_refused(place, capsys):
    arguments = words(place, *DATA, "--regression-mode")
    (place / "other.yaml").write_text((place / "c.yaml").read_text().replace("t: y", "u: y"))
    assert main([*arguments, "--data-config-val=other.yaml"]) == 2
    messages = capsys.readouterr().err
    for part in ("other.yaml", "c.yaml", "'u'", "'t'"):
        assert part in messages


def test_extra_selections_do_not_change_the_derived_standardisation(place):
    """weaver-core 0.5.3 derives without the extra selection, "to get more stats"."""
    flags = ["--regression-mode", "--extra-selection-train", "x > 4"]
    assert main(words(place, *DATA, "--regression-mode", method="auto", prefix="all")) == 0
    assert main(words(place, *DATA, *flags, method="auto", prefix="some")) == 0
    derived = [(place / name / "derived.json").read_text() for name in ("all", "some")]
    assert derived[0] == derived[1]
    sets = [json.loads(path.read_text()) for path in place.rglob("dataset.json")]
    passing = int(np.count_nonzero(columns(1)["x"] > 4))
    assert {result["num_jets"] for result in sets if result["role"] == "training"} == {
        JETS,
        passing,
    }


def test_demo_takes_the_first_files_of_all_samples(tmp_path):
    for name in ("b1", "b0", *(f"a{number:02}" for number in range(19))):
        (tmp_path / f"{name}.root").write_bytes(b"")
    patterns = f"b:{tmp_path}/b*.root a:{tmp_path}/a*.root"
    names = [Path(entry.uri).stem for entry in _first_files(patterns, DEMO_FILES)]
    assert names == ["b0", "b1", *(f"a{number:02}" for number in range(18))]


# -------------------------------------------------------------------------- published commands


def test_without_validation_data_the_last_part_of_each_file_validates(place):
    """weaver-core loads the entries 0 to trunc(0.75 n) and trunc(0.75 n) to n of each file."""
    arguments = words(place, "--data-train", "train.root", "val.root", "--train-val-split=0.75")
    assert main([*arguments, "--regression-mode", "--log-file=logs/a.log"]) == 0
    sets = {}
    for path in (place / "cache/cache").glob("*/dataset.json"):
        description = json.loads(path.read_text())
        x = np.load(path.parent / "observer.x.npy")
        sets[description["role"]] = (description["num_jets"], x)
    assert {role: count for role, (count, _) in sets.items()} == {"training": 66, "validation": 22}
    expected = np.concatenate([columns(1)["x"][33:], columns(2)["x"][33:]])
    np.testing.assert_array_equal(sets["validation"][1], expected)
    log = (place / "logs/a.log").read_text()
    assert "validation data: 22 of 22 jets pass the selection" in log
    assert "\r" not in log


def test_a_finished_trial_resumes_with_more_epochs(place):
    arguments = words(place, *DATA, "--regression-mode")
    assert main(arguments) == 0
    assert main([*arguments, "--num-epochs=3"]) == 0
    assert [record["epoch"] for record in history(place / "trial")] == [0, 1, 2]


def test_load_epoch_resumes_after_any_stored_epoch(place, capsys):
    """As weaver-core's --load-epoch; also from weights that weaver-core stored."""
    arguments = [*words(place, *DATA, "--regression-mode"), "--num-epochs=3"]
    assert main(arguments) == 0
    before = history(place / "trial")
    assert main([*arguments, "--load-epoch=0"]) == 0
    assert "resuming after epoch 0 with" in capsys.readouterr().err
    after = history(place / "trial")
    assert [record["epoch"] for record in after] == [0, 1, 2]
    assert after[0] == before[0]
    best = torch.load(place / "trial/best.pt", weights_only=True)
    losses = [record["metrics"]["AvgLoss"] for record in after]
    assert best["epoch"] == int(np.argmin(losses))

    (place / "other_epoch-1_state.pt").write_bytes((place / "trial_epoch-1_state.pt").read_bytes())
    other_arguments = [*words(place, *DATA, "--regression-mode", prefix="other"), "--num-epochs=3"]
    assert main([*other_arguments, "--load-epoch=1"]) == 0
    assert [record["epoch"] for record in history(place / "other")] == [2]


def test_outputs_without_a_folder_are_written_beside_the_model(place):
    """weaver-core: predict_output/ beside the model prefix, and the ONNX file beside the model."""
    flags = ["--data-test=val.root", "--predict-output=p.root", "--regression-mode"]
    assert main(words(place, *DATA, *flags, prefix="models/net")) == 0
    assert len(events(place / "models/predict_output/p.root")) == JETS
    assert main(words(place, "--export-onnx=m.onnx", prefix="models/net")) == 0
    assert (place / "models/m.onnx").exists()
    assert (place / "models/preprocess.json").exists()
    assert output_path("here/p.root", "models/net", "predict_output") == "here/p.root"


@pytest.mark.slow
def test_the_command_starts_its_own_ranks(place, monkeypatch):
    """--gpus 0,1 on two GPUs; here the two ranks share a CPU."""
    arguments = words(place, *DATA, "--regression-mode", "--seed=3")
    assert launch.run_ranks(2, arguments, "name") == 0
    record = history(place / "trial")[0]
    assert main(words(place, *DATA, "--regression-mode", "--seed=3", prefix="one")) == 0
    alone = history(place / "one")[0]
    assert record["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-4)
    assert launch.run_ranks(2, [*arguments, "--batch-size=9"], "name") == 2


def test_only_several_gpus_in_one_process_need_ranks(monkeypatch):
    arguments = ["-c", "c", "-n", "n", "-m", "m", "--data-train", "a", "--data-val", "b", "--gpus"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert launch.needs_ranks(parse([*arguments, "0,1,3"]), {}) == 3
    assert launch.needs_ranks(parse([*arguments, "0"]), {}) == 0
    assert launch.needs_ranks(parse([*arguments, "0,1"]), {"LOCAL_RANK": "1"}) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launch.needs_ranks(parse([*arguments, "0,1"]), {}) == 0
