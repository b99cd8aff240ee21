"""serving.calibrate: files in, friend trees out, each entry beside its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from common import storage
from common.errors import AccessError, InputError, StorageError
from serving import calibrate
from serving.calibrate import FORMATS
from serving.calibration import batches, model, outputs, work
from tests.disks import fill, small_disk
from tests.serving.calibration_files import TREE, expected, jets, write_jets, write_model


@pytest.fixture(scope="session")
def onnx(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def run(tmp_path, onnx, capsys):
    """Run the command; returns (exit code, stdout, stderr)."""

    def command(*arguments: object, model: Path = onnx, output: object = None):
        place = output or tmp_path / "out"
        code = calibrate.main([*map(str, arguments), "--model", str(model), "--output", str(place)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def friend(path: Path) -> dict[str, np.ndarray]:
    with uproot.open(path) as file:
        return file["calibration"].arrays(library="np")


def columns_of(path: Path) -> dict | list:
    """All columns of an output of either format."""
    if path.suffix == ".parquet":
        return ak.to_list(ak.from_parquet(path))
    return {name: values.tolist() for name, values in friend(path).items()}


def info(path: Path) -> dict:
    with uproot.open(path) as file:
        return json.loads(str(file["calibration_info"]))


def assert_answers(columns: dict, path: Path, **options) -> None:
    """The friend has the answers to these jets, each beside its own."""
    output = friend(path)
    assert output["event"].tolist() == columns["event"].tolist()
    for name, values in expected(columns, **options).items():
        np.testing.assert_allclose(output[name], values, rtol=1e-5, err_msg=name)


# ----------------------------------------------------------------------------------------- answers


def test_each_entry_has_its_answer_in_the_order_of_the_file(tmp_path, run):
    """Jets that the model was not trained for stay, with the standard correction."""
    columns = jets(2500)
    path = write_jets(tmp_path / "in" / "x.root", columns)
    code, out, err = run(path)
    assert code == 0
    assert "2,500/2,500 jets" in err
    assert_answers(columns, tmp_path / "out" / "x.root")
    output = friend(tmp_path / "out" / "x.root")
    with uproot.open(path) as file, uproot.open(tmp_path / "out" / "x.root") as other:
        assert other["calibration"].num_entries == file[TREE].num_entries
    invalid = ~output["jet_valid"]
    assert 0 < invalid.sum() < 500
    np.testing.assert_array_equal(output["jetPt_calibrated"][invalid], columns["jetPt"][invalid])
    assert 'AddFriend("calibration"' in out.splitlines()[-1]


def test_the_output_records_its_source_and_its_model(tmp_path, run, onnx):
    columns = jets(300)
    path = write_jets(tmp_path / "x.root", columns)
    run(path)
    facts = info(tmp_path / "out" / "x.root")
    valid = expected(columns)["jet_valid"]
    assert facts["source"] == str(path)
    assert facts["sha256"] == model.local_model(str(onnx)).description.digest
    assert (facts["jets"], facts["valid"]) == (300, int(valid.sum()))
    assert sum(facts["invalid"].values()) == int((~valid).sum())
    assert set(facts["invalid"]) == {"no particles", "pT outside the range"}
    assert facts["formula"] == "jetPt_calibrated = jetPt * jetPt_correction (GeV)"
    assert "simulation" in facts["note"]
    assert "L2L3Residual" in facts["note"]
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert record["sha256"] == facts["sha256"]


def test_answers_of_several_threads_reach_their_own_files(tmp_path, run):
    """Results of threads come back to their own file and entry."""
    samples = {f"f{n}": jets(700, seed=n) for n in range(1, 6)}
    for name, columns in samples.items():
        write_jets(tmp_path / "in" / f"{name}.root", columns, basket=150)
    code, _, _ = run(tmp_path / "in" / "*.root", "--threads", "3")
    assert code == 0
    for name, columns in samples.items():
        assert_answers(columns, tmp_path / "out" / f"{name}.root")


def test_equal_names_in_two_folders_give_two_outputs(tmp_path, run):
    for folder, seed in (("A", 1), ("B", 2)):
        write_jets(tmp_path / folder / "x.root", jets(50, seed))
    code, _, _ = run(tmp_path / "A" / "x.root", tmp_path / "B" / "x.root")
    assert code == 0
    assert_answers(jets(50, 1), tmp_path / "out" / "A_x.root")
    assert_answers(jets(50, 2), tmp_path / "out" / "B_x.root")


@pytest.mark.parametrize("suffix", ["root", "parquet"])
def test_a_file_without_entries_gives_a_tree_without_entries(tmp_path, run, suffix):
    path = write_jets(tmp_path / "x.root", jets(0))
    code, out, _ = run(path, "--format", suffix)
    assert code == 0
    assert out.startswith("0 jets of 1 files")
    place = tmp_path / "out" / f"x.{suffix}"
    if suffix == "root":
        assert len(friend(place)["jetPt_calibrated"]) == 0
    else:
        assert len(ak.from_parquet(place)) == 0


def test_other_types_of_numbers_give_the_same(tmp_path, run):
    """Double precision, 64-bit and unsigned numbers, and a whole number held as float."""
    columns = jets(400)
    other = columns | {
        "jetPt": columns["jetPt"].astype(np.float64),
        "PF_pT": ak.values_astype(columns["PF_pT"], np.float64),
        "QG_mult": columns["QG_mult"].astype(np.float32),
    }
    code, _, _ = run(write_jets(tmp_path / "x.root", other))
    assert code == 0
    assert_answers(columns, tmp_path / "out" / "x.root")


@pytest.mark.parametrize("form", ["root", "parquet"])
@pytest.mark.parametrize("values", ["missing", "lists", "half"])
def test_copies_that_cannot_be_written_are_left_out(tmp_path, run, values, form):
    """Nothing is calibrated by them."""
    columns = jets(10)
    odd = {
        "missing": [None, *range(9)],
        "lists": [[1, 2]] * 5 + [[3]] * 5,
        "half": np.ones(10, np.float16),
    }[values]
    for name in ("run", "event"):
        columns[name] = ak.Array(odd)
    path = tmp_path / "x.parquet"
    ak.to_parquet(ak.zip(columns, depth_limit=1), str(path))
    code, _, err = run(path, "--format", form)
    assert code == 0, err
    output = tmp_path / "out" / f"x.{form}"
    columns_of_output = friend(output) if form == "root" else ak.from_parquet(output)
    names = set(columns_of_output) if form == "root" else set(ak.fields(columns_of_output))
    assert {"lumi", "jetPt_calibrated"} <= names
    assert not names & {"run", "event"}


def test_a_number_that_the_type_cannot_hold_is_refused(tmp_path, run):
    columns = jets(30)
    columns["QG_mult"] = columns["QG_mult"].astype(np.float32) + 0.5
    code, _, err = run(write_jets(tmp_path / "x.root", columns))
    assert code == 2
    assert "'QG_mult'" in err
    assert "int32" in err
    assert not (tmp_path / "out" / "x.root").exists()


def test_numbers_that_are_not_finite_are_counted_and_do_not_spread(tmp_path, run):
    columns = jets(200)
    columns["jetPt"][7] = np.nan
    code, _, _ = run(write_jets(tmp_path / "x.root", columns))
    assert code == 0
    output = friend(tmp_path / "out" / "x.root")
    assert np.isnan(output["jetPt_calibrated"]).tolist() == [n == 7 for n in range(200)]
    assert info(tmp_path / "out" / "x.root")["invalid"]["input not finite"] == 1


def test_jets_with_no_and_with_many_particles(tmp_path, run):
    columns = jets(50)
    number = np.array([0] * 25 + [500] * 25)
    columns["PF_pT"] = ak.unflatten(np.full(number.sum(), 0.5, np.float32), number)
    code, _, _ = run(write_jets(tmp_path / "x.root", columns))
    assert code == 0
    assert_answers(columns, tmp_path / "out" / "x.root")


def test_no_jet_at_all_has_particles(tmp_path, run):
    columns = jets(20)
    columns["PF_pT"] = ak.unflatten(np.zeros(0, np.float32), np.zeros(20, np.int64))
    code, _, _ = run(write_jets(tmp_path / "x.root", columns))
    assert code == 0
    assert not friend(tmp_path / "out" / "x.root")["jet_valid"].any()


def test_the_newest_cycle_of_a_tree_is_read(tmp_path, run):
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        for seed in (1, 2):
            columns = jets(40, seed)
            types = {n: getattr(v, "dtype", None) or v.type.content for n, v in columns.items()}
            tree = file.mktree(TREE, types, counter_name=lambda name: "nPF")
            tree.extend(columns)
    code, _, _ = run(path)
    assert code == 0
    assert_answers(jets(40, 2), tmp_path / "out" / "x.root")


def test_names_beyond_ascii_are_kept(tmp_path, run):
    columns = jets(30)
    code, _, _ = run(
        write_jets(tmp_path / "Zürich µ" / "jets é.root", columns), output=tmp_path / "ergebnisß"
    )
    assert code == 0
    assert_answers(columns, tmp_path / "ergebnisß" / "jets é.root")


def test_parquet_goes_in_and_out(tmp_path, run):
    columns = jets(300)
    ak.to_parquet(ak.Array(columns), tmp_path / "x.parquet")
    code, _, _ = run(tmp_path / "x.parquet", "--format", "parquet")
    assert code == 0
    output = ak.from_parquet(tmp_path / "out" / "x.parquet")
    assert output["event"].tolist() == columns["event"].tolist()
    for name, values in expected(columns).items():
        np.testing.assert_allclose(ak.to_numpy(output[name]), values, rtol=1e-5)


# ------------------------------------------------------------------------------------------ resume


def test_finished_outputs_are_kept(tmp_path, run):
    for name in ("a", "b"):
        write_jets(tmp_path / f"{name}.root", jets(60))
    run(tmp_path / "a.root")
    before = (tmp_path / "out" / "a.root").stat().st_mtime_ns
    code, out, _ = run(tmp_path / "?.root")
    assert code == 0
    assert (tmp_path / "out" / "a.root").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "b.root").exists()
    assert out.startswith("60 jets of 1 files")


def test_a_file_that_has_changed_is_calibrated_again(tmp_path, run):
    path = write_jets(tmp_path / "x.root", jets(60))
    run(path)
    write_jets(path, jets(80, seed=5))
    code, _, _ = run(path)
    assert code == 0
    assert_answers(jets(80, seed=5), tmp_path / "out" / "x.root")


@pytest.mark.parametrize("is_there", ["the record", "an output"])
def test_a_folder_with_results_of_another_model_is_refused(tmp_path, run, is_there):
    path = write_jets(tmp_path / "x.root", jets(60))
    run(path)
    before = (tmp_path / "out" / "x.root").read_bytes()
    other = write_model(tmp_path / "other.onnx", factor=0.002)
    if is_there == "an output":
        (tmp_path / "out" / "calibration.json").unlink()
    code, _, err = run(path, model=other)
    assert code == 2
    assert "another model" in err
    assert (tmp_path / "out" / "x.root").read_bytes() == before


def test_an_interrupted_command_continues_when_repeated(tmp_path, run, onnx):
    for number in range(30):
        write_jets(tmp_path / "in" / f"{number:02d}.root", jets(400, number), basket=50)
    command = [sys.executable, "-m", "serving.calibrate", f"{tmp_path}/in/*.root"]
    command += ["--model", str(onnx), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        while not list((tmp_path / "out").glob("*.root")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0 where it had finished by then
    assert "Traceback" not in err
    assert not list(tmp_path.glob("jec-calibrate-*"))
    code, _, _ = run(tmp_path / "in" / "*.root")
    assert code == 0


def test_a_killed_command_leaves_whole_files_and_continues_when_repeated(tmp_path, run, onnx):
    for number in range(30):
        write_jets(tmp_path / "in" / f"{number:02d}.root", jets(400, number), basket=50)
    command = [sys.executable, "-m", "serving.calibrate", f"{tmp_path}/in/*.root"]
    command += ["--model", str(onnx), "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / "out").glob("*.root")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    outputs = list((tmp_path / "out").glob("*.root"))
    code, _, _ = run(tmp_path / "in" / "*.root")
    assert code == 0
    assert outputs
    for number in range(30):
        assert_answers(jets(400, number), tmp_path / "out" / f"{number:02d}.root")


# --------------------------------------------------------------------------------------- bad input


def _damage(path: Path) -> Path:
    """Overwrite the baskets in the middle of a file, whose header and tree stay."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 2000 : middle + 2000] = bytes(4000)
    path.write_bytes(content)
    return path


