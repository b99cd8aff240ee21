"""Preparing: the columns follow the data config, files are decoded once, and bad files are refused
before any work.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import uuid

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml

from common import machine, storage
from common.errors import AccessError, InputError
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.config.weights import Sampler
from weaver.feed.dataset import Dataset
from weaver.prepared import decoding, sorting, transform
from weaver.prepared.columns import AUTO_YAML, DESCRIPTION, DatasetWriter
from weaver.prepared.prepare import main, prepare
from weaver.read import files
from weaver.read.opening import DamagedFile

PFN = yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text())


def config(**changes) -> DataConfig:
    return DataConfig.from_options({**PFN, **changes}, "jec.yaml")


def quiet(line: str) -> None:
    pass


def prepared_folders(folder) -> list[str]:
    """The names of the prepared data in a storage folder."""
    return sorted(path.name for path in folder.glob("cache/*"))


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    """A file of 60 jets whose columns the tests know."""
    columns = synthetic_jets(60, seed=11)
    return write_jets(tmp_path_factory.mktemp("one") / "a.root", columns, basket=7), columns


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """A bucket on an S3 server of this test."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    for name, value in {
        **settings,
        "AWS_DEFAULT_REGION": "us-east-1",
        "JEC_CACHE": str(tmp_path / "node"),
    }.items():
        monkeypatch.setenv(name, value)
    storage.forget_client()
    bucket = f"jets-{uuid.uuid4().hex}"  # moto's servers in one process share their buckets
    storage.s3.client().create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    storage.forget_client()
    server.stop()


# ---------------------------------------------------------------------------------------- content


def test_columns_equal_the_expressions_of_the_config_jet_by_jet(one_file, tmp_path):
    path, columns = one_file
    ref = prepare(str(path), config(), str(tmp_path), for_training=True, report=quiet)
    selected_jets = np.flatnonzero(
        (columns["genJetPt"] > 20) & (np.abs(columns["genJetEta"]) < 2.5)
    )
    assert (ref.num_jets, ref.num_read) == (len(selected_jets), 60)
    folder = tmp_path / "cache" / ref.key
    offsets, values = (
        np.load(folder / "pf_features.offsets.npy"),
        np.load(folder / "pf_features.npy"),
    )
    flat, target = np.load(folder / "jet_features.npy"), np.load(folder / "label.target.npy")
    for row, jet in enumerate(selected_jets):
        pf = {name: np.asarray(columns["PF"][name][jet])[:100] for name in columns["PF"].fields}
        with np.errstate(divide="ignore"):
            first, second = np.log(pf["pT"]), np.log(pf["pT"] / columns["jetPt"][jet])
        expected = np.stack([first, second, pf["dEta"], pf["dPhi"], pf["dTheta"], pf["dR"]], axis=1)
        assert np.array_equal(values[offsets[row] : offsets[row + 1]], expected)
        names = ("jetEta", "jetPhi", "jetMass", "jetArea", "QG_ptD", "QG_axis2", "QG_mult")
        assert flat[row].tolist() == [
            np.log(columns["jetPt"][jet]),
            *(np.float32(columns[name][jet]) for name in names),
        ]
        assert target[row] == np.log(columns["genJetPt"][jet] / columns["jetPt"][jet])
    assert np.array_equal(
        np.load(folder / "observer.hadronFlav.npy"), columns["hadronFlav"][selected_jets]
    )


def test_particles_are_sorted_before_they_are_truncated(one_file, tmp_path):
    """First the candidates nearest to the axis, then by falling pT, as if each jet were sorted
    alone.
    """
    path, columns = one_file
    group = {"length": 8, "order_by": ["-near", "-PF_pT"], "vars": ["PF_pT", "near"]}
    ordered_config = config(
        new_variables={"near": "PF_dR < 0.2"},
        inputs={"pf": group, "plain": {"length": 8, "vars": [["PF_dR", 0, 1, None, None]]}},
        selection=None,
        labels={"type": "custom", "value": {"target": "genJetPt"}},
    )
    batch = Dataset.open(
        prepare(str(path), ordered_config, str(tmp_path), for_training=True, report=quiet).uri,
        ordered_config,
    ).batch(np.arange(60))
    for jet in range(60):
        d_r, pt = np.asarray(columns["PF"]["dR"][jet]), np.asarray(columns["PF"]["pT"][jet])
        first = sorted(range(len(pt)), key=lambda i: (not d_r[i] < 0.2, -pt[i]))[:8]
        expected = np.zeros((2, 8), np.float32)
        expected[:, : len(first)] = [pt[first], d_r[first] < 0.2]
        assert np.array_equal(batch.inputs["pf"][jet].numpy(), expected)
        assert np.array_equal(batch.inputs["plain"][jet, 0, : len(first)].numpy(), d_r[:8])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_falling_order_keeps_ties_and_puts_nan_last(dtype):
    counts = np.array([0, 5, 1, 6])
    keys = np.array([1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1], dtype)
    expected = [0, 2, 4, 1, 3, 5, 7, 8, 11, 6, 9, 10]
    if dtype == "float32":
        keys[4] = np.nan
        expected = [0, 2, 1, 3, 4, 5, 7, 8, 11, 6, 9, 10]
    assert sorting.sort_within([sorting.falling(keys)], counts).tolist() == expected


def test_both_ways_of_sorting_give_the_same_order(monkeypatch):
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 30, 50)
    keys = [
        rng.integers(0, 3, counts.sum()),
        rng.random(counts.sum()) > 0.5,
        np.round(rng.random(counts.sum()), 1),
    ]
    keys[2][::7] = np.nan
    rows = sorting.sort_within(keys, counts)
    monkeypatch.setattr(sorting, "MOST_PADDING", 0)
    assert np.array_equal(rows, sorting.sort_within(keys, counts))


