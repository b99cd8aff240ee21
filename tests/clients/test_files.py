"""The path of a ROOT or parquet file in place of columns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import awkward as ak
import numpy as np
import pandas as pd
import pytest
import uproot

from common.project import ROOT
from jec_client import Client, InputError
from tests.clients.model_server import NAME, ModelServer


@pytest.fixture(scope="module")
def server():
    running = ModelServer()
    yield running
    running.close()


@pytest.fixture
def client(server):
    return Client(server.url, NAME)


def jets(count: int) -> dict[str, ak.Array]:
    rng = np.random.default_rng(count)
    number = rng.integers(0, 5, count)
    return {
        "jetPt": ak.Array(rng.uniform(20, 200, count)),
        "PF_pT": ak.unflatten(rng.uniform(1, 9, number.sum()).astype("f4"), number),
        "rho": ak.Array(rng.uniform(0, 9, count)),
    }


def expected_pt(of: dict[str, ak.Array]) -> np.ndarray:
    return ak.to_numpy(2 * of["jetPt"] + ak.sum(of["PF_pT"], axis=-1))


def write(path: Path, trees: dict[str, dict[str, ak.Array]]) -> str:
    with uproot.recreate(path) as file:
        for name, columns in trees.items():
            lists = {"PF": ak.zip({"pT": columns["PF_pT"]})} if "PF_pT" in columns else {}
            single = {key: column for key, column in columns.items() if key != "PF_pT"}
            tree = file.mktree(
                name, {key: array.type.content for key, array in (single | lists).items()}
            )
            tree.extend(single | lists)
    return str(path)


FORMS = ["root", "rntuple", "parquet", "another name"]


def write_columns(tmp_path: Path, form: str, columns: dict[str, ak.Array]) -> Path:
    if form == "rntuple":
        path = tmp_path / "jets.root"
        with uproot.recreate(path) as file:
            file.mkrntuple("jets", columns)
    elif form == "root":
        path = Path(write(tmp_path / "jets.root", {"jets": columns}))
    else:
        path = tmp_path / ("jets.parquet" if form == "parquet" else "jets")
        ak.to_parquet(ak.zip(columns, depth_limit=1), path, row_group_size=700)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 2000])
def test_the_jets_of_a_file_in_their_order(client, tmp_path, form, count, monkeypatch):
    monkeypatch.setattr("jec_client.files.JETS", 600)
    columns = jets(count)
    answers = client.calibrate(write_columns(tmp_path, form, columns))
    assert len(answers) == count
    np.testing.assert_allclose(answers.calibrated_pt, expected_pt(columns), rtol=1e-6)


def test_the_tree_with_the_columns_is_read_unless_another_is_named(client, tmp_path):
    some, others = jets(5), jets(7)
    path = write(
        tmp_path / "jets.root",
        {"config": {"rho": others["rho"]}, "deep/in/jets": some, "other": {"jetPt": some["jetPt"]}},
    )
    np.testing.assert_allclose(client.calibrate(path).calibrated_pt, expected_pt(some), rtol=1e-6)
    answers_of_tree = client.calibrate(f"{path}:deep/in/jets")
    np.testing.assert_allclose(answers_of_tree.calibrated_pt, expected_pt(some), rtol=1e-6)
    with pytest.raises(InputError, match="'PF_pT'"):
        client.calibrate(f"{path}:other")
    with pytest.raises(InputError, match="cannot be read"):
        client.calibrate(f"{path}:missing")
    with pytest.raises(InputError, match="not a tree"):
        client.calibrate(f"{path}:deep")
    path = write(tmp_path / "two.root", {"first": some, "second": others})
    with pytest.raises(InputError, match=r"two\.root:first, .*two\.root:second"):
        client.calibrate(path)


def test_nothing_is_sent_where_columns_are_missing(server, client, tmp_path):
    before = list(server.batches)
    for form in FORMS:
        columns = {"rho": jets(3)["rho"], "jet_pt": jets(3)["jetPt"]}
        with pytest.raises(InputError, match=r"'jetPt' \(nearest: 'jet_pt'\)"):
            client.calibrate(write_columns(tmp_path, form, columns))
    assert server.batches == before


def test_unreadable_files_are_refused(client, tmp_path):
    (tmp_path / "text.root").write_text("no jets")
    (tmp_path / "empty.root").touch()
    whole = write_columns(tmp_path, "root", jets(500)).read_bytes()
    (tmp_path / "cut.root").write_bytes(whole[: len(whole) // 2])
    whole = write_columns(tmp_path, "parquet", jets(500)).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with uproot.recreate(tmp_path / "histogram.root") as file:
        file["h"] = np.histogram([1, 2])
    pd.DataFrame({"jetPt": ["a"], "PF_pT": [[1.0]]}).to_parquet(tmp_path / "words.parquet")
    for name in (
        "missing.root",
        "",
        "text.root",
        "empty.root",
        "cut.root",
        "cut.parquet",
        "histogram.root",
        "words.parquet",
        "a\nb",
    ):
        with pytest.raises(InputError) as error:
            client.calibrate(tmp_path / name if name else name)
        assert len(str(error.value).splitlines()) == 1


def test_a_missing_extra_is_named_in_the_error(tmp_path):
    path = write_columns(tmp_path, "root", jets(3))
    code = (
        "import sys; sys.modules['uproot'] = None\n"
        "from jec_client import InputError\n"
        "from jec_client.files import tables\n"
        f"try: list(tables({str(path)!r}, ['jetPt']))\n"
        "except InputError as error: print(error)"
    )
    place = ROOT / "clients" / "python"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=place, timeout=60, capture_output=True, text=True
    )
    assert "jec-client[files]" in process.stdout


@pytest.mark.parametrize("path", ["~no-such-user/jets.root", "a\0b.root", "x" * 5000, "", "/"])
def test_an_invalid_path_is_refused(client, path):
    with pytest.raises(InputError, match="cannot be read"):
        client.calibrate(path)