def test_a_damaged_file_among_many(tmp_path, run):
    """It has no output and is named; the others have theirs."""
    for name in "abc":
        write_jets(tmp_path / "in" / f"{name}.root", jets(1000), basket=100)
    _damage(tmp_path / "in" / "b.root")
    code, out, err = run(tmp_path / "in" / "*.root")
    assert code == 2
    assert "1 of 3 files" in err
    assert f"{tmp_path}/in/b.root" in err
    assert "Traceback" not in err
    assert out.startswith("2,000 jets of 2 files")
    names = sorted(path.name for path in (tmp_path / "out").glob("*"))
    assert names == ["a.root", "c.root", "calibration.json"]
    assert_answers(jets(1000), tmp_path / "out" / "c.root")


def _no_tree(folder: Path) -> Path:
    with uproot.recreate(folder / "x.root") as file:
        file["other"] = {"x": np.arange(3)}
    return folder / "x.root"


def _no_branch(folder: Path) -> Path:
    columns = jets(10)
    del columns["QG_mult"]
    return write_jets(folder / "x.root", columns | {"QG_mul": columns["run"]})


def _text(folder: Path) -> Path:
    (folder / "x.root").write_text("no ROOT file")
    return folder / "x.root"


def _lists_differ(folder: Path) -> Path:
    ak.to_parquet(ak.Array({**jets(10), "jetPt": [[1.0, 2.0]] * 10}), folder / "x.parquet")
    return folder / "x.parquet"


