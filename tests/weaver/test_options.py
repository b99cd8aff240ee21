"""The command line of weaver.train: Weaver's flags, clear refusals, and no torch before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.weaver.trials import ROOT
from weaver.options import TRAIN_FLAGS, TrainOptions, literal, parse

NEEDED = ["--data-train=a", "--data-val=b", "--data-config=c", "--network-config=n", "--model-prefix=m"]


def test_both_forms_of_network_options_are_read():
    words = [*NEEDED, "--network-option", "num-fc-layers", "3", "-o", "fc_dim:100,dropout:0.1", "-o", "layers:(64,32),name:a:b"]
    assert parse(words).network_option == {"num_fc_layers": 3, "fc_dim": 100, "dropout": 0.1, "layers": (64, 32), "name": "a:b"}


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.1", 0.1), ("1e-3", 1e-3), ("true", True), ("None", None), ("adamW", "adamW"), ("[1,2]", [1, 2])]
)
def test_values_are_literals_or_text(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_names_of_optimizers_are_taken_in_any_case():
    assert parse([*NEEDED, "--optimizer=ADAMW"]).optimizer == "adamW"


def test_whole_numbers_may_come_as_floats_from_a_search():
    assert parse([*NEEDED, "--batch-size=500.0"]).batch_size == 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-epoch=3"], "unknown option '--num-epoch'; did you mean '--num-epochs'"),
        (["--optimizer=adem"], "unknown optimizer 'adem'; did you mean 'adam'"),
        (["--lr-scheduler=flat"], "unknown learning-rate scheduler 'flat'"),
        (["--batch-size=0.5"], "must be a whole number at least 1, not '0.5'"),
        (["--start-lr=0"], "must be a number above 0, not '0'"),
        (["--start-lr=nan"], "not 'nan'"),
        (["--data-fraction=1.5"], "above 0 and at most 1, not '1.5'"),
        (["--network-option", "fc_dim"], "'fc_dim' is no option; write 'name value' or name:value"),
        (["--data-test=t"], "--data-test goes with --predict: the test set takes no part in training"),
        (["--gpus=first"], "--gpus must be auto"),
        (["--predict"], "missing --data-test, --predict-output"),
        (["--predict", "--data-test=t", "--predict-output=x.csv"], "must end in .npz or .root"),
        (["extra"], "unexpected argument 'extra'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_makes_no_sense_is_refused_with_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse([*NEEDED, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_flags_are_named_together(capsys):
    with pytest.raises(SystemExit):
        parse(["--data-train=a"])
    assert "missing --data-config, --network-config, --model-prefix, --data-val" in capsys.readouterr().err


def test_flags_of_a_search_space_exist():
    assert set(TrainOptions.names()) >= TRAIN_FLAGS


def test_help_comes_before_torch():
    code = """
import sys, weaver.train
try:
    weaver.train.main(["--help"])
except SystemExit:
    assert not {"torch", "uproot"} & {*sys.modules}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--network-option" in done.stdout
