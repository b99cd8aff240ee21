"""Damaged .pt files: every wrong byte is noticed, and the last good file takes over."""

import io
import random

import pytest
import torch

from common import storage
from common.errors import InputError
from weaver.fit import checksum
from weaver.fit.checkpoint import (
    DamagedCheckpoint,
    TrialFolder,
    TrialProgress,
    read_best,
    read_tensors,
    read_weights,
    state_uri,
    write_tensors,
)

pytestmark = pytest.mark.faults

WEIGHTS = {"layer.weight": torch.arange(600.0).reshape(20, 30), "layer.bias": torch.zeros(20)}
BEST = {"model": WEIGHTS, "epoch": 3, "metric": 0.5, "network_options": {"num-fc-layers": 2}}


def saved_by_torch(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def trial(tmp_path):
    """A trial after its second checkpoint; the epochs are 1 and 2."""
    folder = TrialFolder(str(tmp_path / "trial"))
    for epoch in (1, 2):
        folder.save({"model": WEIGHTS, "configuration": {}}, TrialProgress(epoch=epoch))
    progress = TrialProgress(best_epoch=1, best_metric=0.5)
    folder.save_best(WEIGHTS, progress, {"num-fc-layers": 2})
    write_tensors(state_uri(folder.uri), WEIGHTS)
    folder.write_results(progress, {"network_options": {"num-fc-layers": 2}})
    return folder


def flip(path, place, mask=0x10):
    content = bytearray(storage.read_bytes(path))
    content[place] ^= mask
    storage.write_bytes(path, bytes(content))


def test_every_flipped_byte_of_best_pt_is_noticed(tmp_path):
    path = str(tmp_path / "best.pt")
    write_tensors(path, BEST)
    whole = storage.read_bytes(path)
    draw = random.Random(1)
    end = range(len(whole) - checksum.END - checksum.COMMENT, len(whole))
    for place in [*(draw.randrange(len(whole)) for _ in range(300)), *end]:
        damaged_bytes = bytearray(whole)
        damaged_bytes[place] ^= 1 << draw.randrange(8)
        assert checksum.damage(bytes(damaged_bytes)), place
    assert checksum.damage(whole) == ""


def test_fifty_flips_are_refused_where_weights_are_read(tmp_path):
    path = str(tmp_path / "best.pt")
    write_tensors(path, BEST)
    size = len(storage.read_bytes(path))
    draw = random.Random(2)
    for _ in range(50):
        place = draw.randrange(size)
        flip(path, place)
        with pytest.raises(DamagedCheckpoint, match=r"best\.pt"):
            read_tensors(path)
        flip(path, place)
    assert read_tensors(path)["epoch"] == 3


def test_every_shortened_file_is_noticed(tmp_path):
    path = str(tmp_path / "best.pt")
    write_tensors(path, BEST)
    whole = storage.read_bytes(path)
    for length in [*range(0, len(whole), 97), *range(len(whole) - 130, len(whole))]:
        assert checksum.damage(whole[:length]), length


def test_torch_reads_a_file_with_checksums(tmp_path):
    path = tmp_path / "net_best_epoch_state.pt"
    write_tensors(str(path), WEIGHTS)
    for mapped in (False, True):
        weights = torch.load(path, weights_only=True, mmap=mapped)
        assert torch.equal(weights["layer.weight"], WEIGHTS["layer.weight"])


@pytest.mark.parametrize("new", [True, False], ids=["archive", "before torch 1.6"])
def test_files_without_a_checksum_still_load(tmp_path, new):
    path = tmp_path / "net_epoch-3_state.pt"
    path.write_bytes(saved_by_torch(WEIGHTS, _use_new_zipfile_serialization=new))
    assert torch.equal(read_weights(str(path))["layer.weight"], WEIGHTS["layer.weight"])


def test_a_file_written_without_checksums_still_loads(tmp_path):
    path = tmp_path / "state.pt"
    torch.serialization.set_crc32_options(False)
    try:
        path.write_bytes(saved_by_torch(WEIGHTS))
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(str(path))["layer.weight"], WEIGHTS["layer.weight"])


def test_a_wrong_weight_in_a_file_of_weaver_core_is_noticed(tmp_path):
    path = tmp_path / "net_epoch-3_state.pt"
    content = saved_by_torch(WEIGHTS)
    path.write_bytes(content)
    flip(str(path), content.index(WEIGHTS["layer.weight"].numpy().tobytes()) + 1000)
    with pytest.raises(DamagedCheckpoint, match=r"net_epoch-3_state\.pt"):
        read_weights(str(path))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4", b"\0" * 4096], ids=repr)
def test_a_garbage_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"best\.pt"):
        read_tensors(str(path))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(trial, capsys):
    flip(trial.path("checkpoint.pt"), 700)
    state, progress = trial.load({})
    assert progress.epoch == 1
    assert torch.equal(state["model"]["layer.weight"], WEIGHTS["layer.weight"])
    assert "checkpoint.previous.pt" in capsys.readouterr().err


def test_a_damaged_checkpoint_never_replaces_the_good_one(trial):
    flip(trial.path("checkpoint.pt"), 700)
    trial.save({"model": WEIGHTS, "configuration": {}}, TrialProgress(epoch=2))
    flip(trial.path("checkpoint.pt"), 700)
    assert trial.load({})[1].epoch == 1


def test_without_a_good_checkpoint_the_error_names_the_files_to_delete(trial):
    storage.delete(trial.path("checkpoint.previous.pt"))
    flip(trial.path("checkpoint.pt"), 700)
    with pytest.raises(InputError, match=r"delete .*checkpoint\.pt"):
        trial.load({})


def test_a_damaged_best_pt_falls_back_to_its_copy(trial, capsys):
    flip(trial.path("best.pt"), 700)
    best = read_best(trial.uri)
    assert best["network_options"] == {"num-fc-layers": 2}
    assert torch.equal(best["model"]["layer.weight"], WEIGHTS["layer.weight"])
    assert state_uri(trial.uri) in capsys.readouterr().err


def test_a_damaged_best_pt_without_a_copy_is_refused(trial):
    flip(trial.path("best.pt"), 700)
    storage.delete(state_uri(trial.uri))
    with pytest.raises(DamagedCheckpoint, match=r"best\.pt"):
        read_best(trial.uri)
