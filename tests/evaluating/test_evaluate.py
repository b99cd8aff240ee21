"""evaluate over a run folder with a small ONNX model; the test jets come from formulas, not from
weaver's files.
"""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from common import storage
from common.errors import InputError
from common.layout import RunFolder
from common.records import MemoryRecord, MetricsRecord, plain
from common.run import Run
from evaluating import evaluate, inference, inputs, memory, requirements, results
from evaluating.inference import load_session, predict
from tests.physics.jets import make_jets, target_of
from tests.records import metrics_record


class TestJets:
    """The part of weaver.feed.dataset.Dataset that evaluate uses; the one input is the target, so
    that a linear model is a good one.
    """

    __test__ = False

    def __init__(self, jets: dict[str, np.ndarray]) -> None:
        self.jets = jets
        self.data_config = SimpleNamespace(
            functions={}, label_names=(), input_shapes={"jet_features": (-1,)}
        )
        self.labels: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.jets["jetPt"])

    def observers(self) -> dict[str, np.ndarray]:
        return self.jets

    def label(self, name: str) -> np.ndarray:
        return self.labels[name]

    def batch(self, index: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(
            inputs={"jet_features": target_of(self.jets)[index, None].astype(np.float32)}
        )


def linear_model(
    slope: float,
    offset: float | list[float] = 0.0,
    name: str = "jet_features",
    columns: list[str] | None = None,
) -> bytes:
    """output (N, C) = slope * input + offset, with as many columns as offsets;

    `columns` are stored in the metadata.
    """
    offsets = np.atleast_1d(offset).tolist()
    nodes = [
        helper.make_node("Mul", [name, "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["output"]),
    ]
    sides = [
        helper.make_tensor_value_info(side, TensorProto.FLOAT, ["N", size])
        for side, size in ((name, 1), ("output", len(offsets)))
    ]
    values = [
        helper.make_tensor(key, TensorProto.FLOAT, [len(v)], v)
        for key, v in (("slope", [slope]), ("offset", offsets))
    ]
    graph = helper.make_graph(nodes, "linear", sides[:1], sides[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"output_columns": json.dumps(columns)} if columns else {})
    return model.SerializeToString()


@pytest.fixture
def run(tmp_path, monkeypatch, documents):
    """A run folder after search and export, with jets from a formula."""
    config = documents.run.config.replace(s3_bucket=str(tmp_path))
    new_run = Run(config=config, record=documents.run.record)
    new_run.save()
    documents.search.save(new_run.folder.search)
    best = documents.search.optimal
    storage.write_json(new_run.folder.history(best), [plain(epoch) for epoch in documents.history])
    documents.options.save(new_run.folder.options(best))
    documents.export.save(new_run.folder.export)
    folder = tmp_path / new_run.id
    put_model(folder, linear_model(0.1))
    monkeypatch.setattr(inputs, "open_prepared_test_set", lambda _: TestJets(make_jets(2500)))
    return folder


def put_model(folder, content: bytes) -> None:
    """Write a model as if it had been exported: with its digest in the record."""
    path = folder / "model/pfn/1/model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    record = folder / "model/export.json"
    if record.exists():
        content_of_record = {**json.loads(record.read_text()), "sha256": storage.digest(content)}
        record.write_text(json.dumps(content_of_record))


def command(run, *more: str) -> int:
    return evaluate.main(["--run", str(run), "--name", "pfn", "--replicates", "40", *more])


def read_strictly(path) -> dict:
    """JSON as other languages read it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_evaluate_writes_metrics_report_and_figures(run, capsys):
    assert command(run, "--seed", "3", "--batch-size", "999") == 0
    metrics = read_strictly(run / "metrics.json")
    assert metrics["passed"] is True
    assert {
        "reasons",
        "gain",
        "closure",
        "resolution",
        "flavour",
        "bins",
        "num_jets",
        "model",
        "trial",
        "config",
    } <= set(metrics)
    assert (metrics["model"], metrics["trial"], metrics["num_jets"]) == (
        "pfn",
        "pfn-0a1b2c3d-b",
        2500,
    )
    assert metrics["config"] == {
        "min_improvement": 0,
        "max_closure": 0.01,
        "seed": 3,
        "gate": "default",
        "gate_regions": "both",
        "max_resolution_ratio": 1.05,
        "max_tail_ratio": 1.05,
        "max_flavour_ratio": 1.05,
        "max_coverage_points": 4,
    }
    assert metrics["gate"]["checks"][0]["quantity"] == "gain"
    assert metrics["gain"]["value"] == pytest.approx(10, abs=1)
    assert "Gate passed" in (run / "report.html").read_text()
    assert (run / "figures" / "resolution-barrel.pdf").read_bytes().startswith(b"%PDF")
    out = capsys.readouterr().out
    assert "resolution gain over the standard JEC: +" in out
    assert "gate passed" in out


@pytest.fixture
def without_figures(monkeypatch):
    """Without the figures, which take seconds."""
    monkeypatch.setattr(results, "figures_of", lambda _: [])


@pytest.mark.usefixtures("without_figures")
def test_metrics_json_is_a_record_with_rounded_numbers(run):
    assert command(run) == 0
    content = read_strictly(run / "metrics.json")
    record = MetricsRecord.load(str(run / "metrics.json"))
    # The file has every limit of the gate, those that are the default as well.
    assert {**record.as_json(), "config": dataclasses.asdict(record.config)} == content
    assert len(content["config"]) == len(dataclasses.fields(record.config))
    assert results.round_floats(record) == record
    assert content["format"] == MetricsRecord.FORMAT
    assert record.run_id == run.name
    assert record.closure.bins[0].baseline is None
    # Without a baseline, a bin has neither its numbers nor an empty place for them.
    assert not {"baseline", "uncorrected", "gain_over_baseline"} & set(content["bins"][0])


@pytest.mark.usefixtures("without_figures")
def test_a_model_that_fails_the_gate_is_a_result_and_not_an_error(run, capsys):
    put_model(run, linear_model(0.1, offset=0.05))
    assert command(run) == 0
    metrics = read_strictly(run / "metrics.json")
    assert metrics["passed"] is False
    assert "gate not passed:" in capsys.readouterr().out
    places = {check["where"] for check in metrics["gate"]["checks"] if not check["passed"]}
    assert {"barrel jets above 60 GeV", "endcap jets above 60 GeV"} <= places
    assert "closure fails for" in metrics["reasons"][0]
    assert all(reason in (run / "report.html").read_text() for reason in metrics["reasons"])


@pytest.fixture
def earlier(run, tmp_path):
    """An evaluated run whose model knows less of each jet's error."""
    folder = tmp_path / "earlier"
    put_model(folder, linear_model(0.05))
    metrics_record(model="pfn").save(RunFolder(str(folder)).metrics)
    return folder


@pytest.mark.usefixtures("without_figures")
def test_a_baseline_is_measured_on_the_same_jets(run, earlier, capsys):
    assert command(run, "--baseline", str(earlier)) == 0
    metrics = read_strictly(run / "metrics.json")
    assert metrics["gain_over_baseline"]["value"] == pytest.approx(100 * (1 - 0.9 / 0.95), abs=0.5)
    assert metrics["gain_over_baseline"]["low"] > 0
    assert (
        metrics["closure"]["bins"][0]["baseline"]["value"]
        != metrics["closure"]["bins"][0]["model"]["value"]
    )
    assert "resolution gain over earlier: +" in capsys.readouterr().out
    assert "over the baseline model" in (run / "report.html").read_text()


def test_a_baseline_of_other_jets_is_refused(run, earlier, monkeypatch, capsys):
    jets = make_jets(2500)
    swapped = {name: values[::-1] for name, values in jets.items()}
    monkeypatch.setattr(
        inputs,
        "open_prepared_test_set",
        lambda folder: TestJets(swapped if "earlier" in folder else jets),
    )
    assert command(run, "--baseline", str(earlier)) == 2
    assert "was tested on other jets" in capsys.readouterr().err
    assert not (run / "metrics.json").exists()


def test_a_baseline_that_was_not_evaluated_is_refused(run, tmp_path, capsys):
    assert command(run, "--baseline", str(tmp_path)) == 2
    assert "has no metrics.json" in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_answers_do_not_depend_on_the_batch_size(run):
    session = load_session(str(run), "pfn")
    jets = make_jets(1001)
    expected = 0.1 * target_of(jets)
    for batch_size in (1, 17, 1000, 5000):
        answers = predict(session, TestJets(jets), batch_size)
        assert answers.correction == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("without_figures")
def test_the_uncertainty_of_a_quantile_network_is_measured(run, capsys):
    put_model(run, linear_model(0.1, [0, -0.1, 0.1], columns=["median", "q16", "q84"]))
    assert command(run) == 0
    metrics = read_strictly(run / "metrics.json")
    half = np.abs(0.9 * target_of(make_jets(2500)))
    assert metrics["uncertainty"]["bands"][0]["coverage"]["value"] == pytest.approx(
        np.mean(half < 0.1), abs=1e-3
    )
    assert metrics["headline"]["uncertainty_coverage_percent"] == pytest.approx(
        100 * np.mean(half < 0.1), abs=0.1
    )
    assert metrics["gain"]["value"] == pytest.approx(10, abs=1)  # the median alone is the answer
    assert "jets between the model's q16 and q84: " in capsys.readouterr().out


@pytest.mark.usefixtures("without_figures")
def test_a_model_with_one_output_has_no_uncertainty(run):
    put_model(run, linear_model(0.1, columns=["output"]))
    assert command(run) == 0
    assert "uncertainty" not in read_strictly(run / "metrics.json")


def test_columns_that_the_model_does_not_have_are_refused(run, capsys):
    put_model(run, linear_model(0.1, [0, -0.1], columns=["median", "q16", "q84"]))
    assert command(run) == 2
    error = capsys.readouterr().err
    assert "output columns median, q16, q84" in error
    assert "its output has 2" in error


@pytest.mark.usefixtures("without_figures")
def test_the_speed_is_recorded_with_its_conditions(run):
    assert command(run, "--batch-size", "500") == 0
    speed = read_strictly(run / "metrics.json")["inference"]
    assert speed["jets_per_second"] > 0
    assert (speed["batch_size"], speed["provider"]) == (500, "CPU")
    assert speed["threads"] == len(os.sched_getaffinity(0))
    assert speed["processor"]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("label", "passes"),
    [
        ("np.log(genJetPt / jetPt)", True),
        ("np.log(genJetPt) - np.log(jetPt)", True),
        ("np.log(genJetPt / derived)", True),
        ("genJetPt / jetPt", False),
        ("np.log(genJetPt / (2 * jetPt))", False),
    ],
)
def test_a_model_with_another_label_is_refused_with_the_reason(run, without_figures, label, passes):
    model = onnx.load_from_string(linear_model(0.1))
    onnx.helper.set_model_props(model, {"label": json.dumps({"target": label})})
    put_model(run, model.SerializeToString())
    assert command(run) == 0
    metrics = read_strictly(run / "metrics.json")
    assert metrics["passed"] is passes
    assert any(f"the label is {label}," in reason for reason in metrics["reasons"]) is not passes


@pytest.mark.slow
def test_a_run_without_search_or_export_record_is_measured(run):
    (run / "search.json").unlink()
    (run / "model/export.json").unlink()
    assert command(run) == 0
    assert read_strictly(run / "metrics.json")["trial"] is None


@pytest.mark.usefixtures("without_figures")
def test_the_trial_of_the_flag_is_reported(run):
    assert command(run, "--trial", "pfn-0a1b2c3d-a") == 0
    assert read_strictly(run / "metrics.json")["trial"] == "pfn-0a1b2c3d-a"


def test_a_folder_without_run_json_is_refused(tmp_path, capsys):
    assert command(tmp_path) == 2
    assert "no run.json" in capsys.readouterr().err


def test_an_unknown_model_is_refused_with_the_nearest_name(run, capsys):
    assert evaluate.main(["--run", str(run), "--name", "pnf"]) == 2
    assert "did you mean 'pfn'" in capsys.readouterr().err
    assert not (run / "metrics.json").exists()


def test_a_model_of_other_inputs_is_refused(run, capsys):
    put_model(run, linear_model(0.1, name="jet_feature"))
    assert command(run) == 2
    assert "unknown input 'jet_feature'; did you mean 'jet_features'" in capsys.readouterr().err


def test_a_missing_observer_is_refused_by_name():
    with pytest.raises(InputError, match="needs the observer genJetEta"):
        requirements.check_observers(["jetPt", "genJetPt"], "config/data.yaml")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--replicates", "3"),
        ("--replicates", "99999999999"),
        ("--batch-size", "99999999999"),
        ("--max-closure", "nan"),
        ("--min-improvement", "inf"),
        ("--seed", "-1"),
    ],
)
def test_invalid_values_of_flags_are_refused(run, capsys, flag, value):
    try:
        code = evaluate.main(["--run", str(run), "--name", "pfn", flag, value])
    except SystemExit as ended:  # of the parser
        code = ended.code
    assert code == 2
    text = capsys.readouterr().err
    assert flag in text
    assert value in text


