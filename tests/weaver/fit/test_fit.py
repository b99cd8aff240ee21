"""The training loop, in this process: losses, metrics, weights, failures, and resuming."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

import weaver.network.precision
from common.errors import InputError
from tests.weaver.trials import ROOT, SMALL, command, history, same, weights
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Batch, Dataset
from weaver.fit import compiler_cache, fit, lr_finder
from weaver.fit.average import Average
from weaver.network.network_file import load_network
from weaver.network.objective import Objective
from weaver.predict import build_best, predict
from weaver.train import main


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained_trial(prepared, tmp_path_factory):
    """A trial of the PFN with dropout, trained without interruption."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(command(prepared, folder, options={"dropout": 0.1})) == 0
    return folder


def test_training_lowers_the_loss(prepared, tmp_path):
    assert (
        main(
            command(
                prepared, tmp_path, optimizer="adam", start_lr=5e-3, num_epochs=10, batch_size=50
            )
        )
        == 0
    )
    losses = [record["val_loss"] for record in history(tmp_path)]
    assert len(losses) == 10
    target = Dataset.open(str(prepared.val), DataConfig.load(str(prepared.data_config))).label(
        "target"
    )
    # the loss of an untrained network, whose output is 0
    loss_of_no_correction = np.mean(np.where(np.abs(target) < 1, np.abs(target), 0))
    assert min(losses) < 0.7 * loss_of_no_correction


def test_every_epoch_has_finite_metrics(trained_trial):
    assert len(history(trained_trial)) == 3
    assert all(
        math.isfinite(x) for record in history(trained_trial) for x in record["metrics"].values()
    )


def test_options_json_describes_the_training(trained_trial, prepared):
    options = json.loads((trained_trial / "options.json").read_text())
    assert options["network_options"]["dropout"] == 0.1
    assert options["train_options"]["start_lr"] == 1e-3
    assert options["data_config"] == str(prepared.data_config)
    assert options["num_parameters"] == sum(
        tensor.numel() for tensor in weights(trained_trial).values()
    )
    assert {"seed", "versions", "network_config"} <= options.keys()
    records = history(trained_trial)
    best = min(records, key=lambda record: record["val_loss"])
    assert (options["best_epoch"], options["best_metric"]) == (best["epoch"], best["val_loss"])
    assert {
        "epoch",
        "train_loss",
        "val_loss",
        "learning_rate",
        "jets_per_second",
        "seconds",
    } <= records[0].keys()


def test_the_best_weights_reproduce_the_best_metric(trained_trial, prepared):
    best = torch.load(trained_trial / "best.pt", weights_only=True)
    assert best.keys() == {"model", "epoch", "metric", "network_options"}
    config = DataConfig.load(str(prepared.data_config))
    model, _ = build_best(
        str(trained_trial),
        json.loads((trained_trial / "options.json").read_text())["network_config"],
        config,
    )
    dataset = Dataset.open(str(prepared.val), config)
    output = predict(
        model, dataset, Objective(config, None, regression=True), batch_size=64, device="cpu"
    )
    target = dataset.label("target")
    loss = np.where(np.abs(target) < 1, np.abs(output - target), 0).mean()
    assert loss == pytest.approx(best["metric"], rel=1e-5)


