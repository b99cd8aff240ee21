"""The command line of weaver.train:

Weaver's flags, clear refusals, and no torch before it is needed.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from common.config import PRECISIONS
from tests.weaver.trials import ROOT
from weaver.fit.options import (
    AUTO_NAME,
    TRAIN_FLAGS,
    WEAVER_ONLY_FLAGS,
    TrainOptions,
    literal,
    parse,
    parser,
)

# Every flag of weaver-core 0.5.3, as its parser lists them; a letter in front is the flag's short
# name.
WEAVER_CORE = """
amp-dtype auto-clean backend batch-size batch-size-test batch-size-val compile compile-optimizer
compiler-option copy-inputs cross-validation custom-functions c:data-config data-config-test
data-config-val data-fraction data-fraction-val data-split-num data-split-val t:data-test
i:data-train l:data-val demo exclude-model-weights export-onnx extra-selection-test
extra-selection-train extra-selection-val fetch-by-files fetch-step fetch-step-val file-fraction
freeze-model-weights gpus in-memory in-memory-val io-test load-epoch load-model-weights log-file
lr-finder lr-scheduler m:model-prefix n:network-config o:network-option no-remake-weights num-epochs
num-workers onnx-opset optimizer p:optimizer-option predict predict-gpus predict-output
prefetch-factor print profile regression-mode run-mode samples-per-epoch samples-per-epoch-val
start-lr steps-per-epoch steps-per-epoch-val tensorboard tensorboard-custom-fn train-val-split
use-amp warmup-steps
"""
REQUIRED = [
    "--data-train=a",
    "--data-val=b",
    "--data-config=c",
    "--network-config=n",
    "--model-prefix=m",
]


def test_both_forms_of_network_options_are_parsed():
    words = [
        *REQUIRED,
        "--network-option",
        "num-fc-layers",
        "3",
        "-o",
        "fc_dim:100,dropout:0.1",
        "-o",
        "layers:(64,32),name:a:b",
    ]
    assert parse(words).network_option == {
        "num_fc_layers": 3,
        "fc_dim": 100,
        "dropout": 0.1,
        "layers": (64, 32),
        "name": "a:b",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("true", True),
        ("None", None),
        ("adamW", "adamW"),
        ("[1,2]", [1, 2]),
    ],
)
def test_values_are_literals_or_text(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_names_of_optimizers_are_case_insensitive():
    assert parse([*REQUIRED, "--optimizer=ADAMW"]).optimizer == "adamW"


def test_whole_numbers_may_come_as_floats_from_a_search():
    assert parse([*REQUIRED, "--batch-size=500.0"]).batch_size == 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-epcohs=3"], "unknown option '--num-epcohs'; did you mean '--num-epochs'"),
        (["--optimizer=adem"], "unknown optimizer 'adem'; did you mean 'adam'"),
        (["--lr-scheduler=flat"], "unknown learning-rate scheduler 'flat'"),
        (["--batch-size=0.5"], "must be a whole number at least 1, not '0.5'"),
        (["--start-lr=0"], "must be a number above 0, not '0'"),
        (["--start-lr=nan"], "not 'nan'"),
        (["--data-fraction=1.5"], "above 0 and at most 1, not '1.5'"),
        (["--network-option", "fc_dim"], "'fc_dim' is not an option; write 'name value'"),
        (
            ["--data-test=t"],
            "--data-test needs --predict-output, because the test set is used only for",
        ),
        (["--gpus=first"], "--gpus must be auto"),
        (["--predict"], "missing --data-test, --predict-output"),
        (
            ["--predict", "--data-test=t", "--predict-output=x.csv"],
            "must end in .root, .parquet or .npz",
        ),
        (["extra"], "unexpected argument 'extra'"),
        (["--file-fraction=0.5"], "--file-fraction of weaver-core is not an option here"),
        (["--cross-validation=event"], "--cross-validation must be VARIABLE%K"),
        (["--cross-validation=event%0"], "--cross-validation must be VARIABLE%K"),
        (["--cross-validation=event%5", "--metrics-log=m"], "--metrics-log are for one"),
        (["--train-val-split", "1"], "must be a number above 0"),
        (["--run-mode=trian"], "--run-mode: unknown step 'trian'; did you mean 'train'"),
        (["--run-mode=val"], "history.json in the trial's folder has"),
        (["--use-amp", "--precision=fp16"], "--use-amp means bf16, --precision means fp16"),
        (["--steps-per-epoch=2", "--samples-per-epoch=256"], "not both"),
        (["--samples-per-epoch=100"], "less than one batch of 128"),
        (["--triton-config=x"], "--triton-config needs --export-onnx"),
        (["--export-onnx=x.pt"], "--export-onnx must end in .onnx"),
        (["--lr-finder=1,2"], "--lr-finder must be START,END,STEPS"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_invalid_flags_are_refused_with_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as exit_error:
        parse([*REQUIRED, *words])
    assert exit_error.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_flags_are_listed_together(capsys):
    with pytest.raises(SystemExit):
        parse(["--data-train=a"])
    assert "missing --data-config, --network-config, --model-prefix\n" in capsys.readouterr().err


def test_flags_of_a_search_space_exist():
    assert set(TrainOptions.names()) >= TRAIN_FLAGS


def test_help_does_not_import_torch():
    code = """
