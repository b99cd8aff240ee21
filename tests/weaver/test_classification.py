"""Classification with a data config and a network file in the style of those published for
weaver-core: train, predict, export, fine-tune.
"""

from __future__ import annotations

import json
from pathlib import Path

import awkward as ak
import numpy as np
import onnxruntime
import pytest
import torch
import uproot

from physics.ranks import auc
from tests.weaver.trials import history, same
from weaver.fit.metrics import class_metrics, pairwise_auc
from weaver.train import main

CONFIG = """
treename: AK4jets/jetTree
selection: jetPt > 0
new_variables:
    pf_one: ak.ones_like(PF_dEta)
    pf_logpt: np.log(PF_pT)
    pf_jet: np.log(jetPt) * ak.ones_like(PF_pT)
    label_soft: jetPt < 40
    label_hard: jetPt >= 40
preprocess: {method: manual}
inputs:
    pf_points: {length: 40, pad_mode: wrap, vars: [[PF_dEta, null], [PF_dPhi, null]]}
    pf_features:
        length: 40
        pad_mode: wrap
        vars: [[pf_logpt, 1.0, 0.5], [pf_jet, 3.7, 2.0], [PF_dR, 0.2, 4.0]]
    pf_vectors: {length: 40, pad_mode: wrap, vars: [[PF_pT, null], [PF_dEta, null]]}
    pf_mask: {length: 40, pad_mode: constant, vars: [[pf_one, null]]}
labels: {type: simple, value: [label_soft, label_hard]}
observers: [jetPt, jetEta]
"""
NETWORK = """
import torch
from weaver.nn.model.ParticleNet import ParticleNet
from weaver.utils.logger import _logger

class Wrapper(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.mod = ParticleNet(**kwargs)

    def forward(self, points, features, lorentz_vectors, mask):
        return self.mod(points, features, mask)

def get_model(data_config, **kwargs):
    _logger.info('options: %s' % str(kwargs), color='bold')
    model = Wrapper(
        input_dims=len(data_config.input_dicts['pf_features']),
        num_classes=len(data_config.label_value),
        conv_params=kwargs.get('conv_params', [(4, (16, 16))]),
        fc_params=[(16, 0.1)],
        use_fusion=False,
        for_inference=kwargs.get('for_inference', False),
    )
    model_info = {
        'input_names': list(data_config.input_names),
        'input_shapes': {k: ((1,) + s[1:]) for k, s in data_config.input_shapes.items()},
        'output_names': ['softmax'],
        'dynamic_axes': {
            **{k: {0: 'N', 2: 'n_' + k.split('_')[0]} for k in data_config.input_names},
            **{'softmax': {0: 'N'}},
        },
    }
    return model, model_info
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, jet_files) -> Path:
    """A folder with data.yaml and network.py, and a trial trained on ROOT files."""
    folder = tmp_path_factory.mktemp("classification")
    (folder / "data.yaml").write_text(CONFIG)
    (folder / "network.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEC_CACHE", str(folder / "cache"))
        words = [
            "--data-train",
            f"soft:{jet_files}/train/a.root",
            f"hard:{jet_files}/train/b.root",
            "--data-val",
            f"{jet_files}/val/*.root",
        ]
        words += [
            "--data-test",
            f"one:{jet_files}/test/*.root",
            f"two%1:{jet_files}/test/*.root",
            "--predict-output",
            f"{folder}/out/pred.root",
        ]
        words += [
            "--num-epochs=6",
            "--batch-size=50",
            "--start-lr=0.01",
            "--optimizer=adam",
            "--ema-decay=0.9",
            "--fetch-step=0.1",
        ]
        assert main([*model_arguments(folder), *words, "--tensorboard-log-dir=none"]) == 0
    return folder


def model_arguments(folder: Path, model: str = "trial/") -> list[str]:
    return [
        f"--data-config={folder}/data.yaml",
        f"--network-config={folder}/network.py",
        f"--model-prefix={folder}/{model}",
        "--gpus=",
    ]


def test_training_lowers_the_loss_and_raises_the_accuracy(place):
    metrics = [record["metrics"] for record in history(place / "trial")]
    assert metrics[-1]["AvgLoss"] < 0.8 * metrics[0]["AvgLoss"]
    assert metrics[-1]["AvgAcc"] > 0.75
    assert "AvgLoss=" in (place / "trial" / "metrics.log").read_text()


def test_predictions_have_the_columns_of_weaver_core(place, jet_files):
    assert {path.name for path in (place / "out").iterdir()} == {"pred_one.root", "pred_two_0.root"}
    result = uproot.open(place / "out" / "pred_one.root")["Events"].arrays(library="np")
    assert set(result) == {
        "label_soft",
        "label_hard",
        "score_label_soft",
        "score_label_hard",
        "_label_",
        "jetPt",
        "jetEta",
    }
    np.testing.assert_array_equal(result["label_hard"], result["jetPt"] >= 40)
    np.testing.assert_allclose(
        result["score_label_soft"] + result["score_label_hard"], 1, rtol=1e-5
    )
    assert auc(result["label_hard"], result["score_label_hard"]) > 0.85

    words = [
        "--predict",
        f"--data-test={jet_files}/test/*.root",
        f"--predict-output={place}/all.parquet",
        "--batch-size-test=64",
    ]
    assert main([*model_arguments(place), *words]) == 0
    other = ak.from_parquet(place / "all.parquet")
    np.testing.assert_allclose(
        np.asarray(other["scores"])[:, 1], result["score_label_hard"], atol=1e-6
    )
    assert set(other.fields) == {"scores", "_label_", "jetPt", "jetEta"}


def test_the_exported_network_returns_scores(place, jet_files, capsys):
    words = [
        f"--export-onnx={place}/onnx/model.onnx",
        f"--triton-config={place}/tagger/config.pbtxt",
        f"--s3-model={place}/repository/tagger",
    ]
    assert main([*model_arguments(place), *words]) == 0
    assert "largest difference from PyTorch" in capsys.readouterr().err
    session = onnxruntime.InferenceSession(place / "onnx" / "model.onnx")
    # pf_vectors is an input that the network ignores
    shapes = {"pf_points": 2, "pf_features": 3, "pf_mask": 1}
    scores = session.run(
        None, {name: np.ones((5, dim, 40), np.float32) for name, dim in shapes.items()}
    )[0]
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    preprocessing = json.loads((place / "onnx" / "preprocess.json").read_text())
    assert preprocessing["output_names"] == ["label_soft", "label_hard"]
    assert preprocessing["pf_features"]["var_length"] == 40
    assert preprocessing["pf_features"]["var_infos"]["pf_logpt"] == {
        **{
            "median": 1.0,
            "norm_factor": 0.5,
            "replace_inf_value": 0,
            "lower_bound": -5,
            "upper_bound": 5,
            "pad": 0,
        }
    }
    assert 'name: "tagger"' in (place / "tagger" / "config.pbtxt").read_text()
    assert {path.name for path in (place / "repository" / "tagger").rglob("*")} == {
        "1",
        "model.onnx",
        "config.pbtxt",
    }


def test_training_starts_from_loaded_weights_and_keeps_frozen_ones(
    place, jet_files, monkeypatch, capsys
):
    monkeypatch.setenv("JEC_CACHE", str(place / "cache"))
    state = torch.load(place / "trial" / "best.pt", weights_only=True)["model"]
    # nothing but a state_dict, as weaver-core writes it
    torch.save(state, place / "theirs_best_epoch_state.pt")
    words = [
        f"--data-train={jet_files}/train/*.root",
        f"--data-val={jet_files}/val/*.root",
        "--num-epochs=1",
        "--tensorboard-log-dir=none",
    ]
    words += [
        f"--load-model-weights={place}/theirs_best_epoch_state.pt",
        "--exclude-model-weights=mod.fc.1",
        "--steps-per-epoch=3",
    ]
    words += [
        "--freeze-model-weights=mod.edge_convs.*convs",
        "--optimizer-option=lr_mult:('mod.fc.*',10),weight_decay:0.01",
    ]
    assert main([*model_arguments(place, "tuned/"), *words]) == 0
    assert "random: mod.fc.1.weight, mod.fc.1.bias" in capsys.readouterr().err
    tuned = torch.load(place / "tuned" / "best.pt", weights_only=True)["model"]
    equal = {
        name for name in state if name.endswith("weight") and torch.equal(state[name], tuned[name])
    }
    assert equal == {name for name in state if ".convs." in name}
    assert (
        main([*model_arguments(place, "other/"), *words, "--network-option=conv_params:[(4,(8,))]"])
        == 2
    )
    assert (
        "weight 'mod.edge_convs.0.convs.0.weight' has the shape (16, 6, 1, 1) there, (8, 6, 1, 1)"
        " in the network" in capsys.readouterr().err
    )


def test_weaver_core_gets_a_state_dict_of_the_best_and_of_every_epoch(place):
    trial = place / "trial"
    best = torch.load(trial / "best.pt", weights_only=True)
    states = {path.name: torch.load(path, weights_only=True) for path in trial.glob("*_state.pt")}
    names = {f"_epoch-{epoch}_state.pt" for epoch in range(6)} | {"_best_epoch_state.pt"}
    assert states.keys() == names
    assert same(states["_best_epoch_state.pt"], best["model"])
    assert same(states[f"_epoch-{best['epoch']}_state.pt"], best["model"])
    assert not same(states["_epoch-0_state.pt"], states["_epoch-5_state.pt"])


def predictions_of(place, jet_files, model: str) -> np.ndarray:
    """Scores of the test jets by the model that --model-prefix names."""
    words = [
        "--predict",
        f"--data-test={jet_files}/test/*.root",
        f"--predict-output={place}/again.npz",
    ]
    assert main([*model_arguments(place, model), *words]) == 0
    return np.load(place / "again.npz")["score_label_hard"]


def test_a_model_prefix_of_weaver_core_is_accepted(place, jet_files, capsys):
    """Its files lie beside the prefix; DDP and torch.compile add prefixes to the names of
    weights.
    """
    expected = predictions_of(place, jet_files, "trial/")
    (place / "theirs").mkdir()
    best = torch.load(place / "trial" / "best.pt", weights_only=True)["model"]
    for name, wrapper in (("plain", ""), ("ddp", "module."), ("both", "module._orig_mod.")):
        state = {wrapper + key: value for key, value in best.items()}
        torch.save(state, place / "theirs" / f"{name}_best_epoch_state.pt")
        capsys.readouterr()
        np.testing.assert_array_equal(predictions_of(place, jet_files, f"theirs/{name}"), expected)
        assert ("are taken off" in capsys.readouterr().err) == bool(wrapper)
    last = predictions_of(place, jet_files, "trial/_epoch-0_state.pt")
    assert not np.array_equal(last, expected)


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (["--metrics-log={}/metrics.log"], []),
        (["--auto-clean"], [2]),
        ([], [0, 1, 2]),
    ],
    ids=["in a search", "auto-clean", "alone"],
)
def test_epochs_whose_weights_are_stored_for_weaver_core(
    place, jet_files, tmp_path, monkeypatch, words, epochs
):
    monkeypatch.setenv("JEC_CACHE", str(place / "cache"))
    prefix = tmp_path / "models" / "net"  # no folder: weaver-core's files lie beside it
    arguments = [
        *model_arguments(place)[:2],
        f"--model-prefix={prefix}",
        "--gpus=",
        f"--data-train={jet_files}/train/*.root",
        f"--data-val={jet_files}/val/*.root",
        "--num-epochs=3",
        "--steps-per-epoch=2",
        "--tensorboard-log-dir=none",
    ]
    assert main([*arguments, *(word.format(tmp_path) for word in words)]) == 0
    names = {f"net_epoch-{epoch}_state.pt" for epoch in epochs} | {"net_best_epoch_state.pt"}
    assert {path.name for path in prefix.parent.glob("*.pt")} == names


def test_a_weights_file_is_exported_and_one_of_another_network_is_refused(place, capsys):
    best = torch.load(place / "trial" / "best.pt", weights_only=True)["model"]
    torch.save({f"net.{name}": value for name, value in best.items()}, place / "part.pt")
    assert main([*model_arguments(place, "part.pt:net"), f"--export-onnx={place}/part.onnx"]) == 0
    assert main([*model_arguments(place, "part.pt"), f"--export-onnx={place}/part.onnx"]) == 2
    assert "part.pt holds the weights of another network" in capsys.readouterr().err
    assert main([*model_arguments(place, "part.pt:nett"), f"--export-onnx={place}/part.onnx"]) == 2
    assert "did you mean 'net'" in capsys.readouterr().err


def test_print_shows_layers_parameters_and_operations(place, capsys):
    assert main([*model_arguments(place), "--print"]) == 0
    output = capsys.readouterr().out
    assert "EdgeConvBlock" in output
    parameters = 2 * 3 + 6 * 16 + 16 * 16 + 2 * 2 * 16 + 3 * 16 + 2 * 16 + 17 * 16 + 17 * 2
    assert f"{parameters:,} parameters" in output


def test_print_names_the_network_file_when_forward_fails(place, tmp_path, capsys):
    network = tmp_path / "net.py"
    network.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self):\n"
        "        return 1\n"
        "def get_model(data_config):\n"
        "    names = list(data_config.input_names)\n"
        "    shapes = {name: (1, *data_config.input_shapes[name][1:]) for name in names}\n"
        "    return Net(), {'input_names': names, 'input_shapes': shapes,\n"
        "                   'output_names': ['output'], 'dynamic_axes': {}}\n\n\n"
        "def get_loss(data_config): ...\n"
    )
    assert main([*model_arguments(place), f"--network-config={network}", "--print"]) == 2
    error = capsys.readouterr().err
    assert str(network) in error
    assert "TypeError" in error


def test_auc_is_the_share_of_correctly_ordered_pairs():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 50) == 1, rng.integers(0, 8, 50) / 8
    pairs = score[label][:, None] - score[~label]
    assert auc(label, score) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    scores = np.stack([score, 1 - score], axis=1)
    assert pairwise_auc(scores, np.where(label, 0, 1)) == pytest.approx(auc(label, score))
    assert np.isnan(pairwise_auc(scores, np.zeros(50)))
    assert class_metrics(np.eye(3), np.arange(3)) == {"AvgAcc": 1.0, "AUC": 1.0}