@pytest.mark.parametrize("network", ["pfn", "particle_net"])
def test_a_stopped_and_resumed_training_ends_with_the_same_weights(
    network, request, tmp_path, monkeypatch
):
    prepared = request.getfixturevalue("prepared" if network == "pfn" else "prepared_particle_net")
    words = {
        "network": network,
        "options": {"dropout": 0.1},
        "num_epochs": 2,
        "optimizer": "ranger",
        "lr_scheduler": "flat+cos",
    }
    assert main(command(prepared, tmp_path / "whole", **words)) == 0

    step, steps = fit.Fit._step, []

    def step_or_stop(self, *batch):
        steps.append(1)
        if len(steps) in (2, 8):  # the third batch, then one in the second epoch, of six each
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batch)

    monkeypatch.setattr(fit.Fit, "_step", step_or_stop)
    exit_codes = [main(command(prepared, tmp_path / "stopped", **words)) for _ in range(3)]
    assert exit_codes == [143, 143, 0]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert same(weights(tmp_path / "whole", "best.pt"), weights(tmp_path / "stopped", "best.pt"))
    losses = [
        [(r["train_loss"], r["val_loss"]) for r in history(tmp_path / name)]
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


def test_the_seed_determines_the_weights(prepared, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert main(command(prepared, tmp_path / name, num_epochs=1, seed=seed)) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_stop_during_validation_does_not_repeat_the_epoch_s_training(
    prepared, tmp_path, monkeypatch
):
    call, calls = Objective.__call__, []

    def call_and_stop(self, model, batch, **keywords):
        calls.append(model.training)
        if len(calls) == 6:  # five batches of training, then the first of validation
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, model, batch, **keywords)

    monkeypatch.setattr(Objective, "__call__", call_and_stop)
    words = command(prepared, tmp_path, num_epochs=1)
    assert (main(words), calls) == (143, [True] * 5 + [False])
    calls[:] = [None] * 20
    assert main(words) == 0
    assert calls[20:] == [False] * 2


def test_a_finished_trial_only_writes_its_results_again(
    trained_trial, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fit.Fit, "__init__", lambda *a, **k: pytest.fail("trained again"))
    log = tmp_path / "metrics.log"
    assert main(command(prepared, trained_trial, options={"dropout": 0.1}, metrics_log=log)) == 0
    assert log.read_text() == (trained_trial / "metrics.log").read_text()
    assert len(log.read_text().splitlines()) == 3 * 5
    assert "is finished" in capsys.readouterr().err


def test_a_trial_folder_refuses_other_settings(trained_trial, prepared, capsys):
    assert main(command(prepared, trained_trial, start_lr=2e-3)) == 2
    assert "start_lr 0.001, now 0.002" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_fails_the_trial_permanently(prepared, tmp_path, capsys):
    words = command(prepared, tmp_path, start_lr=1e30, lr_scheduler="none", optimizer="rmsprop")
    assert main(words) == 1
    messages = capsys.readouterr().err
    assert "the loss became" in messages
    assert "epoch 1/3, batch " in messages
    assert "its jets are finite; a smaller --start-lr may help" in messages
    assert "the loss became" in (tmp_path / "failed").read_text()
    assert main(words) == 1
    assert "this trial failed before: the loss became" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({"dropout": 2}, {}, "'dropout' must be at least 0 and below 1"),
        ({}, {"optimizer_option": "beta:3"}, "unknown option 'beta'"),
    ],
)
def test_an_invalid_option_marks_the_trial_as_failed(
    prepared, tmp_path, capsys, options, flags, message
):
    assert main(command(prepared, tmp_path, options=options, **flags)) == 2
    assert message in capsys.readouterr().err
    assert message in (tmp_path / "failed").read_text()


def test_an_unknown_network_option_is_refused_before_anything_is_written(
    prepared, tmp_path, capsys
):
    assert main(command(prepared, tmp_path / "trial", options={"conv_dims": 3})) == 2
    assert "unknown network option 'conv_dims'; did you mean 'conv_dim'" in capsys.readouterr().err
    assert not (tmp_path / "trial").exists()


def test_bf16_trains_to_about_the_same_loss(trained_trial, prepared, tmp_path):
    assert main([*command(prepared, tmp_path, options={"dropout": 0.1}), "--use-amp"]) == 0
    assert history(tmp_path)[-1]["val_loss"] == pytest.approx(
        history(trained_trial)[-1]["val_loss"], rel=0.1
    )