def test_columns_do_not_depend_on_the_size_of_decoding_steps(jet_files, tmp_path):
    """Ten jets at a time or all at once: the same bytes."""
    refs = [
        prepare(
            f"{jet_files}/train/*.root",
            config(),
            str(tmp_path / n),
            for_training=True,
            step_bytes=size,
            report=quiet,
        )
        for n, size in (("small", 10_000), ("large", 2**30))
    ]
    small, large = (
        tmp_path / n / "cache" / ref.key for n, ref in zip(("small", "large"), refs, strict=True)
    )
    names = sorted(path.name for path in small.iterdir())
    assert names == sorted(path.name for path in large.iterdir())
    assert all((small / name).read_bytes() == (large / name).read_bytes() for name in names)


def test_memory_is_bounded_by_the_step(jet_files, tmp_path, monkeypatch):
    sizes = []
    original = transform.select
    monkeypatch.setattr(
        transform,
        "select",
        lambda columns, plan: sizes.append(len(columns["jetPt"])) or original(columns, plan),
    )
    prepare(
        f"{jet_files}/train/*.root",
        config(),
        str(tmp_path),
        for_training=True,
        step_bytes=20_000,
        report=quiet,
    )
    assert sum(sizes) == 600
    assert max(sizes) < 30


def test_the_jets_of_a_large_basket_are_written_step_by_step(tmp_path, monkeypatch):
    """Only the jets of the steps in work are in memory, of one basket of 600 jets."""
    write_jets(tmp_path / "a.root", synthetic_jets(600, seed=12), basket=600)
    lock = threading.Lock()
    num_in_memory = largest_num = 0

    def count_jets(jets: int) -> None:
        nonlocal num_in_memory, largest_num
        with lock:
            num_in_memory += jets
            largest_num = max(largest_num, num_in_memory)

    original_rows, append = transform.make_rows, DatasetWriter.append

    def make_and_count(columns, count, *rest):
        count_jets(count)
        return original_rows(columns, count, *rest)

    def write_and_count(self, ready):
        append(self, ready)
        count_jets(-ready.num_jets)

    monkeypatch.setattr(transform, "make_rows", make_and_count)
    monkeypatch.setattr(DatasetWriter, "append", write_and_count)
    options = {"for_training": True, "report": quiet}
    ref = prepare(str(tmp_path / "a.root"), config(), str(tmp_path), step_bytes=20_000, **options)
    assert ref.num_jets > 400
    steps = machine.cores() + 2  # in work, one waiting, one being written
    assert 0 < largest_num <= steps * 600 * 20_000 / size_of_read_branches(tmp_path / "a.root")
    monkeypatch.undo()
    whole = prepare(str(tmp_path / "a.root"), config(), str(tmp_path / "whole"), **options)
    for path in (tmp_path / "cache" / ref.key).iterdir():
        assert path.read_bytes() == (tmp_path / "whole/cache" / whole.key / path.name).read_bytes()


def size_of_read_branches(path) -> float:
    """Uncompressed bytes of the branches of a file that the config reads."""
    (entry,) = files.find(str(path))
    file = files.inspect(entry, config(), config().plan(True))
    return file.bytes_per_entry * file.num_entries