def test_the_model_under_test_is_valid_onnx():
    onnx.checker.check_model(onnx.load_from_string(linear_model(1.0)))


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (2.0, False)])
def test_a_label_of_derived_variables_is_checked_by_its_values(
    run, without_figures, monkeypatch, factor, passes
):
    jets = make_jets(2500)
    test = TestJets(jets)
    text = "np.log(genJetPt / derived)"
    test.data_config = SimpleNamespace(
        functions={"target": SimpleNamespace(text=text)},
        label_names=("target",),
        input_shapes={"jet_features": (-1,)},
    )
    test.labels = {"target": factor * target_of(jets)}
    monkeypatch.setattr(inputs, "open_prepared_test_set", lambda _: test)
    model = onnx.load_from_string(linear_model(0.1))
    onnx.helper.set_model_props(model, {"label": json.dumps({"target": text})})
    put_model(run, model.SerializeToString())
    assert command(run) == 0
    assert read_strictly(run / "metrics.json")["passed"] is passes


@pytest.mark.parametrize(
    ("room", "batch_size"),
    [
        pytest.param(None, 1000, id="without a limit"),
        pytest.param(10**9, 1000, id="enough"),
        # 0.3 of it are 300 jets of 1000 bytes for the model and 12 for three copies of the input
        pytest.param(1012 * 1000, 256, id="a power of two"),
        pytest.param(10, 1, id="not even for one jet"),
    ],
)
def test_batches_are_as_large_as_the_memory_allows(monkeypatch, documents, room, batch_size):
    monkeypatch.setattr(inference, "memory_room", lambda: room)
    measured = MemoryRecord(sizes=[1], growth=[1], bytes_per_jet=1000, budget=1)
    export = dataclasses.replace(documents.export, memory=measured)
    assert inference.batch_size_for(TestJets(make_jets(10)), export, 1000) == batch_size