def test_clipped_gradients_move_the_weights_less(prepared, tmp_path):
    distances = {}
    for name, norm in (("free", 1e9), ("clipped", 1e-2)):
        flags = {
            "optimizer": "rmsprop",
            "optimizer_option": f"clip_grad_norm:{norm},eps:1.0",
            "lr_scheduler": "none",
        }
        assert main(command(prepared, tmp_path / name, num_epochs=1, **flags)) == 0
        torch.manual_seed(1)  # as training does for its default seed
        network = load_network(f"{ROOT}/networks/pfn_regressor_open.py")
        start = network.build(DataConfig.load(str(prepared.data_config)), SMALL)[0].state_dict()
        distances[name] = max(
            (weights(tmp_path / name)[key] - value).abs().max().item()
            for key, value in start.items()
        )
    assert 0 < distances["clipped"] < 0.1 * distances["free"]


def test_tensorboard_has_losses_learning_rate_and_settings(prepared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(command(prepared, tmp_path, num_epochs=2, tensorboard_log_dir="auto")) == 0
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}
    ).Reload()
    for tag in (
        "loss/train",
        "loss/validation",
        "learning_rate",
        "jets_per_second",
        "validation/AvgMAE",
    ):
        assert [event.step for event in events.Scalars(tag)] == [0, 1]
    assert events.Scalars("loss/validation")[1].value == pytest.approx(
        history(tmp_path)[1]["val_loss"]
    )
    assert [event.step for event in events.Histograms("validation/response")] == [0, 1]
    histogram = events.Histograms("validation/response")[1].histogram_value
    assert histogram.num == 174  # validation jets
    assert 0.5 < histogram.sum / histogram.num < 1.5  # calibrated over true pT
    assert any("hparams" in tag for tag in events.PluginTagToContent("hparams"))


def stop_in_steps(monkeypatch, *numbers: int) -> None:
    """Send SIGTERM in these steps of training, counted over all runs from now on."""
    step, steps = fit.Fit._step, []

    def step_or_stop(self, *batch):
        steps.append(1)
        if len(steps) in numbers:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batch)

    monkeypatch.setattr(fit.Fit, "_step", step_or_stop)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ["--steps-per-epoch=8", "--ema-decay=0.9"], id="epochs across passes, averaged weights"
        ),
        pytest.param(["--precision=fp16", "--clip-grad-norm=0.1"], id="a scaler of the loss"),
        pytest.param(
            ["--optimizer=adamW", "--lr-scheduler=one-cycle", "--deterministic"],
            id="momentum that is scheduled",
        ),
    ],
)
def test_a_stopped_run_ends_alike_with_each_option(prepared, tmp_path, monkeypatch, words):
    commands = [
        [*command(prepared, tmp_path / name, num_epochs=2, options={"dropout": 0.1}), *words]
        for name in ("whole", "stopped")
    ]
    assert main(commands[0]) == 0
    stop_in_steps(monkeypatch, 3, 9)
    assert [main(commands[1]) for _ in range(3)] == [143, 143, 0]
    torch.use_deterministic_algorithms(False)
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("whole", "stopped")
    ]
    for part in ("model", "average"):
        assert same(states[0][part], states[1][part])
    assert states[0]["scaler"] == states[1]["scaler"]
    assert same(weights(tmp_path / "whole", "best.pt"), weights(tmp_path / "stopped", "best.pt"))


def test_the_checkpoint_has_all_parts_to_resume(trained_trial):
    state = torch.load(trained_trial / "checkpoint.pt", weights_only=True)
    parts = {
        "model",
        "average",
        "optimizer",
        "scheduler",
        "scaler",
        "precision",
        "random",
        "configuration",
        "progressed",
    }
    assert state.keys() == parts
    assert (state["scheduler"]["name"], state["scheduler"]["step"]) == ("flat+decay", 15)
    assert {"torch", "python", "numpy"} <= state["random"].keys()
    assert {"epoch", "batch", "best_epoch", "best_metric", "history"} <= state["progressed"].keys()