def _missing_value(folder: Path) -> Path:
    records = ak.to_list(ak.Array(jets(10)))
    records[3]["jetPt"] = None
    ak.to_parquet(ak.from_iter(records), folder / "x.parquet")
    return folder / "x.parquet"


def _plain_nanoaod(folder: Path) -> Path:
    events = {"run": np.ones(2, np.int32), "event": np.arange(2, dtype=np.uint64)}
    events["Jet_pt"] = ak.Array([[50.0, 40.0], [30.0]])
    with uproot.recreate(folder / "x.root") as file:
        file["Events"] = events
    return folder / "x.root"


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (_no_tree, ["x.root", "unknown tree 'AK4jets/jetTree'"]),
        (_no_branch, ["x.root", "unknown branch 'QG_mult'; did you mean 'QG_mul'"]),
        (_text, ["x.root is not a ROOT file"]),
        (_lists_differ, ["x.parquet: 'jetPt' is a list", "one number a jet"]),
        (_missing_value, ["x.parquet: 'jetPt'", "missing values"]),
        (_plain_nanoaod, ["without particle-flow candidates", "PFCands_pt", "give PFNano"]),
        (lambda folder: folder / "nothing.root", ["no ROOT file matches"]),
    ],
)
def test_files_that_cannot_be_calibrated_are_refused(tmp_path, run, make, facts):
    """One sentence with the file, exit code 2, nothing written."""
    code, out, err = run(make(tmp_path))
    assert code == 2
    for fact in facts:
        assert fact in err
    assert "Traceback" not in err
    assert not out
    assert not list((tmp_path / "out").glob("*"))