@pytest.mark.parametrize("damaged", ["basket", "none"])
def test_a_damaged_basket_loses_the_rest_of_the_file_only(tmp_path, damaged):
    """The steps before it are written, also those that end after its decoding has begun."""
    path = write_jets(tmp_path / "a.root", synthetic_jets(600, seed=12), basket=200)
    if damaged == "basket":
        content = bytearray(path.read_bytes())
        with uproot.open(path) as file:
            branch = file["AK4jets/jetTree"]["PF_dPhi"]
            start, size = branch.member("fBasketSeek")[1], branch.member("fBasketBytes")[1]
        content[start + size // 2 : start + size] = bytes(size - size // 2)
        path.write_bytes(content)
    options = {"for_training": True, "step_bytes": 9000, "skip_bad_files": True, "report": quiet}
    ref = prepare(str(path), config(), str(tmp_path), **options)
    skipped_files = storage.read_json(f"{ref.uri}/{DESCRIPTION}")["skipped"]
    assert [entry["jets"] for entry in skipped_files] == ([400] if damaged == "basket" else [])


@pytest.mark.parametrize(
    ("room", "threads", "share"),
    [
        pytest.param(None, 8, 1.0, id="no limit"),
        pytest.param(3100, 8, 1.0, id="room for all"),
        pytest.param(500, 8, 0.1, id="smaller steps"),
        pytest.param(303, 4, 0.05175, id="then fewer threads"),
        pytest.param(20, 1, 0.05, id="less than the least"),
    ],
)
def test_steps_and_threads_follow_the_memory(room, threads, share):
    """A step of 100 bytes, ranges of 50: 0.7 of the room is for 3 ranges, and 2 shares of a step
    for each thread with 4 more.
    """
    pace = decoding.pace(room, 8, 100, 50, 0.05)
    assert pace.threads == threads
    assert pace.share == pytest.approx(share)


@pytest.mark.parametrize("limit", [None, 2**20])
def test_steps_are_small_below_a_memory_limit(jet_files, tmp_path, monkeypatch, limit):
    """Below a limit of a MiB steps are small, but not those that draw random numbers."""
    sizes = []
    select = transform.select
    monkeypatch.setattr(machine, "memory_room", lambda: limit)
    monkeypatch.setattr(
        transform,
        "select",
        lambda columns, plan: sizes.append(len(columns["jetPt"])) or select(columns, plan),
    )
    patterns = f"{jet_files}/train/*.root"
    prepare(patterns, config(), str(tmp_path), for_training=True, report=quiet)
    assert sum(sizes) == 600
    assert (max(sizes) < 300) == (limit is not None)
    sizes.clear()
    count = "ak.count(_batch_permute_indices(PF_pT), axis=1)"
    with_random = config(
        new_variables={**PFN["new_variables"], "count": count},
        observers=[*PFN["observers"], "count"],
    )
    prepare(patterns, with_random, str(tmp_path), for_training=True, report=quiet)
    assert max(sizes) == 300


def test_a_constant_mask_has_no_file_and_equal_offsets_share_one(prepared_particle_net):
    folder = json.loads(prepared_particle_net.train.read_text())["dataset"]
    description = storage.read_json(f"{folder}/{DESCRIPTION}")
    assert description["sequences"]["pf_mask"]["constant"] == [1.0]
    assert {entry["offsets"]["file"] for entry in description["sequences"].values()} == {
        "pf_points.offsets.npy"
    }
    names = [entry["file"] for entry in description["columns"].values()] + [
        "pf_points.npy",
        "pf_features.npy",
        "pf_points.offsets.npy",
    ]
    assert sorted(storage.name(entry.uri) for entry in storage.entries(folder)) == sorted(
        [*names, AUTO_YAML, DESCRIPTION]
    )


def test_the_newest_cycle_of_a_tree_is_read(tmp_path):
    path = write_jets(tmp_path / "a.root", synthetic_jets(30, seed=1))
    with uproot.update(path) as file:
        columns = synthetic_jets(80, seed=2)
        tree = file.mktree(
            "AK4jets/jetTree",
            {
                n: v.dtype if isinstance(v, np.ndarray) else v.type.content
                for n, v in columns.items()
            },
        )
        tree.extend(columns)
    assert (
        prepare(str(path), config(), str(tmp_path), for_training=True, report=quiet).num_read == 80
    )


def test_missing_observers_are_refused_in_the_test_set_only(one_file, tmp_path):
    path, _ = one_file
    more = config(observers=[*PFN["observers"], "pthat"])
    training = prepare(str(path), more, str(tmp_path), for_training=True, report=quiet)
    assert list(Dataset.open(training.uri, more).observers()) == PFN["observers"]
    with pytest.raises(InputError, match=r"unknown branch 'pthat'.*uses it in observers"):
        prepare(str(path), more, str(tmp_path), for_training=False, report=quiet)


def test_the_training_flag_is_true_for_the_training_set_only(one_file, tmp_path):
    path, _ = one_file
    flagged = config(
        observers=["flag"],
        new_variables={**PFN["new_variables"], "flag": "ak.values_astype(aux_training_, 'int32')"},
    )
    roles = {
        "train": {"for_training": True},
        "val": {"for_training": True, "validation": True},
        "test": {"for_training": False},
    }
    flag_values = {}
    for role, options in roles.items():
        ref = prepare(str(path), flagged, str(tmp_path), report=quiet, **options)
        flag_values[role] = set(Dataset.open(ref.uri, flagged).observers()["flag"].tolist())
    assert flag_values == {"train": {1}, "val": {0}, "test": {0}}


def test_file_magic_sets_a_variable_by_the_file_name(jet_files, tmp_path):
    magic = config(file_magic={"which": {r"/a\.root$": 7, r"/b": 9}}, observers=["which"])
    ref = prepare(
        f"{jet_files}/train/*.root", magic, str(tmp_path), for_training=False, report=quiet
    )
    assert np.unique(Dataset.open(ref.uri, magic).observers()["which"]).tolist() == [7, 9]


# ------------------------------------------------------------------- NaN, infinity, standardising


def test_nan_becomes_zero_and_is_counted_and_reported(tmp_path):
    columns = synthetic_jets(50, seed=3)
    columns["jetMass"][:4], columns["jetArea"][:2] = np.nan, np.inf
    flat = np.asarray(ak.flatten(columns["PF"]["dR"])).copy()
    flat[[0, 5]] = np.nan
    columns["PF"] = ak.with_field(
        columns["PF"], ak.unflatten(flat, ak.num(columns["PF"]["dR"])), "dR"
    )
    lines: list[str] = []
    path = write_jets(tmp_path / "a.root", columns)
    plain = config(selection=None, labels={"type": "custom", "value": {"target": "jetPt"}})
    ref = prepare(str(path), plain, str(tmp_path), for_training=True, report=lines.append)
    messages = "\n".join(lines)
    assert "'jetMass' has 4 NaN and 0 infinite values" in messages
    assert "'jetArea' has 0 NaN and 2 infinite values" in messages
    assert "'PF_dR' has 2 NaN and 0 infinite values" in messages
    assert "1 jets have no particles" in messages
    folder = tmp_path / "cache" / ref.key
    assert np.load(folder / "jet_features.npy")[:4, 3].tolist() == [0, 0, 0, 0]
    assert np.load(folder / "jet_features.npy")[:2, 4].tolist() == [np.finfo(np.float32).max] * 2
    assert np.load(folder / "pf_features.npy")[[0, 5], 5].tolist() == [0, 0]
    assert storage.read_json(str(folder / DESCRIPTION))["non_finite"]["PF_dR"] == [2, 0]


def dirty_file(folder):
    """40 jets: NaN in the mass of jet 1, a candidate of infinite dR in jet 2, log(0) in the label
    of jet 3; log(0) clipped in jet 4.
    """
    columns = synthetic_jets(40, seed=5)
    columns["jetMass"][1] = np.nan
    counts = np.asarray(ak.num(columns["PF"]["dR"]))
    for name, jet, value in (("dR", 2, np.inf), ("pT", 4, 0)):
        flat = np.asarray(ak.flatten(columns["PF"][name])).copy()
        flat[counts[:jet].sum()] = value
        columns["PF"] = ak.with_field(columns["PF"], ak.unflatten(flat, counts), name)
    columns["genJetPt"] = np.where(np.arange(40) == 3, 0, 40).astype("f4")
    return write_jets(folder / "in" / "a.root", columns)


@pytest.mark.parametrize(
    ("policy", "mass", "d_r", "jets"),
    {
        "weaver": ("weaver", 0, np.inf, 40),
        "zero": ("zero", 0, 0, 40),
        "drop": ("drop", None, None, 37),
    }.values(),
    ids=lambda v: str(v) if isinstance(v, str) else "",
)
def test_each_policy_for_nan_and_infinity_is_applied(tmp_path, policy, mass, d_r, jets):
    config_of_policy = config(
        selection=None,
        preprocess={"non_finite": policy},
        inputs={
            "pf": {"length": 100, "vars": ["PF_dR", ["PF_logPt", 0]]},
            "jet": {"length": None, "vars": ["jetMass", "jetPt"]},
        },
    )
    lines: list[str] = []
    ref = prepare(
        str(dirty_file(tmp_path)),
        config_of_policy,
        str(tmp_path),
        for_training=True,
        report=lines.append,
    )
    dataset = Dataset.open(ref.uri, config_of_policy)
    batch = dataset.batch(np.arange(len(dataset)))
    assert (len(dataset), dataset.description["dropped_jets"], ref.data_config.non_finite) == (
        jets,
        40 - jets,
        policy,
    )
    if mass is not None:
        assert (batch.inputs["jet"][1, 0], batch.inputs["pf"][2, 0, 0]) == (mass, d_r)
    assert np.isfinite(batch.inputs["pf"].numpy()).all() == (policy != "weaver")
    messages = "\n".join(lines)
    assert "'jetMass' has 1 NaN and 0 infinite values" in messages
    assert "'PF_dR' has 0 NaN and 1 infinite values" in messages
    assert "'target' has 0 NaN and 1 infinite values" in messages
    assert ("3 jets with NaN or infinite values are left out" in messages) == (policy == "drop")
    assert prepare(
        str(tmp_path / "in"),
        config_of_policy.with_non_finite("zero"),
        str(tmp_path),
        for_training=True,
    ).reused == (policy == "zero")


def test_nan_may_be_refused_and_a_set_without_jets_is_refused(tmp_path):
    path = str(dirty_file(tmp_path))
    strict = config(
        selection=None,
        preprocess={"non_finite": "error"},
        inputs={"jet": {"length": None, "vars": ["jetMass"]}},
    )
    with pytest.raises(
        InputError,
        match=(r"a\.root: 'jetMass' has 1 NaN and 0 infinite values, which non_finite: error"),
    ):
        prepare(path, strict, str(tmp_path), for_training=True, report=quiet)
    assert prepared_folders(tmp_path) == []
    config_without_values = config(
        new_variables={"none": "jetMass * np.nan"},
        inputs={"jet": {"length": None, "vars": ["none"]}},
        selection=None,
    )
    with pytest.raises(InputError, match="all 40 selected jets have NaN or infinite values"):
        prepare(
            path,
            config_without_values.with_non_finite("drop"),
            str(tmp_path),
            for_training=True,
            report=quiet,
        )
    with pytest.raises(InputError, match="unknown non_finite 'dorp'; did you mean 'drop'"):
        config_without_values.with_non_finite("dorp")


REWEIGHTING = {
    "use_precomputed_weights": False,
    "reweight_method": "flat",
    "reweight_vars": {"jetPt": [30, 40, 60, 1000], "jetEta": [-2.5, 0, 2.5]},
    "reweight_classes": ["wide", "narrow"],
}
CLASSES = {**PFN["new_variables"], "wide": "jetMass > 0.2", "narrow": "jetMass <= 0.2"}


def test_weights_come_from_the_training_set_and_apply_to_the_others(jet_files, tmp_path):
    """(Their values: tests/weaver/test_peer.py.)"""
    ours, lines = config(weights=REWEIGHTING, new_variables=CLASSES), []
    train = prepare(
        f"{jet_files}/train/*.root", ours, str(tmp_path), for_training=True, report=lines.append
    )
    dataset = Dataset.open(train.uri, ours)
    weights = dataset.batch(np.arange(len(dataset))).weights.numpy()
    wide = weights[np.asarray(dataset.description["num_jets"] * [True])]
    assert len(wide) == len(dataset)
    assert 0 < weights.min() < weights.max() <= 1
    assert (
        f"an epoch samples {Sampler(weights).size:,} of {len(dataset):,} jets by their weights"
        in lines
    )
    with pytest.raises(
        InputError, match="the histograms come from the training set; prepare that set first"
    ):
        prepare(
            f"{jet_files}/val/*.root",
            ours,
            str(tmp_path),
            for_training=True,
            validation=True,
            report=quiet,
        )
    val = prepare(
        f"{jet_files}/val/*.root",
        train.data_config,
        str(tmp_path),
        for_training=True,
        validation=True,
        report=quiet,
    )
    assert val.data_config.derived_parameters == train.data_config.derived_parameters
    assert set(Dataset.open(val.uri, ours).batch(np.arange(100)).weights.tolist()) <= set(
        weights.tolist()
    )
    test = prepare(
        f"{jet_files}/test/*.root",
        train.data_config,
        str(tmp_path),
        for_training=False,
        report=quiet,
    )
    assert (Dataset.open(test.uri, ours).batch(np.arange(100)).weights == 1).all()
    auto = DataConfig.load(f"{train.uri}/{AUTO_YAML}")
    assert auto.derived_parameters == train.data_config.derived_parameters
    assert not [path for path in storage.entries(train.uri) if "reweight" in path.uri]


def test_weights_above_1_are_reported_where_they_are_sampled(jet_files, tmp_path):
    lines: list[str] = []
    for use in ("sampling", "loss"):
        weights = {"use_precomputed_weights": True, "weight_branches": ["jetPt"], "use_as": use}
        ref = prepare(
            f"{jet_files}/train/a.root",
            config(weights=weights),
            str(tmp_path),
            for_training=True,
            report=lines.append,
        )
        assert ref.data_config.weight_use == use
    assert any("100.0% of the weights are above 1" in line for line in lines)
    assert any("weights multiply the loss of the jets; their mean is" in line for line in lines)


def test_a_parquet_file_gives_the_same_columns_as_a_root_file(jet_files, tmp_path):
    """The same jets from a parquet file give the same columns, in several steps."""
    columns = synthetic_jets(300, seed=1)
    flat = {name: ak.Array(values) for name, values in columns.items() if name != "PF"}
    flat |= {f"PF_{name}": columns["PF"][name] for name in columns["PF"].fields}
    (tmp_path / "in").mkdir()
    ak.to_parquet(ak.Array(flat), str(tmp_path / "in" / "a.parquet"), row_group_size=70)
    uris = {
        name: (
            prepare(
                source, config(), str(tmp_path), for_training=True, step_bytes=30_000, report=quiet
            ).uri
        )
        for name, source in (
            ("root", f"{jet_files}/train/a.root"),
            ("parquet", str(tmp_path / "in")),
        )
    }
    names = {storage.name(entry.uri) for entry in storage.entries(uris["root"])} - {DESCRIPTION}
    assert len(names) > 8
    assert all(
        (storage.read_bytes(f"{uris['root']}/{name}"))
        == storage.read_bytes(f"{uris['parquet']}/{name}")
        for name in names
    )
    ak.to_parquet(ak.Array(flat | {"jetMass": ["text"] * 300}), str(tmp_path / "in" / "b.parquet"))
    with pytest.raises(InputError, match=r"b\.parquet: column 'jetMass' is not readable: text"):
        prepare(str(tmp_path / "in"), config(), str(tmp_path), for_training=True, report=quiet)
    del flat["jetMass"]
    ak.to_parquet(ak.Array(flat), str(tmp_path / "in" / "b.parquet"))
    with pytest.raises(InputError, match=r"b\.parquet: unknown branch 'jetMass'"):
        prepare(str(tmp_path / "in"), config(), str(tmp_path), for_training=True, report=quiet)
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match=r"cannot read .*b\.parquet as a parquet file"):
        prepare(str(tmp_path / "in"), config(), str(tmp_path), for_training=True, report=quiet)