def test_shorter_epochs_continue_the_same_pass_over_the_data(prepared, tmp_path, monkeypatch):
    places_and_sizes: list = []
    step = fit.Fit._step
    monkeypatch.setattr(
        fit.Fit,
        "_step",
        lambda self, batch, place: (
            places_and_sizes.append((place, len(batch))),
            step(self, batch, place),
        )[1],
    )
    assert (
        main(
            [
                *command(prepared, tmp_path, num_epochs=3),
                "--steps-per-epoch=3",
                "--steps-per-epoch-val=1",
            ]
        )
        == 0
    )
    # of 539 jets in a pass the last 39, which fill no batch, are left out
    assert places_and_sizes == [(place, 100) for place in (0, 1, 2, 3, 4, 0, 1, 2, 3)]
    assert [record["epoch"] for record in history(tmp_path)] == [0, 1, 2]


def test_averaged_weights_are_validated_and_stored_as_the_best(prepared, tmp_path):
    assert main([*command(prepared, tmp_path, num_epochs=1, start_lr=1e-2), "--ema-decay=0.9"]) == 0
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(weights(tmp_path, "best.pt"), state["average"])
    assert not same(state["average"], state["model"])


def test_average_equals_its_formula():
    network = torch.nn.BatchNorm1d(1)
    average, expected = Average(network, decay=0.5), 1.0
    for step in range(4):
        network.weight.data += 1
        network.num_batches_tracked += 1
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 2)
    assert average.network.weight.item() == pytest.approx(expected)
    assert average.network.num_batches_tracked == 4


def test_the_average_equals_torch_s_to_the_bit_after_its_warm_up():
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    average = Average(network, decay=0.9)
    reference = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    reference.n_averaged.fill_(1)  # its first update would copy the network
    for step in range(100, 110):
        network(torch.randn(16, 5))  # moves the running statistics
        for parameter in network.parameters():
            parameter.data += torch.randn_like(parameter)
        average.update(network, step)
        reference.update_parameters(network)
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, reference.module.state_dict()[name]), name