import sys, weaver.train
try:
    weaver.train.main(["--help"])
except SystemExit:
    assert not {"torch", "uproot"} & {*sys.modules}
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "--network-option" in process.stdout


def test_every_flag_of_weaver_core_is_accepted_or_explained():
    theirs = {flag.rpartition(":")[2] for flag in WEAVER_CORE.split()}
    assert theirs - set(TrainOptions.names()) == set(WEAVER_ONLY_FLAGS)
    actions = parser()._option_string_actions
    for letter, _, flag in (flag.rpartition(":") for flag in WEAVER_CORE.split()):
        assert f"--{flag}" in actions
        assert not letter or actions[f"-{letter}"] is actions[f"--{flag}"]


def test_flags_without_effect_print_a_note_and_change_nothing(capsys):
    words = [
        "--fetch-step=0.5",
        "--num-workers",
        "3",
        "--no-remake-weights",
        "--no-compile-optimizer",
    ]
    assert parse([*REQUIRED, "--regression-mode", *words]) == parse(
        [*REQUIRED, "--regression-mode"]
    )
    messages = capsys.readouterr().err
    assert "note: --num-workers has no effect: a thread prepares batches in advance" in messages
    assert messages.count("note: ") == 3


def test_precision_follows_use_amp_unless_it_is_set(capsys):
    precisions = [
        parse([*REQUIRED, *words]).requested_precision
        for words in ([], ["--use-amp"], ["--use-amp", "--amp-dtype=fp16"], ["--precision=auto"])
    ]
    assert precisions == ["float32", "bf16", "fp16", "auto"]


def test_steps_and_samples_set_the_length_of_an_epoch():
    assert parse(REQUIRED).steps(7) == 7
    assert parse([*REQUIRED, "--steps-per-epoch=3"]).steps(7) == 3
    options = parse(
        [
            *REQUIRED,
            "--samples-per-epoch=1000",
            "--batch-size=100",
            "--steps-per-epoch-val=2",
            "--data-fraction-val=0.5",
        ]
    )
    assert options.steps(7) == 10
    assert [options.fraction_val(jets) for jets in (100, 800)] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ([], 1.0),
        (["--data-fraction=0.25"], 0.25),
        (["--data-fraction=0.25", "--data-fraction-val=1"], 1.0),
        (["--data-fraction-val=0.5"], 0.5),
        (["--data-fraction=0.25", "--steps-per-epoch-val=2", "--batch-size=10"], 0.2),
    ],
)
def test_validation_takes_the_data_fraction_of_training_by_default(words, share):
    """As weaver-core 0.5.3: data_fraction where data_fraction_val is None."""
    options = parse([*REQUIRED, *words])
    assert options.fraction_val(100) == share
    assert options.settings()["data_fraction_val"] == options.share_val


def test_precisions_equal_those_of_the_pipeline_and_have_a_type():
    from weaver.network.precision import TYPES

    assert {"auto", *TYPES} == set(PRECISIONS)
    assert parse([*REQUIRED, "--precision", "BF16"]).precision == "bf16"
    with pytest.raises(SystemExit):
        parse([*REQUIRED, "--amp-dtype", "float32"])


# ------------------------------------------------------------- published commands of weaver-core


def test_all_refused_and_unknown_flags_are_listed_at_once(capsys):
    words = ["--compile-optimizer", "--file-fraction", "0.5", "--custom-functions=f.py"]
    words += ["--num-epcohs=3"]
    with pytest.raises(SystemExit) as exit_error:
        parse([*REQUIRED, *words])
    assert exit_error.value.code == 2
    messages = capsys.readouterr().err
    for part in ("--compile-optimizer of weaver-core", "--file-fraction", "'--num-epcohs'"):
        assert part in messages


@pytest.mark.parametrize(
    ("short", "name", "value"),
    [
        ("--log=a.log", "log_file", "a.log"),
        ("--w=0.5", "warmup_steps", 0.5),  # and not --weight-decay, which it does not have
        ("--num-ep=3", "num_epochs", 3),
        ("--data-fraction-v=0.5", "data_fraction_val", 0.5),
        ("--pred", None, None),
        ("--opt=adamW", None, None),
    ],
)
def test_abbreviations_of_flags_work_as_in_weaver_core(short, name, value):
    """Its argparse accepts a prefix of exactly one flag; the last two are ambiguous."""
    if name is None:
        with pytest.raises(SystemExit):
            parse([*REQUIRED, short])
    else:
        assert getattr(parse([*REQUIRED, short]), name) == value