@pytest.mark.usefixtures("without_figures")
def test_an_evaluation_below_a_memory_limit_gives_the_same_results(run, monkeypatch, capsys):
    for module in (inference, memory):
        monkeypatch.setattr(module, "memory_room", lambda: None)
    assert command(run) == 0
    assert "warning" not in capsys.readouterr().err
    without_limit = read_strictly(run / "metrics.json")

    monkeypatch.setattr(inference, "memory_room", lambda: 10**6)
    monkeypatch.setattr(memory, "memory_room", lambda: 10**6)
    assert command(run) == 0
    warning = capsys.readouterr().err.splitlines()[0]
    for fact in ("2,500 test jets", "1.0 MB", "--memory", "--data-test"):
        assert fact in warning
    metrics = read_strictly(run / "metrics.json")
    assert metrics["inference"].pop("batch_size") < 1000
    assert without_limit["inference"].pop("batch_size") == 1000
    for content in (metrics, without_limit):
        del content["inference"]["jets_per_second"]
        del content["headline"]["onnx_jets_per_second"]
        del content["importances"]  # of as many jets as the speed allows
    assert metrics == without_limit


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        pytest.param((10**6, 10**5, 10**4), 0, id="enough"),
        pytest.param((10**6 + 1, 10**5, 10**4), 220, id="too many test jets"),
        pytest.param((0, 500_000, 233_333), 0, id="enough for trees"),
        pytest.param((0, 10**7, 300_000), 20 * 10**6, id="at most 500,000 jets train trees"),
    ],
)
def test_a_warning_says_that_memory_may_not_suffice(monkeypatch, numbers, missing):
    room = memory.FIXED_BYTES + 220 * 10**6
    monkeypatch.setattr(memory, "memory_room", lambda: room)
    assert max(memory.needed_bytes(*numbers) - room, 0) == missing
    assert bool(memory.memory_warning(*numbers)) == (missing > 0)
