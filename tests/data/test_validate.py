"""data.validate: generated jets pass, and each injected fault is reported."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from data import checks, from_nanoaod, jetntuple, summary, targets, validate


@pytest.fixture(scope="module")
def jets(columns):
    return summary.summarise(columns)


def problem(columns) -> dict[str, str]:
    """First words of each finding -> its level."""
    return {
        finding.problem.split(":")[0]: finding.level for finding in checks.values("here", columns)
    }


def replace_value(columns, name: str, value: float, place: int = 0):
    values = columns[name].copy()
    values[place] = value
    return columns | {name: values}


def test_generated_jets_have_no_error(generated, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert validate.main([str(generated), "--page", str(page)]) == 0
    assert "0 errors" in capsys.readouterr().out
    text = page.read_text()
    assert "Nothing wrong was found" in text
    assert text.count('<svg role="img"') >= 4
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://www.w3.org", "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("jetPt", np.nan, "jetPt"),
        ("PF_pT", np.inf, "PF_pT"),
        ("jetEta", 9.0, "jetEta"),
        ("PF_dEta", 0.999, "PF_dR is not the length of (PF_dEta, PF_dPhi)"),
        ("PF_fromPV", 7, "PF_fromPV"),
        ("jetRawPt", 0.0, "jetRawPt is not positive"),
    ],
)
def test_a_wrong_value_is_an_error(columns, name, value, message):
    assert message not in problem(columns)
    assert problem(replace_value(columns, name, value))[message] == checks.ERROR


@pytest.mark.parametrize("name", ["jetMass", "jetRawMass"])
def test_a_mass_is_negative_only_within_rounding(columns, name):
    """E^2 - p^2 of a massless jet in float32, of which NanoAOD stores the root with its sign."""
    rng = np.random.default_rng(5)
    momenta = rng.uniform(-200, 200, (10_000, 3)).astype("f4")
    energy = np.sqrt((momenta.astype("f8") ** 2).sum(axis=1)).astype("f4")
    square = energy**2 - (momenta**2).sum(axis=1, dtype="f4")
    rounded = np.sqrt(np.abs(square)) / energy
    assert 0 < rounded.max() < checks.ROUNDED_MASS
    for mass in (-1.5e-6, -1e-3):
        assert name not in problem(replace_value(columns, name, mass))
    assert problem(replace_value(columns, name, -3.0))[name] == checks.ERROR


def test_a_gen_match_that_disagrees_with_gen_pt_is_an_error(columns):
    columns_with_fault = replace_value(columns, "jetGenMatch", 1 - columns["jetGenMatch"][0])
    assert problem(columns_with_fault)["jetGenMatch disagrees with genJetPt > 0"] == checks.ERROR


def test_a_missing_branch_is_reported_with_a_similar_name():
    present = {branch.name: branch.dtype.name for branch in jetntuple.BRANCHES}
    present["PF_pt"] = present.pop("PF_pT")
    present["jetMult"] = "float32"
    first, second = sorted(checks.schema("file", present), key=lambda finding: finding.level)
    assert (first.level, second.level) == (checks.ERROR, checks.WARNING)
    assert "PF_pT is missing (there is PF_pt" in first.problem
    assert "jetMult is float32" in second.problem


def test_a_file_in_two_sets_is_an_error(generated, tmp_path, capsys):
    """The same jets in training and test, with other event numbers."""
    columns = jetntuple.read(generated)
    jetntuple.write(
        tmp_path / "copy.root", columns | {"event": columns["event"] + np.uint64(10**9)}
    )
    code = validate.main([f"train:{generated}", f"test:{tmp_path / 'copy.root'}", "--page", "none"])
    assert code == 1
    assert "train and test: 500 jets are in both" in capsys.readouterr().out


def test_jets_in_two_sets_are_detected_in_another_order_among_others(
    generated, columns, tmp_path, capsys
):
    """Forty jets of the training file, in reverse order, after sixty others in a test file with
    another name.
    """
    others = jetntuple.slice_jets(columns, 0, 60)
    others["jetPt"] = others["jetPt"] * np.float32(1.01)
    leaked = [
        jetntuple.slice_jets(columns, place, place + 1) for place in reversed(range(400, 440))
    ]
    jetntuple.write(tmp_path / "another.root", jetntuple.concatenate([others, *leaked]))
    code = validate.main(
        [f"train:{generated}", f"test:{tmp_path / 'another.root'}", "--page", "none"]
    )
    out = capsys.readouterr().out
    assert code == 1
    assert "error: train and test: 40 jets are in both; give each set files of its own" in out


def test_sets_of_different_events_pass(columns, tmp_path, capsys):
    """The halves of a file, split between events."""
    last_of_event = np.flatnonzero(np.diff(columns["event"].astype(np.int64)))
    half = last_of_event[len(last_of_event) // 2] + 1
    ends = {"train": (0, half), "test": (half, 500)}
    for name, (first, last) in ends.items():
        jetntuple.write(tmp_path / f"{name}.root", jetntuple.slice_jets(columns, first, last))
    assert (
        validate.main([*(f"{name}:{tmp_path}/{name}.root" for name in ends), "--page", "none"]) == 0
    )
    assert "are in both" not in capsys.readouterr().out


def test_jets_of_one_event_in_two_sets_are_a_warning(jets):
    even = {name: values[::2] for name, values in jets.items()}
    odd = {name: values[1::2] for name, values in jets.items()}
    (finding,) = checks.duplicates({"train": even, "test": odd})
    assert finding.level == checks.WARNING
    assert "share run, lumi and event number" in finding.problem


def test_duplicate_jets_in_a_set_are_reported(jets):
    twice = {name: np.r_[values, values[:3]] for name, values in jets.items()}
    (finding,) = checks.duplicates({"train": twice})
    assert "3 of 503 jets are there more than once" in finding.problem


def test_summary_counts_candidates_in_the_cone(columns, jets):
    jet = np.repeat(np.arange(len(columns["nPF"])), columns["nPF"])
    inside = (jet == 3) & (columns["PF_fromAK4Jet"] == 1)
    charged = inside & (np.abs(columns["PF_id"]) == 211)
    assert jets["nInCone"][3] == np.count_nonzero((jet == 3) & (columns["PF_dR"] < 0.4))
    assert jets["chargedFraction"][3] == pytest.approx(
        columns["PF_pT"][charged].sum() / columns["PF_pT"][inside].sum(), rel=1e-5
    )


def test_a_scaled_calibration_fails_the_targets(jets):
    """Closure is measured with its sign, and a scale of 5 % is reported."""
    many = {name: np.tile(values, 20) for name, values in jets.items()}
    right = {
        (number.topic, number.where): number.value
        for number in targets.closure(many)
        if number.jets
    }
    for number in targets.closure(many | {"jetPt": many["jetPt"] * 1.05}):
        if number.jets:
            assert number.value == pytest.approx(
                1.05 * (1 + right[number.topic, number.where]) - 1, abs=1e-6
            )
    assert not all(
        number.within
        for number in targets.compare(many | {"jetPt": many["jetPt"] * 1.05})
        if number.topic.startswith("closure")
    )


def test_a_missing_tree_is_reported_with_those_in_the_file(tmp_path):
    import uproot

    with uproot.recreate(tmp_path / "other.root") as file:
        file["Events"] = {"x": np.arange(3)}
    with pytest.raises(
        InputError, match=r"from_nanoaod makes one of NanoAOD.*the file holds Events"
    ):
        validate.validate({"jets": [str(tmp_path / "other.root")]})


def test_the_name_of_a_set_stands_before_a_colon(generated):
    folder = generated.parent
    sets = validate.named_sets([f"train:{folder}/*.root", str(generated)])
    assert list(sets) == ["train", "jets"]


NUMBERS = {
    "nPF": [1, 2],
    "jetPt": [30.0, 40.0],
    "PF_pT": [[1.0], [2.0, 3.0]],
    "PF_dR": [[0.1], [0.2, 0.3]],
}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("jetPt", ["a", "b"], "no numbers"),
        ("jetPt", [[30.0], [40.0]], "a list for each jet"),
        ("PF_pT", [1.0, 2.0], "one number for each jet"),
        ("PF_pT", [["a"], ["b", "c"]], "no numbers"),
        ("PF_dR", [[0.1], [0.2]], "lengths"),
        ("nPF", [np.nan, np.nan], "lengths"),
        ("nPF", [[1], [2, 3]], "a list for each jet"),
    ],
)
def test_a_branch_of_another_form_is_an_error(name, values, words):
    import awkward as ak

    arrays = {branch: ak.Array(values) for branch, values in NUMBERS.items()}
    assert checks.forms("here", arrays) == []
    findings = checks.forms("here", arrays | {name: ak.Array(values)})
    assert {finding.level for finding in findings} == {checks.ERROR}
    assert words in findings[-1].problem


def test_a_histogram_in_place_of_the_tree_is_named(tmp_path):
    import uproot

    with uproot.recreate(tmp_path / "x.root") as file:
        file[jetntuple.TREE] = np.histogram([1, 2, 3])
    with pytest.raises(InputError, match=r"x\.root.*TH1"):
        validate.validate({"jets": [str(tmp_path / "x.root")]})


def test_a_file_without_its_end_is_damaged(generated, tmp_path):
    path = tmp_path / "x.root"
    path.write_bytes(generated.read_bytes()[: generated.stat().st_size // 2])
    with pytest.raises(InputError, match=r"x\.root"):
        validate.validate({"jets": [str(path)]})


def test_a_file_that_is_no_nanoaod_leaves_no_folder(generated, tmp_path):
    folder = tmp_path / "new"
    assert from_nanoaod.main([str(generated), "--output", str(folder)]) == 2
    assert not folder.exists()