def test_the_input_is_not_replaced(tmp_path, run):
    path = write_jets(tmp_path / "x.root", jets(10))
    before = path.read_bytes()
    code, _, err = run(path, output=tmp_path)
    assert code == 2
    assert f"would replace the input file {path}" in err
    assert path.read_bytes() == before


def test_an_invalid_record_is_refused(tmp_path, run):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "calibration.json").write_text("[1]")
    code, _, err = run(write_jets(tmp_path / "x.root", jets(10)))
    assert code == 2
    assert f"{tmp_path}/out/calibration.json holds a list" in err


def test_a_file_that_the_command_did_not_write_is_not_replaced(tmp_path, run):
    path = write_jets(tmp_path / "x.root", jets(10))
    (tmp_path / "out").mkdir()
    write_jets(tmp_path / "out" / "x.root", jets(20))
    before = (tmp_path / "out" / "x.root").read_bytes()
    code, _, err = run(path)
    assert code == 2
    assert "this command did not write it" in err
    assert (tmp_path / "out" / "x.root").read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused(tmp_path, run):
    (tmp_path / "out").write_text("a file where a folder should be")
    code, _, err = run(write_jets(tmp_path / "x.root", jets(10)))
    assert code == 2
    assert f"cannot write {tmp_path}/out" in err