def test_auto_standardises_by_the_first_part_of_the_training_files(jet_files, tmp_path):
    auto = config(
        preprocess={"method": "auto", "data_fraction": 0.5},
        inputs={
            "pf": {"length": 20, "vars": ["PF_dR", ["PF_dEta", None]]},
            "pf_mask": {"length": 20, "vars": ["PF_mask"]},
            "jet": {"length": None, "vars": ["jetLogPt", ["jetEta", 0, 2]]},
        },
    )
    lines: list[str] = []
    train = prepare(
        f"{jet_files}/train/*.root",
        auto,
        str(tmp_path),
        for_training=True,
        step_bytes=20_000,
        report=lines.append,
    )
    samples = [synthetic_jets(300, seed=seed) for seed in (1, 2)]
    first = [{name: values[:150] for name, values in columns.items()} for columns in samples]
    values = np.concatenate(
        [
            ak.flatten(c["PF"]["dR"][(c["genJetPt"] > 20) & (abs(c["genJetEta"]) < 2.5)])
            for c in first
        ]
    )
    low, median, high = np.percentile(values, [16, 50, 84])
    derived = train.data_config.preprocess_params
    assert (derived["PF_dR"]["center"], derived["PF_dR"]["scale"]) == (
        float(median),
        float(1 / max(high - median, median - low)),
    )
    assert (derived["PF_dEta"]["center"], derived["PF_mask"]["center"]) == (None, None)
    assert (derived["jetEta"]["center"], derived["jetEta"]["scale"]) == (0, 2)
    assert np.median(
        Dataset.open(train.uri, auto).batch(np.arange(train.num_jets)).inputs["jet"][:, 0]
    ) == pytest.approx(0, abs=0.1)

    with pytest.raises(InputError, match="prepare that set first"):
        prepare(
            f"{jet_files}/val/*.root",
            auto,
            str(tmp_path),
            for_training=True,
            validation=True,
            report=quiet,
        )
    val = prepare(
        f"{jet_files}/val/*.root",
        train.data_config,
        str(tmp_path),
        for_training=True,
        validation=True,
        report=quiet,
    )
    assert val.data_config.preprocess_params == derived
    assert Dataset.open(val.uri, auto).data_config.preprocess_params == derived
    other = auto.with_preprocess_params(derived | {"PF_dR": {**derived["PF_dR"], "center": 0.0}})
    again = prepare(
        f"{jet_files}/val/*.root",
        other,
        str(tmp_path),
        for_training=True,
        validation=True,
        report=quiet,
    )
    assert again.key != val.key


