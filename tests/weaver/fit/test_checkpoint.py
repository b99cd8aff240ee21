"""A trial's folder: a stored checkpoint is restored, and one that cannot be continued is
refused.
"""

from __future__ import annotations

import json

import pytest
import torch

from common.errors import InputError, TrainingError
from weaver.fit.checkpoint import (
    TrialFolder,
    TrialProgress,
    command_digest,
    read_tensors,
    state_uri,
    without_wrappers,
    write_tensors,
)

CONFIGURATION = {"start_lr": 1e-3, "network_option": {"fc_dim": 100, "sizes": (1, 2)}, "seed": 1}


def saved_checkpoint(folder: TrialFolder) -> dict:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    state = {
        "model": {"w": torch.arange(3.0)},
        "optimizer": optimizer.state_dict(),
        "configuration": CONFIGURATION,
    }
    folder.save(
        state,
        TrialProgress(
            epoch=2,
            batch=5,
            loss_sum=0.5,
            best_epoch=1,
            best_metric=0.25,
            history=[{"epoch": 0}, {"epoch": 1}],
        ),
    )
    return state


def test_a_stored_checkpoint_restores_state_and_progress(tmp_path):
    folder = TrialFolder(str(tmp_path))
    assert folder.load(CONFIGURATION) is None
    saved_checkpoint(folder)
    # tuples that became lists are equal
    state, progress = folder.load(json.loads(json.dumps(CONFIGURATION)))
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert (
        progress.epoch,
        progress.batch,
        progress.best_metric,
        len(progress.history),
    ) == (2, 5, 0.25, 2)


def test_a_checkpoint_with_other_settings_is_refused(tmp_path):
    folder = TrialFolder(str(tmp_path))
    saved_checkpoint(folder)
    with pytest.raises(
        InputError,
        match=(
            r"other settings \(start_lr 0.001, now 0.01; seed 1, now 2\); give another"
            r" --model-prefix"
        ),
    ):
        folder.load({**CONFIGURATION, "start_lr": 0.01, "seed": 2})


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.pt is not a checkpoint that can be read"):
        TrialFolder(str(tmp_path)).load(CONFIGURATION)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "opened"), "w")

    torch.save({"model": Harmful()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="not a checkpoint that can be read"):
        read_tensors(str(tmp_path / "checkpoint.pt"))
    assert not (tmp_path / "opened").exists()


def test_a_torch_file_that_is_no_checkpoint_is_refused(tmp_path):
    write_tensors(str(tmp_path / "checkpoint.pt"), {"weights": torch.zeros(1)})
    with pytest.raises(InputError, match=r"is not a checkpoint of weaver.train"):
        TrialFolder(str(tmp_path)).load(CONFIGURATION)


def test_a_failed_trial_reports_its_reason_to_the_same_command(tmp_path):
    folder = TrialFolder(str(tmp_path))
    folder.check_no_failure_marker("one")
    folder.write_failure_marker("the loss became nan", "one")
    with pytest.raises(TrainingError, match=r"failed before: the loss became nan \(to try"):
        folder.check_no_failure_marker("one")
    folder.check_no_failure_marker("another")  # a corrected command is not held back


def test_the_digest_of_a_command_depends_on_settings_and_data(tmp_path):
    data = tmp_path / "a.root"
    data.write_bytes(b"one")
    before = command_digest({"lr": 1.0}, [str(data)])
    assert command_digest({"lr": 1.0}, [str(data)]) == before
    assert command_digest({"lr": 2.0}, [str(data)]) != before
    data.write_bytes(b"another")
    assert command_digest({"lr": 1.0}, [str(data)]) != before
    command_digest({}, [str(tmp_path / "absent.root")])


def test_write_results_writes_options_history_and_metrics(tmp_path):
    record = {"epoch": 0, "time": "2026-01-01T00:00:00.000Z", "metrics": {"AvgLoss": 0.25}}
    TrialFolder(str(tmp_path)).write_results(
        TrialProgress(best_epoch=0, best_metric=0.25, history=[record]), {"seed": 7}
    )
    assert json.loads((tmp_path / "options.json").read_text()) == {
        "seed": 7,
        "best_epoch": 0,
        "best_metric": 0.25,
    }
    assert json.loads((tmp_path / "history.json").read_text()) == [record]
    assert (tmp_path / "metrics.log").read_text() == "2026-01-01T00:00:00.000Z AvgLoss=0.25\n"


NAMES = ["fc.weight", "module.bias"]


@pytest.mark.parametrize(
    ("saved_names", "has_note"),
    [
        (["fc.weight", "module.bias"], False),
        (["module.fc.weight", "module.module.bias"], True),
        (["_orig_mod.fc.weight", "_orig_mod.module.bias"], True),
        (["module._orig_mod.fc.weight", "_orig_mod.module.module.bias"], True),
        (["fc._orig_mod.weight", "module._orig_mod.bias"], True),
        (["other.weight", "module.other"], False),
    ],
)
def test_wrapper_prefixes_are_removed_where_the_network_has_none(saved_names, has_note, capsys):
    weights = {name: torch.tensor(float(number)) for number, name in enumerate(saved_names)}
    bare = without_wrappers(weights, dict.fromkeys(NAMES).keys(), "net.pt")
    assert list(bare) == (NAMES if has_note else saved_names)
    assert [float(value) for value in bare.values()] == [0, 1]
    assert ("note: net.pt" in capsys.readouterr().err) == has_note


@pytest.mark.parametrize(
    ("prefix", "best"),
    [
        ("/runs/trials/a/", "/runs/trials/a/_best_epoch_state.pt"),
        ("/models/net", "/models/net_best_epoch_state.pt"),
        ("s3://jec/trials/a/", "s3://jec/trials/a/_best_epoch_state.pt"),
    ],
)
def test_states_have_the_names_of_weaver_core(prefix, best):
    """f"{model_prefix}_best_epoch_state.pt" in weaver-core 0.5.3."""
    assert state_uri(prefix) == best
    assert state_uri(prefix, 3) == best.replace("_best_epoch", "_epoch-3")