def test_an_empty_output_is_refused(tmp_path, onnx, capsys, monkeypatch):
    """An empty variable of a shell does not fill the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    path = write_jets(tmp_path / "in" / "x.root", jets(10))
    with pytest.raises(SystemExit) as ended:
        calibrate.main([str(path), "--model", str(onnx), "--output", ""])
    assert ended.value.code == 2
    assert "--output: it is empty" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_of_two_commands_with_two_models_one_is_refused(tmp_path, run, monkeypatch):
    """One of them has the folder, and the other one says that it does not."""
    path = write_jets(tmp_path / "x.root", jets(10))
    other = write_model(tmp_path / "other.onnx", factor=0.002)
    write = work._write
    inner = []

    def write_beside(*arguments):
        if not inner:  # a second command, that saw the folder before the first one began
            inner.append(0)
            with monkeypatch.context() as patch:
                patch.setattr(calibrate, "check_folder", lambda *a: None)
                inner[0] = run(path, model=other)[0]
        return write(*arguments)

    monkeypatch.setattr(work, "_write", write_beside)
    code, _, err = run(path)
    assert (inner, code) == ([0], 2)
    assert "another model" in err
    digest = model.local_model(str(other)).description.digest
    assert info(tmp_path / "out" / "x.root")["sha256"] == digest
    assert json.loads((tmp_path / "out" / "calibration.json").read_text())["sha256"] == digest


@pytest.mark.faults
def test_the_error_names_a_killed_commands_record_to_delete(tmp_path, run):
    """A command that was killed before its first output leaves its record alone."""
    path = write_jets(tmp_path / "x.root", jets(10))
    run(path)
    (tmp_path / "out" / "x.root").unlink()  # as if it had been killed before
    other = write_model(tmp_path / "other.onnx", factor=0.002)
    code, _, err = run(path, model=other)
    assert code == 2
    record = tmp_path / "out" / "calibration.json"
    assert f"delete {record}" in err
    record.unlink()
    assert run(path, model=other)[0] == 0


def test_a_command_that_failed_on_a_full_disk_leaves_no_record(tmp_path, run, monkeypatch):
    path = write_jets(tmp_path / "x.root", jets(10))

    def full(source, target):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload", full)
        assert run(path)[0] == 1
    assert not list((tmp_path / "out").iterdir())
    assert run(path, model=write_model(tmp_path / "other.onnx", factor=0.002))[0] == 0


def full_disk_error(err: str) -> str:
    """The one line of an error about a full disk."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert "disk is full" in lines[0]
    assert err.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("free_bytes", "kept_count"), [(0, 0), (8192, 0), (110_000, 1)])
