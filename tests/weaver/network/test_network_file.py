"""Network files: their options are known without importing them, and their errors are reported with
file and line.
"""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from common.errors import InputError
from tests.weaver.trials import ROOT
from weaver.fit.options import parse
from weaver.network.network_file import load_network, option_names, option_rules

SIMPLE = """
import dataclasses
import torch

@dataclasses.dataclass
class Sizes:
    width: "int"

def get_model(data_config, width=4, depth=1, **kwargs):
    return torch.nn.Linear(2, Sizes(width).width), {"input_names": ["x"]}

def get_loss(data_config, **kwargs):
    return torch.nn.L1Loss()
"""


def write(folder, text: str) -> str:
    path = folder / "network.py"
    path.write_text(text)
    return str(path)


def test_a_published_network_file_is_built_with_any_options(tmp_path):
    network = load_network(write(tmp_path, SIMPLE))
    assert network.option_names() is None
    model, info = network.build(None, {"width": 7, "use_amp": True})
    assert (model.out_features, info) == (7, {"input_names": ["x"]})
    assert type(network.loss(None, {"width": 7})).__name__ == "L1Loss"


@pytest.mark.parametrize("name", ["pfn", "particle_net"])
def test_our_networks_declare_their_options(name):
    names = load_network(f"{ROOT}/networks/{name}_regressor_open.py").option_names()
    assert {"num_conv_layers", "conv_dim", "num_fc_layers", "fc_dim", "dropout"} <= names
    assert ("use_counts" in names) == (name == "particle_net")


def test_model_and_loss_get_their_own_options(tmp_path):
    text = (
        "def get_model(d, *, width=1):\n    return width, {}\ndef get_loss(d, *, delta=0.1,"
        " **rest):\n    return (delta, rest)\n"
    )
    network = load_network(write(tmp_path, text))
    assert network.option_names() == {"width", "delta"}
    options = {"width": 3, "delta": 0.5}
    network.check_options(options)
    assert network.build(None, options) == (3, {})
    assert network.loss(None, options) == (0.5, {"width": 3})


def test_an_unknown_option_is_refused_with_the_nearest_name():
    network = load_network(f"{ROOT}/networks/pfn_regressor_open.py")
    with pytest.raises(
        InputError, match="unknown network option 'num_fc_layer'; did you mean 'num_fc_layers'"
    ):
        network.build(types.SimpleNamespace(), {"num_fc_layer": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def get_model(d): pass\ndef get_train_fn(d): pass\n",
            "defines get_train_fn: loops and optimizers of a network file's own",
        ),
        ("get_loss = None\n", "defines no get_model"),
        ("def get_model(d:\n", r"network.py, line 1: "),
        ("def get_model(\0", "network.py, line"),
    ],
)
def test_an_invalid_network_file_is_refused_before_it_is_imported(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_network(write(tmp_path, text))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*nothing.py"):
        load_network(str(tmp_path / "nothing.py"))


def test_a_failing_import_is_reported_with_its_line(tmp_path):
    text = SIMPLE + "import no_such_module\n"
    network, line = load_network(write(tmp_path, text)), len(text.splitlines())
    with pytest.raises(
        InputError,
        match=rf"cannot be imported: ModuleNotFoundError: .*no_such_module.*\(line {line}\)",
    ):
        network.build(None, {})


def test_a_failing_function_is_reported_with_its_line(tmp_path):
    network = load_network(
        write(
            tmp_path,
            "def get_model(d, **k):\n    return 1 / 0\nfrom torch.nn import L1Loss as get_loss\n",
        )
    )
    with pytest.raises(InputError, match=r"get_model failed: ZeroDivisionError: .* \(line 2\)"):
        network.build(None, {})


def test_options_are_read_without_torch():
    code = (
        "import sys; from weaver.network.network_file import load_network as l;"
        " print(l('networks/pfn_regressor_open.py').option_names())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code + "; assert 'torch' not in sys.modules"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "use_bn" in process.stdout


def test_functions_imported_in_a_try_block_count():
    text = (
        "try:\n    from a import get_model\nexcept ImportError:\n    from b import get_model\nfrom"
        " c import get_loss\n"
    )
    assert option_names(text, "x.py") is None


def test_the_default_loss_is_cross_entropy_for_classification_and_missing_for_regression(
    tmp_path,
):
    network = load_network(write(tmp_path, "def get_model(d, **k): return k, {}\n"))
    assert (
        type(network.loss(types.SimpleNamespace(label_type="simple"), {})).__name__
        == "CrossEntropyLoss"
    )
    with pytest.raises(InputError, match="defines no get_loss"):
        network.loss(types.SimpleNamespace(label_type="custom"), {})


def test_weaver_s_options_go_only_to_networks_that_declare_them(tmp_path):
    network = load_network(
        write(
            tmp_path,
            "def get_model(d, width=1, for_inference=False): return (width, for_inference), {}\n",
        )
    )
    weaver_options = {"for_inference": True, "use_amp": True}
    assert network.build(None, {"width": 2}, weaver_options)[0] == (2, True)
    assert network.build(None, {"width": 2})[0] == (2, False)


def test_a_network_with_kwargs_gets_only_the_options_that_are_set(tmp_path):
    """weaver-core 0.5.3 adds use_amp, compile_model and for_inference only where they are set."""
    network = load_network(
        write(
            tmp_path,
            "def get_model(d, **kwargs): return kwargs, {}\n"
            "def get_loss(d, **kwargs): return kwargs\n",
        )
    )
    assert network.build(None, {"a": 1}, mixed_precision=True)[0] == {"a": 1}
    assert network.build(None, {"a": 1}, {"use_amp": True})[0] == {"a": 1, "use_amp": True}
    assert network.loss(None, {"a": 1}, {"compile_model": True}) == {"a": 1, "compile_model": True}
    with_use_amp = load_network(
        write(tmp_path, "def get_model(d, use_amp=False): return use_amp, {}\n")
    )
    assert with_use_amp.build(None, {}, mixed_precision=True)[0] is True
    flags = ["-c", "c.yaml", "-n", "n.py", "-m", "m", "--data-train", "a", "--data-val", "b"]
    assert parse(flags).weaver_options == {}
    assert parse([*flags, "--use-amp"]).weaver_options == {"use_amp": True}
    assert parse([*flags, "--compile"]).weaver_options == {"compile_model": True}
    assert parse([*flags, "--precision", "bf16"]).weaver_options == {}


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("OPTIONS = {'k': {'least': 1}}", {"k": {"least": 1}}),
        ("OPTIONS: dict[str, dict] = {'k': {'least': 1}}", {"k": {"least": 1}}),
        ("OPTIONS = dict(k={'least': 1})", {}),
        ("OPTIONS: dict", {}),
        ("OTHER = {'k': {'least': 1}}", {}),
    ],
    ids=["literal", "annotated", "made by a program", "only declared", "none"],
)
def test_rules_of_options_are_parsed_from_the_text(text, rules):
    assert option_rules(text) == rules