def test_training_ends_after_patience_epochs_and_is_then_finished(prepared, tmp_path, capsys):
    words = [
        *command(prepared, tmp_path, num_epochs=50, start_lr=1e-9, lr_scheduler="none"),
        "--patience=2",
    ]
    validate, losses = fit.Fit._validate, iter([0.5, 0.4, 0.45, 0.4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit.Fit,
            "_validate",
            lambda self, bar: (
                {"AvgLoss": next(losses), "AvgMSE": 1.0, "AvgMAE": 1.0},
                validate(self, bar)[1],
            ),
        )
        assert main(words) == 0
    assert [record["val_loss"] for record in history(tmp_path)] == [0.5, 0.4, 0.45, 0.4]
    assert main(words) == 0
    assert "is finished: best epoch 1" in capsys.readouterr().err


def test_load_epoch_accepts_an_epoch_with_stored_weights(trained_trial, prepared, capsys):
    words = command(prepared, trained_trial, options={"dropout": 0.1})
    assert main([*words, "--load-epoch=2"]) == 0
    assert main([*words, "--load-epoch=7"]) == 2
    messages = capsys.readouterr().err
    assert "there is no" in messages
    assert "is after epoch 2; leave --load-epoch out" in messages


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags: fpu avx512_bf16", "bf16"),
        ("Features : fp bf16", "bf16"),
        ("flags: avx2", "float32"),
    ],
)
def test_auto_chooses_bf16_only_where_the_cpu_supports_it(flags, precision, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor: 0\n{flags}\n")
    cpu_flags = weaver.network.precision.cpu_flags
    monkeypatch.setattr(
        weaver.network.precision, "cpu_flags", lambda: cpu_flags(str(tmp_path / "cpuinfo"))
    )
    precision_object = weaver.network.precision.choose("auto", torch.device("cpu"))
    assert precision_object.name == precision
    assert precision_object.reason.startswith("auto: this CPU has ")
    assert cpu_flags(str(tmp_path / "none")) == set()


def test_auto_on_another_machine_keeps_the_precision_of_the_checkpoint(
    prepared, tmp_path, monkeypatch, capsys
):
    words = [*command(prepared, tmp_path, num_epochs=2), "--precision=auto"]
    monkeypatch.setattr(weaver.network.precision, "cpu_flags", lambda: {"amx_bf16"})
    stop_in_steps(monkeypatch, 2)
    assert main(words) == 143
    monkeypatch.setattr(weaver.network.precision, "cpu_flags", set)
    assert main(words) == 0
    messages = capsys.readouterr().err
    assert "precision: bf16 autocast (auto: this CPU has amx_bf16)" in messages
    assert "precision: bf16 autocast (as in the checkpoint)" in messages


@pytest.mark.faults
def test_compiled_code_is_removed_when_the_command_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    with compiler_cache.of_command():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    with compiler_cache.of_command():
        inductor = Path(cache_dir())
        assert inductor.is_relative_to(tmp_path)
        assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_compiled_network_trains_to_the_same_loss(trained_trial, prepared, tmp_path, capsys):
    words = [
        *command(prepared, tmp_path, options={"dropout": 0.1}),
        "--compile",
        "--compiler-option=backend:eager",
    ]
    assert main(words) == 0
    assert weights(tmp_path).keys() == weights(trained_trial).keys()
    assert history(tmp_path)[-1]["val_loss"] == pytest.approx(
        history(trained_trial)[-1]["val_loss"], rel=1e-2
    )
    assert (
        main(
            [
                *command(prepared, tmp_path / "other"),
                "--compile",
                "--compiler-option=backend:nothing",
            ]
        )
        == 2
    )
    assert "error: the network cannot be compiled (" in capsys.readouterr().err


def test_the_learning_rate_finder_proposes_a_rate_and_leaves_no_checkpoint(
    prepared, tmp_path, capsys
):
    assert main([*command(prepared, tmp_path, optimizer="adam"), "--lr-finder=1e-6,1e-1,12"]) == 0
    result = json.loads((tmp_path / "lr_finder.json").read_text())
    assert result["learning_rate"][0] == pytest.approx(1e-6)
    assert result["learning_rate"][-1] == pytest.approx(1e-1)
    assert result["proposed"] in result["learning_rate"]
    assert "the loss falls fastest" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["lr_finder.json"]
    assert lr_finder.steepest_rate([1, 2, 3, 4], [1.0, 0.9, 0.3, 0.29]) == 3


def test_the_progress_line_shows_speed_waiting_and_remaining_time(
    prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("common.progress.QUIET_SECONDS", 0.0)
    assert main(command(prepared, tmp_path, num_epochs=1)) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "waiting for data" in line)
    assert re.search(
        r"epoch 1/1 .* [\d,]+/674 jets  [\d,]+ jets/s  .* left  loss \d\.\d+, \d+ % waiting for"
        r" data",
        line,
    )


# -------------------------------------------------------------------------------------- objective


def batch(target: list, weight: list[float] | None = None) -> Batch:
    inputs = {"x": torch.arange(len(target), dtype=torch.float32)[:, None]}
    return Batch(
        inputs=inputs,
        labels={"y": torch.tensor(target)},
        observers={},
        weights=torch.tensor(weight or [1.0] * len(target)),
    )


def config(label_type: str = "custom", weight: str | None = None):
    return types.SimpleNamespace(
        input_names=("x",), label_names=("y",), label_type=label_type, weight_name=weight
    )


@pytest.mark.parametrize(
    "counts", [(torch.tensor(6.0), torch.tensor(1.5)), (5.0, 4.0)], ids=["weights", "jets"]
)
def test_the_mean_over_ranks_is_the_mean_over_jets(counts):
    fit_object = object.__new__(fit.Fit)
    fit_object.world = types.SimpleNamespace(size=2, sum_on_device=lambda _: counts[0] + counts[1])
    fit_object.train = types.SimpleNamespace(batch_size=5, num_jets=29)
    losses = [torch.tensor(0.25), torch.tensor(1.0)]
    losses_of_ranks = [
        fit_object._weighted_for_ddp(loss, count, place=2)
        for loss, count in zip(losses, counts, strict=True)
    ]
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert sum(losses_of_ranks) / 2 == pytest.approx(float(expected))


def test_variables_that_are_not_finite_are_counted_by_name():
    inputs = {"pf": torch.zeros(3, 2, 4), "jet": torch.zeros(3, 1), "one": torch.zeros(3)}
    names = {"pf": ["PF_pT", "PF_dR"], "jet": ["jetPt"], "one": ["rho"]}
    jets = Batch(inputs=inputs, labels={"y": torch.zeros(3)}, observers={}, weights=torch.ones(3))
    assert fit.not_finite(jets, names) == {}
    inputs["pf"][:2, 1, 3] = torch.nan
    inputs["one"][0] = torch.inf
    jets.labels["y"][2] = -torch.inf
    counts = fit.not_finite(jets, names)
    assert counts == {"input 'PF_dR'": 2, "input 'rho'": 1, "label 'y'": 1}
    assert "input 'PF_dR' is NaN or infinite in 2 jets" in fit.describe_counts(counts)
    assert "label 'y' is NaN or infinite in 1 jet" in fit.describe_counts(counts)


def loss_and_metrics(
    objective: Objective, model, *of_batch, **keywords
) -> tuple[float, float, list[float]]:
    """Loss, jets, and the sums of the other metrics."""
    loss, count, errors = objective(model, batch(*of_batch), **keywords)
    return loss.item(), float(count), objective.errors(*errors).tolist()


def test_regression_reports_loss_squared_and_absolute_errors():
    objective = Objective(config(), torch.nn.L1Loss(), regression=True)
    loss, count, errors = loss_and_metrics(objective, torch.nn.Identity(), [0.5, 1.0, 4.0])
    assert (loss, count) == (pytest.approx(2.5 / 3), 3.0)
    assert errors == pytest.approx([0.25 + 4.0, 2.5])


def test_padding_jets_of_a_batch_do_not_count():
    objective = Objective(config(), torch.nn.L1Loss(), regression=True)
    assert loss_and_metrics(
        objective, torch.nn.Identity(), [0.5, 1.0, 99.0], [1, 1, 0], has_padding=True
    ) == (
        0.25,
        2.0,
        [0.25, 0.5],
    )
    assert loss_and_metrics(objective, torch.nn.Identity(), [0.5], [0], has_padding=True) == (
        0.0,
        0.0,
        [0.0, 0.0],
    )


def test_weights_give_a_weighted_mean():
    objective = Objective(config(weight="w"), torch.nn.L1Loss(), regression=True)
    loss, total, errors = loss_and_metrics(
        objective, torch.nn.Identity(), [1.0, 1.0, 99.0], [3.0, 1.0, 0.0]
    )
    assert (loss, total, errors[1]) == (0.75, 4.0, 3.0)


def test_a_loss_without_reduction_works_with_sampling_but_not_with_loss_weights():
    with pytest.raises(InputError, match="the loss must have a `reduction`"):
        Objective(config(weight="w"), lambda p, t: (p - t).abs().mean(), regression=True)
    sampled = types.SimpleNamespace(**vars(config(weight="w")), weight_use="sampling")
    objective = Objective(sampled, lambda p, t: (p - t).abs().mean(), regression=True)
    assert loss_and_metrics(objective, torch.nn.Identity(), [1.0, 4.0], [9.0, 1.0])[0] == 2.0


def test_classification_reports_cross_entropy_and_accuracy():
    objective = Objective(config("simple"), torch.nn.CrossEntropyLoss(), regression=False)
    model = torch.nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[0.0], [1.0]])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([1, 1, 0])
    )
    # a tie counts as class 0
    assert loss_and_metrics(objective, model, [1, 1, 0]) == (
        pytest.approx(expected.item()),
        3.0,
        [1.0],
    )
    assert objective.metrics == ("AvgLoss", "AvgAcc")


def test_metrics_of_several_outputs_use_the_first_one():
    objective = Objective(config(), lambda p, t: (p - t[:, None]).abs().mean(), regression=True)
    model = torch.nn.Linear(1, 3, bias=False)
    model.weight.data = torch.tensor([[1.0], [0.0], [2.0]])
    assert loss_and_metrics(objective, model, [0.0, 2.0])[2] == [1.0, 1.0]