def test_auto_becomes_the_name_of_weaver_core(monkeypatch):
    words = [*REQUIRED, "-m", "models/{auto}/net", "--log-file", "{auto}.log", "-o", "fc_dim", "7"]
    options = parse([*words, "--start-lr=0.01", "--batch-size=64", "--optimizer=adamW"])
    name = options.model_prefix.split("/")[1]
    assert re.fullmatch(r"\d{8}-\d{6}_n_[0-9a-f]{32}_adamW_lr0\.01_batch64", name)
    assert options.log_file == f"{name}.log"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):  # the processes would disagree about the second
        parse(words)
    monkeypatch.setenv(AUTO_NAME, "same")
    assert parse(words).model_prefix == "models/same/net"


def test_tensorboard_writes_where_weaver_core_does():
    folder = parse([*REQUIRED, "--tensorboard=_mine"]).tensorboard_log_dir
    assert re.fullmatch(r"runs/\w{3}\d\d_\d\d-\d\d-\d\d_.+_mine", folder)
    both = parse([*REQUIRED, "--tensorboard=_mine", "--tensorboard-log-dir=here"])
    assert both.tensorboard_log_dir == "here"


@pytest.mark.parametrize("word", ["auto", "none"])
def test_auto_and_none_of_tensorboard_need_no_writable_folder(word, monkeypatch):
    """Pods of images whose code is read-only start there; nobody may write to /proc."""
    monkeypatch.chdir("/proc")
    words = [word_of_command.replace("-prefix=m", "-prefix=/tmp/m") for word_of_command in REQUIRED]
    assert parse([*words, f"--tensorboard-log-dir={word}"]).tensorboard_log_dir == word
    with pytest.raises(SystemExit):
        parse([*words, "--tensorboard-log-dir=here"])


def test_without_validation_data_each_file_is_split():
    words = [word for word in REQUIRED if not word.startswith("--data-val")]
    assert parse(words).parts == ((0.0, 0.8), (0.8, 1.0))
    assert parse([*words, "--train-val-split=0.75"]).parts == ((0.0, 0.75), (0.75, 1.0))
    assert parse([*REQUIRED, "--train-val-split=0.75"]).parts == ((0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("mode", "trains", "predicts"),
    [
        ("train", True, False),
        ("train,val", True, False),
        ("train,test", True, False),
        ("train,val,test", True, False),
        ("test", False, True),
    ],
)
def test_run_mode_selects_training_and_prediction(mode, trains, predicts):
    test_data = ["--data-test=t", "--predict-output=p.root"]
    options = parse([*REQUIRED, *test_data, f"--run-mode={mode}"])
    assert (options.trains, options.predict, options.runs("test")) == (
        trains,
        predicts,
        "test" in mode,
    )


def test_flags_with_another_meaning_than_in_weaver_core_print_a_note(capsys, monkeypatch):
    parse([*REQUIRED, "--regression-mode"])
    assert "note" not in capsys.readouterr().err
    for words, part in (
        (["--steps-per-epoch=3"], "--steps-per-epoch-val limits it"),
        (["--no-regression-mode"], "highest accuracy"),
        (["--train-val-split=0.5"], "--train-val-split has no effect"),
        (["--run-mode=train"], "validates too"),
    ):
        parse([*REQUIRED, *words])
        assert part in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    parse(REQUIRED)
    assert "--batch-size 128 is the total of all 2 processes" in capsys.readouterr().err


def test_use_amp_has_an_effect_on_gpus_only():
    """weaver-core 0.5.3 switches autocast on for CUDA only, so that it has no effect on a CPU."""
    options = parse([*REQUIRED, "--use-amp"])
    assert [options.precision_on(device) for device in ("cpu", "cuda")] == ["float32", "bf16"]
    options = parse([*REQUIRED, "--precision=bf16"])
    assert options.precision_on("cpu") == "bf16"


def test_the_page_for_users_of_weaver_core_lists_every_flag():
    page = (ROOT / "docs" / "coming-from-weaver.md").read_text()
    table = page[page.index("| Flag | Here |") :]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE))
    flags_of_page = {flag for names in rows for flag in re.findall(r"`--([\w-]+)`", names)}
    assert flags_of_page == {flag.rpartition(":")[2] for flag in WEAVER_CORE.split()}
    for names, words in rows.items():
        for flag in re.findall(r"`--([\w-]+)`", names):
            if flag in WEAVER_ONLY_FLAGS:
                expected = "Refused" if WEAVER_ONLY_FLAGS[flag].is_rejected else "No effect"
                assert words.startswith(expected), flag
            else:
                assert not words.startswith(("Refused", "No effect")), flag