# ----------------------------------------------------------------------------------- decoded once


def test_the_same_data_is_not_decoded_again(one_file, tmp_path, monkeypatch):
    path, _ = one_file
    first = prepare(str(path), config(), str(tmp_path), for_training=True, report=quiet)
    monkeypatch.setattr(files, "read", None)  # decoding now would fail
    again = prepare(
        f"jets:{path}",
        config(selection="(genJetPt>20) & (np.abs(genJetEta)<2.5)"),
        str(tmp_path),
        for_training=True,
    )
    assert (again.uri, again.reused, first.reused) == (first.uri, True, False)
    assert (again.num_jets, again.num_read, again.data_config.derived_parameters) == (
        first.num_jets,
        first.num_read,
        first.data_config.derived_parameters,
    )


def test_another_file_data_config_or_role_is_prepared_again(one_file, tmp_path):
    path, columns = one_file
    copy = tmp_path / "a.root"
    shutil.copy(path, copy)
    keys = [prepare(str(copy), config(), str(tmp_path), for_training=True, report=quiet).key]
    keys.append(prepare(str(copy), config(), str(tmp_path), for_training=False, report=quiet).key)
    keys.append(
        prepare(
            str(copy),
            config(selection="genJetPt > 30"),
            str(tmp_path),
            for_training=True,
            report=quiet,
        ).key
    )
    write_jets(copy, {name: values[:50] for name, values in columns.items()})
    keys.append(prepare(str(copy), config(), str(tmp_path), for_training=True, report=quiet).key)
    assert len(set(keys)) == 4
    assert prepared_folders(tmp_path) == sorted(keys)


