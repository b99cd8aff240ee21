"""data.from_nanoaod: three events with known results, missing branches, and real CMS files where
they exist.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from common.errors import InputError
from data import checks, from_nanoaod, jetntuple
from tests.data.nanoaod import write

REAL = Path(__file__).parents[3] / "shared" / "data"


GENERATOR = {
    # The first event's first jet has two hard partons within reach, one of them an incoming gluon.
    "GenPart_eta": [[0.5, 0.6, -0.5], [1.0], [0.0]],
    "GenPart_phi": [[0.0, 0.1, 3.1], [1.0], [-3.1]],
    "GenPart_pdgId": [[21, 2, -3], [5], [22]],
    "GenPart_status": [[21, 23, 23], [22], [23]],
    # The particles of the generator jet at (0.51, 0.0): one above it in phi, one below.
    "GenCands_pt": [[20.0, 70.0, 5.0], [79.0], [88.0]],
    "GenCands_eta": [[0.61, 0.48, -0.5], [1.5], [0.0]],
    "GenCands_phi": [[0.2, -0.1, -3.1], [1.0], [-3.1]],
    "GenCands_mass": [[0.14, 0.0, 0.0], [0.0], [0.0]],
    "GenCands_pdgId": [[211, 22, 22], [22], [22]],
    "GenJetCands_jetIdx": [[0, 0, 1], [0], [0]],
    "GenJetCands_pFCandsIdx": [[0, 1, 2], [0], [0]],
}


def converted(path: Path, folder: Path, **options) -> jetntuple.Columns:
    (file,) = from_nanoaod.convert(str(path), folder, **options).files
    return jetntuple.read(file)


def test_only_events_whose_two_leading_jets_pass_are_converted(tmp_path):
    columns = converted(write(tmp_path / "nano.root"), tmp_path / "out")
    assert columns["jetPt"].tolist() == [100.0, 60.0]
    assert columns["jetPtOrder"].tolist() == [0, 1]
    assert columns["jetRawPt"] == pytest.approx([80.0, 54.0])
    assert columns["event"].tolist() == [11, 11]
    assert columns["rhoAll"].tolist() == [10.0, 10.0]


def test_generator_jets_are_matched_by_distance(tmp_path):
    columns = converted(write(tmp_path / "nano.root"), tmp_path / "out", all_events=True)
    assert columns["jetPt"].tolist() == [100.0, 60.0, 80.0, 90.0]
    # Across phi = pi for the second; the third's generator jet is half a unit of eta away.
    assert columns["genJetPt"].tolist() == [95.0, 55.0, 0.0, 88.0]
    assert columns["jetGenMatch"].tolist() == [1, 1, 0, 1]


def test_the_physics_flavour_comes_from_an_outgoing_parton(tmp_path):
    """Status 23 alone: the incoming gluon (21) is nearer, and the b quark of status 22 is no match.

    The photon of status 23 is no parton.
    """
    path = write(tmp_path / "nano.root", more=GENERATOR)
    columns = converted(path, tmp_path / "out", all_events=True)
    assert columns["physFlav"].tolist() == [2, -3, 0, 0]


def test_angles_of_generator_particles_have_the_right_sign(tmp_path):
    columns = converted(write(tmp_path / "nano.root", more=GENERATOR), tmp_path / "out")
    assert columns["nGenJetPF"].tolist() == [2, 1]
    assert columns["genJetPF_pT"].tolist() == [70.0, 20.0, 5.0]
    assert columns["genJetPF_id"].tolist() == [22, 211, 22]
    # As seen from the axis (0.51, 0.0): (-0.03, -0.1) and (0.1, 0.2).
    assert columns["genJetPF_dR"][:2] == pytest.approx([np.hypot(0.03, 0.1), np.hypot(0.1, 0.2)])
    expected = [np.arctan2(-0.1, -0.03), np.arctan2(0.2, 0.1)]
    assert columns["genJetPF_dTheta"][:2] == pytest.approx(expected, abs=1e-5)


def test_candidates_in_the_box_are_assigned_to_their_jet(tmp_path):
    columns = converted(write(tmp_path / "nano.root"), tmp_path / "out")
    assert columns["nPF"].tolist() == [2, 1]
    assert columns["PF_pT"].tolist() == [50.0, 30.0, 20.0]
    assert columns["PF_fromAK4Jet"].tolist() == [1, 1, 1]
    assert columns["PF_dPhi"][2] == pytest.approx(2 * np.pi - 6.22, abs=1e-5)
    assert columns["PF_fromPV"].tolist() == [3, 2, 2]
    assert columns["jetMult"].tolist() == [2, 1]
    assert columns["QG_ptD"][0] == pytest.approx(np.hypot(50, 30) / 80)


def test_missing_branches_are_reported_with_their_defaults(tmp_path):
    result = from_nanoaod.convert(
        str(write(tmp_path / "nano.root", ("PFCands", "JetPFCands"))), tmp_path / "out"
    )
    assert any(line.startswith("PFCands_pt") and "PF_*" in line for line in result.lacking)
    assert any("genWeight (eventWeight: 1)" in line for line in result.lacking)
    (file,) = result.files
    assert jetntuple.read(file)["nPF"].tolist() == [0, 0]


def test_collision_data_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"lacks GenJet_pt.*no generator jets"):
        from_nanoaod.convert(str(write(tmp_path / "data.root", ("GenJet",))), tmp_path / "out")


@pytest.mark.parametrize("content", [b"no ROOT file at all", b""])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.root").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.root cannot be read"):
        from_nanoaod.convert(str(tmp_path / "bad.root"), tmp_path / "out")


def test_the_candidates_of_a_real_jet_add_up_to_its_momentum(tmp_path):
    """No value is out of its range either."""
    path = REAL / "cms_pfnano_10ev.root"
    if not path.exists():
        pytest.skip("no CMS file at hand")
    columns = converted(path, tmp_path, all_events=True)
    jet = np.repeat(np.arange(len(columns["nPF"])), columns["nPF"])
    inside = columns["PF_fromAK4Jet"] == 1
    whole = np.bincount(jet[inside], columns["PF_pT"][inside], len(columns["nPF"]))
    assert len(whole) == 36
    assert whole / columns["jetRawPt"] == pytest.approx(1, abs=0.03)
    assert not [
        finding for finding in checks.values("real", columns) if finding.level == checks.ERROR
    ]


def test_the_command_prints_the_number_of_jets(tmp_path, capsys):
    code = from_nanoaod.main(
        [
            str(write(tmp_path / "nano.root")),
            "--output",
            str(tmp_path / "out"),
            "--events-per-file",
            "1",
        ]
    )
    assert code == 0
    assert "2 jets of 3 events in 1 files" in capsys.readouterr().out


# ------------------------------------------------------------------------- files of equal names


def convert_all(*words: str | Path) -> int:
    return from_nanoaod.main([*map(str, words), "--all-events"])


def events_in(folder: Path) -> list[int]:
    """The events of all jets in a folder of outputs."""
    events: list[int] = []
    for path in folder.glob("*.root"):
        events += jetntuple.read(path)["event"].tolist()
    return sorted(set(events))


def write_event(path: Path, number: int) -> Path:
    """A NanoAOD file whose events have the numbers number, number + 1, number + 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    with uproot.open(path) as file:
        data = file["Events"].arrays(library="ak", how=dict)
    columns = {name: values for name, values in data.items() if not name.startswith("n")}
    columns["event"] = np.arange(number, number + 3)
    with uproot.recreate(path) as file:
        file["Events"] = columns
    return path


