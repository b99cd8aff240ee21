from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from common import storage
from common.errors import InputError, JecError
from data.generator import blocks, generate, sample

JETS = (30, 20, 10)


@pytest.fixture
def generate_calls(monkeypatch) -> list[tuple[str, int, int]]:
    """Let `generate` write a small file at once; returns the list of its calls:

    (part, jets, seed).
    """
    calls = []

    def quick(output, *, jets, recipe, workers, label):
        calls.append((Path(output).name, jets, recipe.seed))
        Path(output).mkdir(parents=True)
        (Path(output) / "jets_0000.root").write_bytes(b"x" * jets)

    monkeypatch.setattr(generate, "generate", quick)
    return calls


@pytest.fixture
def bucket(monkeypatch):
    """An S3 bucket on a server of this test's own."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    storage.forget_client()
    storage.s3.client().create_bucket(Bucket="jets")
    yield "s3://jets/some/prefix"
    storage.forget_client()
    server.stop()


def test_each_part_has_its_number_of_jets_and_its_seed(tmp_path, generate_calls):
    patterns = sample.ensure_sample(str(tmp_path), jets=JETS, seed=4)
    assert generate_calls == [("train", 30, 12), ("val", 20, 13), ("test", 10, 14)]
    sizes = {
        part: [entry.size for entry in storage.glob(pattern)] for part, pattern in patterns.items()
    }
    assert sizes == {"train": [30], "val": [20], "test": [10]}
    assert os.listdir(tmp_path) == ["samples"]
    assert len(os.listdir(tmp_path / "samples")) == 1


def test_a_complete_sample_is_reused(tmp_path, generate_calls):
    first = sample.ensure_sample(str(tmp_path), jets=JETS)
    assert sample.ensure_sample(str(tmp_path), jets=JETS) == first
    assert len(generate_calls) == 3


def test_a_sample_with_a_missing_file_is_made_again(tmp_path, generate_calls):
    patterns = sample.ensure_sample(str(tmp_path), jets=JETS)
    os.remove(storage.glob(patterns["val"])[0].uri)
    sample.ensure_sample(str(tmp_path), jets=JETS)
    assert len(generate_calls) == 6
    assert len(storage.glob(patterns["val"])) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, JecError("a worker died")])
def test_an_interrupted_sample_leaves_no_folder(tmp_path, generate_calls, monkeypatch, error):
    quick = generate.generate

    def fail_at_validation(output, **more):
        if Path(output).name == "val":
            raise error
        quick(output, **more)

    monkeypatch.setattr(generate, "generate", fail_at_validation)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        sample.ensure_sample(str(tmp_path), jets=JETS)
    assert os.listdir(tmp_path / "samples") == []


def test_folders_of_killed_processes_are_removed_and_of_running_ones_kept(tmp_path, generate_calls):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead, alive = (
        tmp_path / "samples" / f"{sample._folder_prefix()}{pid}-qcd"
        for pid in (process.pid, os.getppid())
    )
    for folder in (dead, alive):
        (folder / "train").mkdir(parents=True)
    sample.ensure_sample(str(tmp_path), jets=JETS)
    assert not dead.exists()
    assert alive.exists()


def test_an_incomplete_folder_is_made_again(tmp_path, generate_calls):
    root = tmp_path / "samples" / sample.name(JETS, 1)
    (root / "train").mkdir(parents=True)
    (root / "train" / "jets_0000.root").write_bytes(b"half")
    patterns = sample.ensure_sample(str(tmp_path), jets=JETS)
    assert storage.glob(patterns["train"])[0].size == 30


def test_the_name_depends_on_jets_seed_and_recipe(monkeypatch):
    names = {sample.name(JETS, 1), sample.name(JETS, 2), sample.name((30, 20, 11), 1)}
    monkeypatch.setattr(
        sample,
        "recipe",
        lambda seed, part: blocks.Recipe(seed=0, detector=blocks.Detector(tail_share=0.5)),
    )
    assert len(names | {sample.name(JETS, 1)}) == 4


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="three numbers"):
        sample.ensure_sample(str(tmp_path), jets=(1, 2))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into"):
        sample.ensure_sample(str(tmp_path / "file"), jets=JETS)


@pytest.mark.slow
def test_a_generated_sample_is_stored_on_s3(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sample, "recipe", lambda seed, part: blocks.Recipe(seed=part, events_per_block=10)
    )
    patterns = sample.ensure_sample(bucket, jets=(12, 4, 4), workers=1)
    assert all(
        pattern.startswith("s3://jets/some/prefix/samples/qcd-12-4-4-seed1-")
        for pattern in patterns.values()
    )
    jets = {}
    for part, pattern in patterns.items():
        (entry,) = storage.glob(pattern)
        jets[part] = generate.jetntuple.read(storage.download(entry.uri, tmp_path / f"{part}.root"))
    assert {part: generate.jetntuple.length(columns) for part, columns in jets.items()} == {
        "train": 12,
        "val": 4,
        "test": 4,
    }
    assert len(
        set(jets["train"]["event"]) | set(jets["val"]["event"]) | set(jets["test"]["event"])
    ) == sum(len(set(columns["event"])) for columns in jets.values())
    assert sample.is_whole(storage.join(bucket, "samples", sample.name((12, 4, 4), 1)))
    assert sample.ensure_sample(bucket, jets=(12, 4, 4)) == patterns