def test_an_interrupted_preparation_leaves_no_data(jet_files, tmp_path, monkeypatch):
    calls = []
    original = transform.make_rows

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(transform, "make_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(
            f"{jet_files}/train/*.root",
            config(),
            str(tmp_path),
            for_training=True,
            step_bytes=50_000,
            report=quiet,
        )
    assert list((tmp_path / "cache").iterdir()) == []


# -------------------------------------------------------------------------------------- bad input


def no_match(folder, path):
    return f"{folder}/*.rot", {}


def no_folder(folder, path):
    return f"{folder}/nowhere/*.root", {}


def not_root(folder, path):
    (folder / "b.root").write_bytes(b"jets, all of them")
    return f"{folder}/*.root", {}


def empty_file(folder, path):
    (folder / "b.root").touch()
    return f"{folder}/*.root", {}


def truncated(folder, path):
    (folder / "b.root").write_bytes(path.read_bytes()[:-2000])
    return f"{folder}/*.root", {}


def all_zero_behind_the_header(folder, path):
    content = path.read_bytes()
    (folder / "b.root").write_bytes(content[:200] + bytes(len(content) - 200))
    return f"{folder}/*.root", {}


def no_tree(folder, path):
    return str(path), {"treename": "AK4jets/jetTre"}


def missing_branch(folder, path):
    return str(path), {"new_variables": {**PFN["new_variables"], "PF_logPt": "np.log(PF_pt)"}}


def missing_in_one_file(folder, path):
    columns = synthetic_jets(10, seed=1)
    del columns["QG_mult"]
    write_jets(folder / "b.root", columns)
    return f"{folder}/*.root", {}


def nothing_selected(folder, path):
    return str(path), {"selection": "genJetPt > 1e6"}


def nothing_in_the_file(folder, path):
    return (
        str(
            write_jets(folder / "b.root", {n: v[:0] for n, v in synthetic_jets(5, seed=1).items()})
        ),
        {},
    )


def two_trees(folder, path):
    with uproot.update(path) as file:
        file.mktree("other", {"x": "f4"}).extend({"x": np.zeros(3, np.float32)})
    return str(path), {"treename": None}


def foreign_scheme(folder, path):
    return "gs://bucket/a.root", {}


BAD_FILES = {
    no_match: r"no ROOT file matches '.*\*\.rot'; data files in .*: a\.root",
    no_folder: r"there is no folder .*nowhere",
    not_root: r"b\.root is not a ROOT file: it begins with b'jets, al'",
    empty_file: r"b\.root is not a ROOT file: it is empty",
    truncated: r"b\.root is truncated: it should have [\d,]+ bytes and has [\d,]+; copy it again",
    all_zero_behind_the_header: r"b\.root contains no tree",
    no_tree: r"a\.root: unknown tree 'AK4jets/jetTre'; did you mean 'AK4jets/jetTree'\?",
    missing_branch: (
        r"unknown branch 'PF_pt'; did you mean 'PF_pT'.*\(jec\.yaml uses it in"
        r" new_variables:PF_logPt\)"
    ),
    missing_in_one_file: r"b\.root: unknown branch 'QG_mult'.*uses it in inputs:jet_features",
    nothing_selected: r"none of 60 jets passes jec\.yaml:selection 'genJetPt > 1e6'",
    nothing_in_the_file: r"there is no jet in .*b\.root",
    two_trees: r"contains 2 trees \(AK4jets/jetTree, other\); name one as 'treename'",
    foreign_scheme: r"'gs://bucket/a\.root': unknown scheme 'gs:'.*s3://bucket.*root://",
}


@pytest.mark.parametrize("damage", BAD_FILES, ids=lambda function: function.__name__)
def test_bad_files_are_refused_and_leave_no_data(one_file, tmp_path, damage):
    path = tmp_path / "in" / "a.root"
    path.parent.mkdir()
    shutil.copy(one_file[0], path)
    patterns, changes = damage(path.parent, path)
    with pytest.raises(InputError, match=BAD_FILES[damage]):
        prepare(patterns, config(**changes), str(tmp_path / "out"), for_training=True, report=quiet)
    assert prepared_folders(tmp_path / "out") == []