def test_files_of_equal_names_keep_all_their_jets(tmp_path):
    for number, place in enumerate(("A/0000", "A/0001", "B/0000")):
        write_event(tmp_path / place / "nano_1.root", 10 * number)
    out = tmp_path / "out"
    assert convert_all(f"{tmp_path}/A/*/*.root", f"{tmp_path}/B/*/*.root", "--output", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "0001_nano_1_000.root",
        "A_0000_nano_1_000.root",
        "B_0000_nano_1_000.root",
    ]
    assert events_in(out) == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def test_output_names_are_unique_for_any_inputs():
    uris = ["/a_b/nano.root", "/a/b_nano.root", "/c/nano.root", "/c/d.root", "s3://x/d.root"]
    names = from_nanoaod.output_names(uris)
    assert len(set(names.values())) == len(uris)
    assert from_nanoaod.output_names(["/a/x.root", "/b/y.root"]) == {
        "/a/x.root": "x",
        "/b/y.root": "y",
    }


def test_an_earlier_output_of_another_file_is_not_overwritten(tmp_path, capsys):
    first = write_event(tmp_path / "A" / "nano_1.root", 0)
    second = write_event(tmp_path / "B" / "nano_1.root", 10)
    out = tmp_path / "out"
    assert convert_all(first, "--output", out) == 0
    assert convert_all(second, "--output", out) == 2
    error = capsys.readouterr().err
    assert all(str(path) in error for path in (first, second, out / "nano_1_000.root"))
    assert events_in(out) == [0, 1, 2]


def test_a_second_conversion_replaces_the_first_and_duplicates_no_jet(tmp_path, capsys):
    first = write_event(tmp_path / "A" / "nano.root", 0)
    out = tmp_path / "out"
    assert convert_all(first, "--output", out, "--events-per-file", 1) == 0
    parts = len(list(out.iterdir()))
    assert parts > 1
    assert convert_all(first, "--output", out) == 0
    assert [path.name for path in out.iterdir()] == ["nano_000.root"]

    second = write_event(tmp_path / "B" / "nano.root", 10)
    assert convert_all(first, second, "--output", out) == 2
    assert f"the jets of {first} are already in {out}/nano_000.root" in capsys.readouterr().err


def test_an_input_file_is_not_overwritten(tmp_path, capsys):
    write_event(tmp_path / "nano.root", 0)
    second_input = write_event(tmp_path / "nano_000.root", 10)
    before = second_input.read_bytes()
    assert convert_all(f"{tmp_path}/*.root", "--output", tmp_path) == 2
    assert f"would overwrite the input file {second_input}" in capsys.readouterr().err
    assert second_input.read_bytes() == before