def test_a_full_disk_of_the_outputs(tmp_path, run, form, free_bytes, kept_count):
    """Finished outputs stay, and the same command continues once there is room."""
    for number in (1, 2):
        write_jets(tmp_path / "in" / f"{number}.root", jets(2500, seed=number))
    words = [tmp_path / "in" / "*.root", "--format", form]
    assert run(*words, output=tmp_path / "undisturbed")[0] == 0
    with small_disk(tmp_path / "disk", "size=1m") as disk:
        other = fill(disk, free_bytes)
        code, _, err = run(*words, output=disk / "out")
        assert code == 1
        assert f" in {disk}" in full_disk_error(err)
        files = [f"1.{form}", "calibration.json"][: 2 * kept_count]
        assert sorted(path.name for path in (disk / "out").glob("*")) == files
        other.unlink()
        code, out, _ = run(*words, output=disk / "out")
        assert code == 0
        assert ("1 files were calibrated before" in out) == bool(kept_count)
        for number in (1, 2):
            path = Path(f"{number}.{form}")
            assert columns_of(disk / "out" / path) == columns_of(tmp_path / "undisturbed" / path)


@pytest.mark.faults
@pytest.mark.parametrize("free_bytes", [0, 8192])
@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_of_temporary_files(tmp_path, run, monkeypatch, form, free_bytes):
    """The outputs are written there first; no part of them stays."""
    path = write_jets(tmp_path / "x.root", jets(2500))
    words = [path, "--format", form]
    assert run(*words, output=tmp_path / "undisturbed")[0] == 0
    with small_disk(tmp_path / "disk", "size=1m") as disk, monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(disk))
        patch.setenv("TMPDIR", str(disk))
        other = fill(disk, free_bytes)
        code, _, err = run(*words)
        assert code == 1
        error = full_disk_error(err)
        assert f" in {disk}" in error
        assert "TMPDIR" in error
        assert [entry.name for entry in disk.iterdir()] == ["other"]
        assert list((tmp_path / "out").iterdir()) == []
        other.unlink()
        assert run(*words)[0] == 0
        assert list(disk.iterdir()) == []
    name = f"x.{form}"
    assert columns_of(tmp_path / "out" / name) == columns_of(tmp_path / "undisturbed" / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_write_permission_is_refused(tmp_path, run):
    (tmp_path / "out").mkdir(mode=0o500)
    code, _, err = run(write_jets(tmp_path / "x.root", jets(10)))
    assert code == 2
    assert "Permission denied" in err


def test_unusable_models_are_refused(tmp_path, run, onnx):
    path = write_jets(tmp_path / "x.root", jets(10))
    old = write_model(tmp_path / "old.onnx", valid=False)
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for place, fact in {
        old: "earlier version",
        tmp_path / "text.onnx": "not an ONNX model",
        tmp_path / "nothing.onnx": "there is no file",
        tmp_path / "run": "no exported model yet",
        tmp_path / "empty": "there is no model at",
        "http://127.0.0.1:9/v2/models/pfn-raw": "give --url",
        "https://127.0.0.1:9": "give --url",
        "grpc://127.0.0.1:9": "give --url",
    }.items():
        code, _, err = run(path, model=place)
        assert code == 2, place
        assert fact in err
    assert not (tmp_path / "out").exists()


def test_a_run_on_a_web_server_is_not_taken_for_a_model_server(run, tmp_path):
    path = write_jets(tmp_path / "x.root", jets(10))
    code, _, err = run(path, model="http://127.0.0.1:9/runs/pfn-1")
    assert code == 1  # nobody answers at this port
    assert "give --url" not in err


@pytest.mark.parametrize("flag", ["--token", "--cookies"])
def test_a_secret_in_place_of_its_file_is_not_shown(run, tmp_path, flag):
    path = write_jets(tmp_path / "x.root", jets(10))
    code, out, err = run(path, "--url", "http://127.0.0.1:9", flag, "name\tsecret-9a1\n", model="m")
    assert code == 2
    assert "secret-9a1" not in out + err


def test_an_output_below_which_others_have_folders_is_used(monkeypatch, tmp_path):
    def refuse(folder):
        raise AccessError(f"cannot read {folder}/theirs: Permission denied")

    monkeypatch.setattr(storage, "entries", refuse)
    calibrate.check_duplicates(str(tmp_path), {"x.root": str(tmp_path / "x.root")})
    assert not calibrate._is_alone(str(tmp_path / "calibration.json"), str(tmp_path))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("label", "no JSON"),
        ("label", '["np.log(a / b)"]'),
        ("label", '{"target": 5 }'),
        ("label", '{"target": "np.log("}'),
        ("trained_on", "[1]"),
        ("trained_on", "[" * 100_000),
        ("valid_range", "no JSON"),
        ("valid_range", '{"min_pt": "low", "max_pt": null}'),
        ("valid_range", '{"min_pt": 1, "max_pt": 2, "pt": "elsewhere"}'),
        ("valid_range", '{"min_pt": 1, "max_pt": 2, "counters": {"nPF": ["elsewhere"]}}'),
    ],
)
def test_metadata_of_another_form_are_read_or_refused(tmp_path, run, onnx, key, text):
    """It is refused or understood, and in no case the program's own fault."""
    model = _with_fact(onnx, key, text, tmp_path / "odd.onnx")
    code, _, err = run(write_jets(tmp_path / "x.root", jets(10)), model=model)
    if text == '{"target": 5 }':
        assert code == 0
        return
    assert code == 2
    assert str(model) in err
    assert not (tmp_path / "out").exists()