def test_damage_inside_a_file_is_reported_with_the_file(one_file, tmp_path):
    content = bytearray(one_file[0].read_bytes())
    with uproot.open(one_file[0]) as file:
        branch = file["AK4jets/jetTree"]["PF_dPhi"]
        start, size = branch.member("fBasketSeek")[3], branch.member("fBasketBytes")[3]
    content[start + size // 2 : start + size] = bytes(size - size // 2)
    path = tmp_path / "a.root"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*a\.root as a ROOT file"):
        prepare(str(path), config(), str(tmp_path), for_training=True, report=quiet)
    assert prepared_folders(tmp_path) == []
    write_jets(tmp_path / "b.root", one_file[1], basket=7)
    lines: list[str] = []
    options = {
        "for_training": True,
        "step_bytes": 9000,
        "skip_bad_files": True,
        "report": lines.append,
    }
    ref = prepare(f"{tmp_path}/*.root", config(), str(tmp_path), **options)
    skipped_files = storage.read_json(f"{ref.uri}/{DESCRIPTION}")["skipped"]
    assert [(storage.name(entry["uri"]), entry["exact"]) for entry in skipped_files] == [
        ("a.root", True)
    ]
    assert 0 < skipped_files[0]["jets"] <= 60
    assert (
        f"warning: {skipped_files[0]['jets']} jets are lost: cannot read {path} as a ROOT file"
        in "\n".join(lines)
    )
    assert ref.num_jets > 60 * 0.8


def test_a_truncated_file_is_skipped_only_with_skip_bad_files(one_file, tmp_path):
    (tmp_path / "in").mkdir()
    content = one_file[0].read_bytes()
    for name, content_of_file in (
        ("a", content),
        ("b", content[: len(content) // 2]),
        ("c", content),
        ("d", b"no jets"),
    ):
        (tmp_path / "in" / f"{name}.root").write_bytes(content_of_file)
    everything = (f"{tmp_path}/in/*.root", config(), str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"in/b\.root is truncated: .*leave damaged files out with --skip-bad-files",
    ):
        prepare(*everything, for_training=True, report=quiet)
    lines: list[str] = []
    ref = prepare(*everything, for_training=True, skip_bad_files=True, report=lines.append)
    assert ref.num_read == 120
    assert next(line for line in lines if "lost" in line).startswith(
        "warning: a file is left out, about 60 jets are lost: "
    )
    assert any("d.root is not a ROOT file" in line for line in lines)
    # the data prepared without the file are not reused for the complete data
    with pytest.raises(InputError, match="is truncated"):
        prepare(*everything, for_training=True, report=quiet)
    with pytest.raises(InputError, match="is not a ROOT file"):
        prepare(
            str(tmp_path / "in" / "d.root"),
            config(),
            str(tmp_path),
            for_training=True,
            skip_bad_files=True,
            report=quiet,
        )


@pytest.mark.parametrize("reads", [0, 2, 4])
def test_expired_keys_are_not_reported_as_damage(one_file, s3, monkeypatch, reads):
    """Also with --skip-bad-files the run ends, and a later one decodes all files."""
    for name in ("a", "b", "c"):
        storage.upload(one_file[0], f"{s3}/in/{name}.root")
    get, range_of = storage.s3._get, storage.s3.http.range_of
    addresses: list[str] = []

    def answer_first_reads(address, *request):
        addresses.append(address)
        return range_of(address, *request) if len(addresses) <= reads else None

    def expiring(uri, **options):
        if len(addresses) > reads:
            raise AccessError(f"refused access to {uri} (ExpiredToken)")
        return get(uri, **options)

    def prepare_all():
        return prepare(
            f"{s3}/in/*.root",
            config(),
            f"{s3}/out",
            for_training=True,
            skip_bad_files=True,
            report=quiet,
        )

    with monkeypatch.context() as patch:
        patch.setattr(storage.s3, "_get", expiring)
        patch.setattr(storage.s3.http, "range_of", answer_first_reads)
        with pytest.raises(AccessError, match="ExpiredToken") as error:
            prepare_all()
        assert error.value.retryable
    assert len(addresses) > reads
    assert not storage.entries(f"{s3}/out")
    whole = prepare_all()
    assert (whole.reused, whole.num_read) == (False, 180)


@pytest.mark.parametrize("damage", ["opening", "decoding"])
def test_incomplete_data_are_not_reused_for_complete_data(one_file, tmp_path, monkeypatch, damage):
    """The same files, read partly and then completely: the two results have different keys."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        shutil.copy(one_file[0], tmp_path / "in" / f"{name}.root")
    lines: list[str] = []

    def prepare_all():
        lines.clear()
        return prepare(
            f"{tmp_path}/in/*.root",
            config(),
            str(tmp_path),
            for_training=True,
            skip_bad_files=True,
            report=lines.append,
        )

    def fail(*_, **__):
        raise DamagedFile("b.root is not whole")

    with monkeypatch.context() as patch:
        if damage == "opening":
            inspect = files.inspect
            patch.setattr(
                files,
                "inspect",
                lambda entry, *rest: (fail if "b.root" in entry.uri else inspect)(entry, *rest),
            )
        else:
            loads = files.loads
            patch.setattr(
                files,
                "loads",
                lambda file, *rest, **more: (fail if "b.root" in file.entry.uri else loads)(
                    file, *rest, **more
                ),
            )
        partial = prepare_all()
        assert not partial.reused
        again = prepare_all()
        assert again.uri == partial.uri
        assert again.reused == (damage == "opening")
        assert len(prepared_folders(tmp_path)) == 1
        assert any("60 jets are lost: b.root is not whole" in line for line in lines)
    whole = prepare_all()
    assert not whole.reused
    assert whole.num_jets == 2 * partial.num_jets
    assert not any("lost" in line for line in lines)
    assert prepared_folders(tmp_path) == sorted([partial.key, whole.key])
    strict = prepare(
        f"{tmp_path}/in/*.root", config(), str(tmp_path), for_training=True, report=quiet
    )
    assert (strict.uri, strict.reused) == (whole.uri, True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    {
        "lists where a number is due": (
            {"labels": {"type": "custom", "value": {"t": "PF_pT"}}},
            r"'t' \(label\) is .* expected one number, or the same number of values, for each jet",
        ),
        "no number": (
            {"selection": "PF_pT > 1"},
            "jec.yaml:selection: 'PF_pT > 1' gives .* one true or false for each jet",
        ),
        "another number of jets": (
            {"selection": "ak.flatten(PF_pT) > 1"},
            "expected one entry for each of 60 jets",
        ),
        "missing values": (
            {
                "new_variables": {
                    **PFN["new_variables"],
                    "jetLogPt": "ak.max(PF_pT[PF_pT > 9], axis=1)",
                }
            },
            r"'jetLogPt' .* is .*; values are missing: fill them, as in ak\.fill_none",
        ),
        "unequal numbers of particles": (
            {"new_variables": {**PFN["new_variables"], "PF_logPt": "np.log(PF_pT[:, 1:])"}},
            "'PF_logPt' and 'PF_logRelPt' differ in number of entries",
        ),
        "no class": (
            {"labels": {"type": "simple", "value": ["partonFlav == 0", "partonFlav == 1"]}},
            "belong to no class",
        ),
        "evaluation": (
            {"labels": {"type": "custom", "value": {"t": "math.log(jetPt)"}}},
            "jec.yaml:labels:t: expression 'math.log",
        ),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_configs_are_refused_and_leave_no_data(one_file, tmp_path, changes, reason):
    with pytest.raises(InputError, match=reason):
        prepare(str(one_file[0]), config(**changes), str(tmp_path), for_training=True, report=quiet)
    assert prepared_folders(tmp_path) == []


# --------------------------------------------------------------------- patterns, S3, command line


def test_patterns_name_each_file_once(jet_files, tmp_path, monkeypatch):
    a, b, v = (str(jet_files / name) for name in ("train/a.root", "train/b.root", "val/a.root"))

    def uris_of(patterns):
        return [entry.uri for entry in files.find(patterns)]

    assert (
        uris_of(f"{jet_files}/train/*.root {v}")
        == uris_of(f"x:{jet_files}/train/*.root,y:{v}")
        == [a, b, v]
    )
    assert uris_of([f"{jet_files}/train/?.root", a]) == [a, b], "each file once"
    assert uris_of(f"{jet_files}/train") == [a, b]
    monkeypatch.chdir(jet_files)
    assert uris_of("val/*.root") == [v]
    odd = write_jets(tmp_path / "with blank, comma: and.data", synthetic_jets(5, seed=1))
    assert uris_of(str(odd)) == [str(odd)]
    with pytest.raises(InputError, match="no data files"):
        uris_of("")


def test_data_on_s3_are_prepared_and_opened(s3, jet_files, tmp_path, monkeypatch):
    storage.upload(jet_files / "train", f"{s3}/in/train")
    uploaded_names: list[str] = []
    original = storage.upload
    monkeypatch.setattr(
        storage,
        "upload",
        lambda path, uri: uploaded_names.append(storage.name(uri)) or original(path, uri),
    )
    ref = prepare(f"{s3}/in/train/*.root", config(), f"{s3}/runs", for_training=True, report=quiet)
    assert ref.uri == f"{s3}/runs/cache/{ref.key}"
    assert uploaded_names[-1] == DESCRIPTION
    shutil.rmtree(tmp_path / "node")  # another node
    jets = Dataset.open(ref.uri, config())
    here = Dataset.open(f"{jet_files}/train/*.root", config(), cache_dir=str(tmp_path / "here"))
    index = np.arange(len(here))
    ours, theirs = jets.batch(index), here.batch(index)
    assert all(np.array_equal(ours.inputs[name], theirs.inputs[name]) for name in theirs.inputs)
    assert sorted(path.name for path in (tmp_path / "node").iterdir()) == [
        ref.key,
        f"{ref.key}.lock",
    ]
    assert prepare(
        f"{s3}/in/train/*.root", config(), f"{s3}/runs", for_training=True, report=quiet
    ).reused


def test_bad_files_on_s3_are_refused(s3, one_file):
    storage.write_bytes(f"{s3}/in/cut.root", one_file[0].read_bytes()[:-2000])
    storage.write_bytes(f"{s3}/in/text.root", b"not a tree in sight")
    for name, reason in (
        ("cut", "is truncated"),
        ("text", "is not a ROOT file"),
        ("none", "no ROOT file matches"),
    ):
        with pytest.raises(InputError, match=reason):
            prepare(f"{s3}/in/{name}.root", config(), f"{s3}/runs", for_training=True, report=quiet)
    assert storage.entries(f"{s3}/runs") == []


def test_the_command_prints_the_folder_of_the_prepared_data(jet_files, tmp_path, capsys):
    common = ["--data-config", str(DATA / "jec_pfn_open.yaml"), "--output", str(tmp_path)]
    assert main([*common, "--data", f"{jet_files}/train/a.root", f"{jet_files}/train/b.root"]) == 0
    train = capsys.readouterr().out.strip()
    assert storage.read_json(f"{train}/{DESCRIPTION}")["num_read"] == 600
    assert (
        main(
            [*common, "--data", f"{jet_files}/val/*.root", "--validation", "--derived-from", train]
        )
        == 0
    )
    assert (
        storage.read_json(f"{capsys.readouterr().out.strip()}/{DESCRIPTION}")["role"]
        == "validation"
    )


def test_a_folder_that_cannot_be_written_gives_one_error_line(jet_files, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file where a folder is due")
    files_and_config = [
        "--data",
        f"{jet_files}/val/*.root",
        "--data-config",
        str(DATA / "jec_pfn_open.yaml"),
    ]
    assert main([*files_and_config, "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: cannot write prepared data to {tmp_path}/cache/"
    )


def test_the_command_ends_with_one_error_line_and_exit_code_2(tmp_path):
    config_path = str(DATA / "jec_pfn_open.yaml")
    command = [
        sys.executable,
        "-m",
        "weaver.prepared.prepare",
        "--data-config",
        config_path,
        "--data",
        "none/*.root",
        "--output",
        str(tmp_path),
    ]
    exit_error = subprocess.run(
        command, capture_output=True, text=True, cwd=DATA.parent, timeout=60, check=False
    )
    assert (exit_error.returncode, exit_error.stdout) == (2, "")
    assert exit_error.stderr.startswith("error: no ROOT file matches 'none/*.root'")
    assert exit_error.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["jets.awkd"])
def test_unsupported_kinds_of_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(
        InputError,
        match="are not supported, unlike in weaver-core; write the jets as ROOT or parquet",
    ):
        files.find(str(tmp_path / name))