def test_a_year_that_is_a_number(tmp_path, run, onnx):
    model = _with_fact(onnx, "trained_on", '{"era": 2018}', tmp_path / "year.onnx")
    path = write_jets(tmp_path / "Run2016B" / "x.root", jets(10))
    code, _, err = run(path, model=model)
    assert code == 2
    assert "2016" in err
    assert run(path, "--force", model=model)[0] == 0


def _with_fact(onnx: Path, key: str, text: str, path: Path) -> Path:
    """A copy of a model that says something else of itself."""
    import onnx as onnx_package

    model = onnx_package.load(str(onnx))
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = text
    onnx_package.save(model, str(path))
    return path


@pytest.mark.parametrize("shape", [[], ["batch"], [1, 1], ["batch", 1, 1], ["batch", 3]])
def test_a_model_of_another_project_with_the_same_names(tmp_path, run, shape):
    from onnx import TensorProto, helper, save_model

    names = ("calibrated_pt", "correction", "valid")
    types = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.BOOL)
    nodes = [
        helper.make_node("Cast", ["jetPt"], [name], to=kind)
        for name, kind in zip(names, types, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind in zip(names, types, strict=True)
    ]
    info_of_input = helper.make_tensor_value_info("jetPt", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "other", [info_of_input], outputs)
    path = tmp_path / "other.onnx"
    opset = [helper.make_opsetid("", 17)]
    save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    code, _, err = run(write_jets(tmp_path / "x.root", jets(10)), model=path)
    assert code == 2
    assert str(path) in err
    assert not (tmp_path / "out").exists()


def test_the_columns_are_padded_to_the_fullest_jet_of_a_batch(onnx):
    """Sorted by their number of particles, so that few places are empty."""
    columns = jets(100)
    from weaver.read.jagged import plain

    own = {name: plain(columns[name]) for name in ("jetPt", "QG_mult", "PF_pT")}
    description = model.local_model(str(onnx)).description
    places_so_far = []
    for places, inputs in batches.batches(description, own, 100, 30, "x"):
        counts = ak.to_numpy(ak.num(columns["PF_pT"][places]))
        assert inputs["nPF"][:, 0].tolist() == counts.tolist()
        assert inputs["PF_pT"].shape == (len(places), max(counts.max(), 1))
        places_so_far += places.tolist()
    assert sorted(places_so_far) == list(range(100))


def test_help_is_quick():
    """It imports neither numpy nor onnxruntime."""
    code = "import sys; from serving import calibrate; print('numpy' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_the_output_columns_are_named_after_the_jets(onnx):
    description = model.local_model(str(onnx)).description
    assert outputs.column_names(description, "PFNano") == {
        "calibrated_pt": "Jet_pt_calibrated",
        "correction": "Jet_pt_correction",
        "calibrated_pt_q16": "Jet_pt_calibrated_q16",
        "calibrated_pt_q84": "Jet_pt_calibrated_q84",
        "valid": "Jet_valid",
    }
    with pytest.raises(InputError):
        model.local_model(str(onnx.parent / "other.onnx"))


def test_jets_that_have_an_output_in_the_folder_are_refused(tmp_path, run):
    """With B/x.root beside it, the output of A/x.root would have another name than before."""
    for folder, seed in (("A", 1), ("B", 2)):
        write_jets(tmp_path / folder / "x.root", jets(50, seed))
    run(tmp_path / "A" / "x.root")
    code, _, err = run(tmp_path / "A" / "x.root", tmp_path / "B" / "x.root")
    assert code == 2
    assert f"the jets of {tmp_path}/A/x.root are already in {tmp_path}/out/x.root" in err
    assert [path.name for path in (tmp_path / "out").glob("*.root")] == ["x.root"]


def test_two_trees_of_a_file(tmp_path, run):
    """A tree may be named; the output is that of the file, so only one of them."""
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        for seed, name in ((1, "first"), (2, "second")):
            columns = jets(40, seed)
            types = {n: getattr(v, "dtype", None) or v.type.content for n, v in columns.items()}
            file.mktree(name, types, counter_name=lambda name: "nPF").extend(columns)
    code, _, err = run(path)
    assert code == 2
    assert "unknown tree" in err
    assert "FILE.root:TREE" in err
    code, _, err = run(f"{path}:first", f"{path}:second")
    assert code == 2
    assert "give one tree of a file" in err
    code, _, _ = run(f"{path}:second")
    assert code == 0
    assert_answers(jets(40, 2), tmp_path / "out" / "x.root")


def test_from_and_to_s3(s3_bucket, tmp_path, run):
    """The same command: addresses in, addresses out, and what is there is kept."""
    from common import storage

    columns = jets(300)
    storage.upload(write_jets(tmp_path / "x.root", columns), f"{s3_bucket}/in/x.root")
    for before in ("300 jets of 1 files", "0 jets of 0 files"):
        code, out, _ = run(f"{s3_bucket}/in/*.root", output=f"{s3_bucket}/out")
        assert code == 0
        assert out.startswith(before)
    storage.download(f"{s3_bucket}/out/x.root", tmp_path / "y.root")
    assert_answers(columns, tmp_path / "y.root")


def test_parquet_without_pyarrow_is_refused_at_once(tmp_path, run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = write_jets(tmp_path / "x.root", jets(5))
    code, _, err = run(path, "--format", "parquet")
    assert code == 2
    assert "pip install pyarrow" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "package"), [("s3://b/x.root", "boto3"), ("https://s.example/x.root", "requests")]
)
def test_the_package_that_an_address_needs_is_named(run, monkeypatch, address, package):
    """A minimal install lacks the libraries of distant storage."""
    for name in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(address)
    assert code == 2
    assert f"pip install {package}" in err
