"""Measure how much each input and option contributes to the gain.

Many trainings on the same generated jets are compared on the same test jets.

    python -m benchmarks.physics --folder DIR                    # one to two hours on 2 cores,
        generation included
    python -m benchmarks.physics --folder DIR --only pfn --variants full,open --seeds 1   # in
        parts: what DIR holds is not done again
    python -m benchmarks.physics --folder DIR --jets 5000 --epochs 3 --seeds 1    # a look

`full` is the data config with all inputs (data/jec_*_full.yaml) and the options that suit it;
`open` is the published one (data/jec_*_open.yaml) with the published options. The name of each
other variant says what differs. The size of the networks, the optimizer, its rate and the number of
epochs are the same for all, fixed beforehand. Gains are of the resolution (IQR / median) over the
standard JEC; a difference between variants is taken on the same test jets, draw by draw of the
bootstrap, with the mean gain of the seeds. ParticleNet takes a tenth of the training jets. Boosted
trees on jet-level columns stand beside them, trained on the same jets.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Report, Spread, with_allocator
from common.choices import SPLITS
from common.cli import Parser, run_main
from common.errors import InputError, JecError, unknown
from common.progress import Progress
from common.project import ROOT
from data.generator.sample import ensure_sample
from evaluating import jet_columns
from physics import metrics
from physics import response as r
from physics.boosted_trees import Jets, fit_and_predict
from physics.bootstrap import bootstrap_quantiles, interval
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.read import files as data_files

SAMPLE_SEED = 2  # another than that of `make run`
TRAINING_SECONDS = 7200
EMA_DECAY = 0.999
PUBLISHED_PASSES = 50 * 845_038  # epochs, jets
REPLICATES = 300
REGIONS = ("barrel", "endcap", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network, its two data configs, and how all of its variants are trained."""

    file: str
    full: str
    open: str
    options: dict[str, Any]
    full_options: dict[str, Any]
    """Options of `full`, beside the running mean of the weights (EMA)."""
    flags: dict[str, Any]
    epochs: int
    share: float
    """Of the training and validation jets."""
    test_files: str
    """Which of the test sample's files, of 10,000 jets each:

    ParticleNet answers a fiftieth as fast.
    """


NETWORKS = {
    "pfn": Network(
        file="networks/pfn_regressor_open.py",
        full="data/jec_pfn_full.yaml",
        open="data/jec_pfn_open.yaml",
        options={"num_conv_layers": 3, "conv_dim": 100, "num_fc_layers": 3, "fc_dim": 100},
        full_options={"norm": "layer", "loss": "quantile"},
        flags={"batch-size": 256, "start-lr": 2e-3, "optimizer": "adam"},
        epochs=10,
        share=1.0,
        test_files="*.root",
    ),
    "particle_net": Network(
        file="networks/particle_net_regressor_open.py",
        full="data/jec_particle_net_full.yaml",
        open="data/jec_particle_net_open.yaml",
        options={
            "num_edge_conv_blocks": 2,
            "k": 8,
            "num_conv_layers": 2,
            "conv_dim": 50,
            "num_fc_layers": 2,
            "fc_dim": 100,
        },
        full_options={"loss": "quantile"},  # with batch normalisation, as published
        flags={"batch-size": 64, "start-lr": 2e-3, "optimizer": "adam"},
        epochs=25,  # as many steps as the other network has
        share=0.1,
        test_files="jets_000[0-2].root",
    ),
}

# --------------------------------------------------------------------------------------- variants

Content = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """`full` with something changed: its data config, or the options and flags that it lacks."""

    change: Callable[[Content], None] = lambda content: None
    lacks: tuple[str, ...] = ()
    is_open: bool = False

    def options(self, network: Network) -> dict[str, Any]:
        """Options of the network file."""
        options = dict(network.options)
        for name, value in network.full_options.items():
            if name not in self.lacks:
                options[name] = value
        return options

    def flags(self, network: Network) -> dict[str, Any]:
        """Flags of the training."""
        return {**network.flags, **({} if "ema-decay" in self.lacks else {"ema-decay": EMA_DECAY})}


def without(*names: str) -> Callable[[Content], None]:
    """Leave variables out of all groups; a group that is then empty goes too."""

    def change(content: Content) -> None:
        for group in content["inputs"].values():
            group["vars"] = [entry for entry in group["vars"] if _name(entry) not in names]
        content["inputs"] = {
            name: group for name, group in content["inputs"].items() if group["vars"]
        }

    return change


def in_file_order(content: Content) -> None:
    """Particles as the file has them, cut to the published 100.

    More than 64, as the jet's own come in no particular place.
    """
    for group in content["inputs"].values():
        if group.pop("order_by", None):
            group["length"] = 100


def remove_scaling(content: Content) -> None:
    """Variables as they are, neither shifted nor scaled nor clipped."""
    for group in content["inputs"].values():
        group["vars"] = [_name(entry) for entry in group["vars"]]


def _name(entry: str | list) -> str:
    return entry if isinstance(entry, str) else entry[0]


TYPES = (
    "part_isChargedHadron",
    "part_isNeutralHadron",
    "part_isPhoton",
    "part_isElectron",
    "part_isMuon",
    "part_charge",
)
GLOBALS = ("rhoAll", "PV_npvsGood", "jet_logRawPt", "jet_logCorrection")

VARIANTS = {
    "full": Variant(),
    "open": Variant(is_open=True, lacks=("norm", "loss", "ema-decay")),
    "open with the options of full": Variant(is_open=True),
    "without type and charge": Variant(change=without(*TYPES)),
    "without PF_fromPV": Variant(change=without("PF_fromPV")),
    "without PF_fromAK4Jet": Variant(change=without("PF_fromAK4Jet")),
    "without the globals": Variant(change=without(*GLOBALS)),
    "in the file's order": Variant(change=in_file_order),
    "not standardised": Variant(change=remove_scaling),
    "without LayerNorm": Variant(lacks=("norm",)),
    "L1 loss": Variant(lacks=("loss",)),
    "without EMA": Variant(lacks=("ema-decay",)),
    "without LayerNorm and EMA": Variant(lacks=("norm", "ema-decay")),
}


def data_config_text(network: Network, variant: Variant) -> str:
    """The YAML of a variant."""
    import yaml

    content = yaml.safe_load(
        (ROOT / (network.open if variant.is_open else network.full)).read_text()
    )
    variant.change(content)
    return yaml.safe_dump(content, sort_keys=False)


TREES: dict[str, tuple[str, ...]] = {
    "trees, pT and eta": ("jetPt", "jetEta"),
    "trees, and three shares of the pT": (
        "jetPt",
        "jetEta",
        "fractionChargedHadron",
        "fractionNeutralHadron",
        "fractionPhoton",
    ),
    "trees, jet-level columns": jet_columns.JET,
    "trees, all columns": (*jet_columns.JET, *jet_columns.FRACTIONS),
}
"""Boosted trees -> what they take. Those with all columns are the ones of the report."""

# -------------------------------------------------------------------------------------- trainings


@dataclasses.dataclass(frozen=True)
class Task:
    """One training."""

    network: str
    variant: str
    seed: int

    @property
    def slug(self) -> str:
        """Name of the task's folder."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.network} {self.variant}".lower())


class Bench:
    """The jets, and the trainings on them, below one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Generate the jets that are missing."""
        self.arguments, self.root = arguments, arguments.folder
        self.lacks = arguments.lacks.split(",") if arguments.lacks else []
        self.sample = {part: getattr(arguments, f"data_{part}") for part in SPLITS}
        if not all(self.sample.values()):
            sizes = (arguments.jets, max(arguments.jets // 5, 1000), arguments.test_jets)
            self.sample = ensure_sample(str(self.root), jets=sizes, seed=SAMPLE_SEED)

    def folder(self, task: Task) -> Path:
        """Folder of a training."""
        return (
            self.root
            / "trained"
            / "-without-".join([f"{task.slug}-{self.epochs(task.network)}-epochs", *self.lacks])
            / str(task.seed)
        )

    def epochs(self, network: str) -> int:
        """Number of epochs of a network."""
        return self.arguments.epochs or NETWORKS[network].epochs

    def variant(self, task: Task) -> Variant:
        """The task's variant, without the options that --lacks takes from all."""
        variant = VARIANTS[task.variant]
        return dataclasses.replace(variant, lacks=(*variant.lacks, *self.lacks))

    def config(self, task: Task) -> Path:
        """The data config of a variant, written anew each time.

        The text is the same unless the variant has changed.
        """
        path = self.root / "configs" / f"{task.slug}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data_config_text(NETWORKS[task.network], VARIANTS[task.variant]))
        return path

    def dataset(self, task: Task, part: str) -> Dataset:
        """Decoded jets of the part train, val or test, as this variant sees them."""
        config = DataConfig.load(str(self.config(task)))
        files = self.sample[part]
        if part == "test":
            files = files.replace("*.root", NETWORKS[task.network].test_files)
        return Dataset.open(
            files,
            config,
            cache_dir=str(self.root),
            for_training=part != "test",
            validation=part == "val",
        )

    def tree_jets(self, network: str, part: str) -> tuple[dict[str, np.ndarray], Jets]:
        """Jet-level columns of the part train, val or test: name -> (N,), and all with the target.

        Of the training and validation jets the network's share, evenly spread.
        """
        files = self.sample[part]
        if part == "test":
            files = files.replace("*.root", NETWORKS[network].test_files)
        config = DataConfig.load(str(ROOT / NETWORKS[network].full))
        file_check = data_files.check(data_files.find(files), config, for_training=part != "test")
        columns = jet_columns.of_files(config, data_files.branch_names(file_check.files[0]))
        jets = Dataset.open(
            files,
            DataConfig.from_options(columns.options, "jet columns"),
            cache_dir=str(self.root),
            for_training=part != "test",
            validation=part == "val",
        )
        number = len(jets) if part == "test" else round(len(jets) * NETWORKS[network].share)
        index = np.arange(number) * len(jets) // number
        features = jets.batch(index).inputs[jet_columns.GROUP].numpy()
        names = jets.data_config.input_dicts[jet_columns.GROUP]
        target = np.asarray(jets.label("target"), dtype=np.float64)[index]
        whole = Jets(features=features, target=target, weights=np.ones(number))
        return dict(zip(names, features.T, strict=True)), whole

    def tree_answers(self, network: str) -> dict[str, np.ndarray]:
        """Variant of TREES -> its answers log(pT_gen / pT) to the test jets, (N,)."""
        parts = {part: self.tree_jets(network, part) for part in ("train", "val", "test")}
        answers = {}
        for name, columns in TREES.items():
            of_part = {}
            for part, (values, jets) in parts.items():
                features = np.stack([values[column] for column in columns], axis=1)
                of_part[part] = dataclasses.replace(jets, features=features)
            answers[name], _ = fit_and_predict(
                of_part["train"], of_part["val"], [of_part["test"].features], seed=1
            )
        return answers

    def train(self, task: Task, threads: int) -> None:
        """One training and its answers to the test jets, in a process of their own.

        A finished one is not done again.
        """
        folder = self.folder(task)
        if (folder / "answers.npz").exists():
            return
        network, variant = NETWORKS[task.network], self.variant(task)
        flags = {
            **{
                "num-epochs": self.epochs(task.network),
                "seed": task.seed,
                "data-fraction": network.share,
                "data-fraction-val": network.share,
            },
            **{"precision": "auto", "tensorboard-log-dir": "none", **variant.flags(network)},
            "network-option": ",".join(
                f"{name}:{value}" for name, value in variant.options(network).items()
            ),
        }
        start = time.monotonic()
        self.weaver(
            task,
            threads,
            {
                **{f"data-{part}": self.dataset(task, part).folder for part in SPLITS},
                "predict-output": folder / "partial.npz",
                **flags,
            },
        )
        (folder / "time.json").write_text(
            json.dumps({"seconds": time.monotonic() - start, "threads": threads})
        )
        (folder / "partial.npz").rename(folder / "answers.npz")

    def weaver(self, task: Task, threads: int, flags: dict[str, Any]) -> None:
        """One call of weaver.train for a task.

        Raises JecError with its last lines where it fails.
        """
        folder = self.folder(task)
        folder.mkdir(parents=True, exist_ok=True)
        common = {
            "data-config": self.config(task),
            "network-config": NETWORKS[task.network].file,
            "model-prefix": f"{folder}/",
        }
        command = [sys.executable, "-m", "weaver.train", "--regression-mode"]
        command += [
            word
            for name, value in {**common, **flags}.items()
            for word in (f"--{name}", str(value))
        ]
        with (folder / "log.txt").open("a") as log:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=with_allocator(threads),
                stdout=log,
                stderr=log,
                timeout=TRAINING_SECONDS,
                check=False,
            ).returncode
        if code:
            raise JecError(
                f"{task} ended with exit code {code}; the last lines of"
                f" {log.name}:\n{(folder / 'log.txt').read_text()[-2000:]}"
            )

    def train_all(self, tasks: Sequence[Task]) -> None:
        """All trainings: those of `full` with the first seed by themselves, then the others.

        The first ones have all cores, for their time; the others run side by side.
        """
        times = [
            task
            for task in tasks
            if task.variant == "full" and task.seed == self.arguments.seeds[0]
        ]
        with Progress("training", total=len(tasks), unit="networks") as progress:
            for task in tasks:  # decoded before the trainings that share them
                for part in ("train", "val", "test"):
                    self.dataset(task, part)
            for task in times:
                self.train(task, self.arguments.workers)
                progress.advance(1)
            with concurrent.futures.ThreadPoolExecutor(self.arguments.workers) as pool:
                for _ in pool.map(
                    lambda task: self.train(task, 1), [task for task in tasks if task not in times]
                ):
                    progress.advance(1)


# -------------------------------------------------------------------------------------- judgement


class Judge:
    """All answers of one network's trainings to the same test jets."""

    def __init__(self, bench: Bench, network: str, tasks: Sequence[Task]) -> None:
        """Load the answers of all trainings of a network to the test jets."""
        self.bench = bench
        self.network = network
        self.tasks = [task for task in tasks if task.network == network]
        self.columns = bench.dataset(self.tasks[0], "test").observers()
        self.answers = {task: self._answers(task) for task in self.tasks}
        self.trees = bench.tree_answers(network)
        self.variants = list(dict.fromkeys(task.variant for task in self.tasks))
        self.quantiles = self._quantiles()

    @property
    def num_training_jets(self) -> int:
        """Jets that each network was trained on."""
        jets = self.bench.dataset(self.tasks[0], "train")
        return round(len(jets) * NETWORKS[self.network].share)

    @property
    def sample(self) -> str:
        """The networks as the sections of the report begin, with jets that were not generated."""
        words = [self.network]
        if self.bench.arguments.data_train:
            words.append(f"{self.num_training_jets:,} training jets")
        return ", ".join([*words, *(f"without {name}" for name in self.bench.lacks)])

    def _answers(self, task: Task) -> np.ndarray:
        """The answers log(pT_gen / pT) for all test jets, (N,).

        Raises JecError where they are other jets than the first variant's.
        """
        if not np.array_equal(
            self.bench.dataset(task, "test").observers()["genJetPt"], self.columns["genJetPt"]
        ):
            raise JecError(f"{task} was tested on other jets")
        with np.load(self.bench.folder(task) / "answers.npz") as answers:
            return answers["output"].reshape(len(self.columns["genJetPt"]), -1)[:, 0]

    def _quantiles(self) -> dict:
        """Bootstrap draws of every training's response at once.

        So all differences are paired.
        """
        gen_pt, jet_pt = self.columns["genJetPt"], self.columns["jetPt"]
        responses = {"standard": r.response(jet_pt, gen_pt)}
        responses |= {
            task: r.response(r.calibrated_pt(jet_pt, output), gen_pt)
            for task, output in {**self.answers, **self.trees}.items()
        }
        is_finite = np.all([np.isfinite(values) for values in responses.values()], axis=0)
        groups = {
            region: (
                r.Bin(region=region, low=r.PT_EDGES[0], high=math.inf).contains(
                    gen_pt[is_finite], self.columns["genJetEta"][is_finite]
                )
            )
            for region in REGIONS
        }
        with Progress(f"bootstrap, {self.network}", total=REPLICATES + 1, unit="draws") as progress:
            kept_responses = {name: values[is_finite] for name, values in responses.items()}
            return bootstrap_quantiles(
                kept_responses, groups, replicates=REPLICATES, advance=progress.advance
            )

    def gains(self, variant: str, region: str) -> np.ndarray:
        """Gain of resolution over the standard JEC in per cent, (seeds, draws).

        Draw 0 is the sample itself.
        """
        tasks = [task for task in self.tasks if task.variant == variant]
        return np.stack(
            [
                r.gain(self.quantiles[task][region], self.quantiles["standard"][region])
                for task in tasks
            ]
        )

    def tree_row(self, name: str) -> list[str]:
        """The line of a variant of TREES: gain by region, and what `full` gains beside it."""
        gains = {}
        for region in REGIONS:
            standard = self.quantiles["standard"][region]
            gains[region] = r.gain(self.quantiles[name][region], standard)
        beside = self.gains("full", "all").mean(axis=0) - gains["all"]
        return [name, *(_interval(gains[region]) for region in REGIONS), _interval(beside)]

    def row(self, variant: str) -> list[str]:
        """A variant's line: gain by region, spread of the seeds, loss.

        `beside full` is what the variant gains or loses, in points of the gain.
        """
        whole = self.gains(variant, "all")
        cells = [_interval(self.gains(variant, region).mean(axis=0)) for region in REGIONS]
        missing_text = (
            _interval(whole.mean(axis=0) - self.gains("full", "all").mean(axis=0))
            if variant != "full"
            else ""
        )
        errors = Spread.of(
            self.absolute_error(task) for task in self.tasks if task.variant == variant
        )
        return [
            variant,
            *cells,
            f"{len(whole)}: {whole[:, 0].min():.2f} - {whole[:, 0].max():.2f}",
            missing_text,
            errors.text(".5f"),
        ]

    def absolute_error(self, task: Task) -> float:
        """Mean absolute error of log(pT_gen / pT) over the test jets with |target| < 1.

        This is the published AvgLoss.
        """
        target = np.log(self.columns["genJetPt"] / self.columns["jetPt"])
        near = np.abs(target) < 1
        return float(np.abs(self.answers[task] - target)[near].sum() / len(target))

    def results_of(self, variant: str) -> dict:
        """The results that a run's report would show for the first seed's network."""
        task = next(task for task in self.tasks if task.variant == variant)
        return metrics.measure(self.columns, self.answers[task], replicates=REPLICATES)


def _interval(rows: np.ndarray) -> str:
    gain = interval(rows)
    return f"{gain['value']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]"


def write_ablation(report: Report, judge: Judge, arguments: argparse.Namespace) -> None:
    """Write the table of variants."""
    network = NETWORKS[judge.network]
    jets = judge.num_training_jets
    passes = jets * judge.bench.epochs(judge.network)
    heads = [f"gain, {region} (%)" for region in REGIONS]
    report.section(
        f"{judge.sample}: what each choice brings",
        columns=["variant", *heads, "seeds: all", "beside full (points)", "absolute error"],
        rows=[judge.row(variant) for variant in judge.variants],
        notes=[
            *(f"All variants are without {name}, full too." for name in judge.bench.lacks),
            (
                f"{jets:,} training jets, {len(judge.columns['genJetPt']):,} test jets, seeds"
                f" {', '.join(map(str, arguments.seeds))}, {judge.bench.epochs(judge.network)}"
                f" epochs, {network.options}, {network.flags}."
            ),
            (
                "gain: of IQR / median over the standard JEC for pT > 30 GeV, mean over the seeds,"
                " with the 95 % interval of the test jets."
            ),
            (
                "beside full: the difference of the gains on the same jets, draw by draw. absolute"
                " error: of log(pT_gen / pT), seeds' median (least - most). seeds: how many, and"
                " the least and the largest of their gains."
            ),
            (
                "The published models were trained for 50 epochs on 845,038 jets,"
                f" {PUBLISHED_PASSES / passes:.0f} times as many passes of a jet as here: where"
                " open gains nothing, this training was too short for it, which is not to say that"
                " it would never gain."
            ),
        ],
        gains={
            v: {region: judge.gains(v, region)[:, 0].tolist() for region in REGIONS}
            for v in judge.variants
        },
    )


def write_trees(report: Report, judge: Judge) -> None:
    """Boosted trees on the same jets, beside the network with all inputs."""
    heads = [f"gain, {region} (%)" for region in REGIONS]
    report.section(
        f"{judge.sample}: beside boosted trees",
        columns=["trees on", *heads, "full beside them (points)"],
        rows=[judge.tree_row(name) for name in TREES],
        notes=[
            (
                "Trees: scikit-learn's histogram-based gradient boosting with the absolute error as"
                " its loss (physics/boosted_trees.py), trained on the same jets as the network."
            ),
            (
                "full beside them: the difference of the gains on the same jets, draw by draw, with"
                " the mean gain of the seeds."
            ),
        ],
    )


def write_headline(report: Report, judge: Judge) -> None:
    """Gain by pT, closure from 60 GeV up, flavour spread and training time of full and open."""
    variants = [name for name in ("full", "open") if name in judge.variants]
    results = {name: judge.results_of(name) for name in variants}
    rows = []
    for region in ("barrel", "endcap"):
        for gain_bin in (
            record for record in results["full"]["bins"] if record["region"] == region
        ):
            other = [
                _value(next(b for b in results[n]["bins"] if _place(b) == _place(gain_bin))["gain"])
                for n in variants
            ]
            rows.append([f"gain (%), {region}", f"{gain_bin['pt_range']} GeV", *other])
    for number, closure_bin in enumerate(results["full"]["closure"]["bins"]):
        bins = [100 * _array(results[n]["closure"]["bins"][number]["model"]) for n in variants]
        rows.append(
            [
                f"closure (%), {closure_bin['region']}",
                f"{closure_bin['pt_range']} GeV",
                *(f"{b[0]:+.2f} [{b[1]:+.2f}, {b[2]:+.2f}]" for b in bins),
            ]
        )
    for region in results["full"]["flavour"]["regions"]:
        reductions = [
            _value(results[n]["flavour"]["regions"][region]["reduction"]) for n in variants
        ]
        rows.append(
            [
                f"flavour spread taken off (%), {region}",
                f"above {results['full']['flavour']['from_gev']:g} GeV",
                *reductions,
            ]
        )
    seconds = json.loads((judge.bench.folder(judge.tasks[0]) / "time.json").read_text())
    report.section(
        f"{judge.sample}: beside the standard JEC",
        columns=["quantity", "where", *variants],
        rows=rows,
        notes=[
            (
                f"The first seed's networks. Training of full and its answers to the test jets took"
                f" {seconds['seconds']:.0f} s on {seconds['threads']} threads,"
                f" {judge.bench.epochs(judge.network)} epochs."
            ),
            (
                "Below 60 GeV the cut on the reconstructed pT biases the response of any"
                " calibration, so closure is stated from there."
            ),
        ],
    )


def _place(record: dict) -> tuple:
    return record["region"], record["pt_range"]


def _array(record: dict) -> np.ndarray:
    return np.array([record["value"], record["low"], record["high"]])


def _value(record: dict | None) -> str:
    """A number with its interval; nothing can be taken off a spread that may be zero."""
    if record is None:
        return "not measured"
    return f"{record['value']:+.1f} [{record['low']:+.1f}, {record['high']:+.1f}]"


# ----------------------------------------------------------------------------------- command line


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """The trainings of the command line.

    ParticleNet, which takes long on a CPU, has `full` and `open` alone unless others are named.
    Raises InputError for a variant that does not exist.
    """
    variants_of_all = arguments.variants.split(",") if arguments.variants else None
    for name in variants_of_all or ():
        if name not in VARIANTS:
            raise InputError(unknown("variant", name, VARIANTS))
    of_network = {
        name: variants_of_all or (list(VARIANTS) if name == "pfn" else ["full", "open"])
        for name in arguments.only.split(",")
    }
    return [
        Task(name, variant, seed)
        for name, variants in of_network.items()
        for seed in arguments.seeds
        for variant in variants
    ]


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing, judge everything, write the results."""
    tasks = tasks_of(arguments)
    bench = Bench(arguments)
    if arguments.ended:
        tasks = [task for task in tasks if (bench.folder(task) / "answers.npz").exists()]
    bench.train_all(tasks)
    report = Report("physics", "What the networks gain on generated jets, and what brings it")
    for network in dict.fromkeys(task.network for task in tasks):
        judge = Judge(bench, network, tasks)
        write_ablation(report, judge, arguments)
        write_trees(report, judge)
        write_headline(report, judge)
    report.save()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = Parser(
        prog="python -m benchmarks.physics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="jets, trainings and answers are kept here"
    )
    parser.add_argument(
        "--only", default="pfn,particle_net", help="networks (default: pfn,particle_net)"
    )
    parser.add_argument(
        "--variants",
        default="",
        help=(
            "comma-separated; full must be among them (default: all of pfn, full,open of"
            " ParticleNet)"
        ),
    )
    parser.add_argument(
        "--lacks",
        default="",
        help="options of full that all variants go without, comma-separated: norm, loss, ema-decay",
    )
    parser.add_argument(
        "--ended", action="store_true", help="train no more; judge the trainings that have ended"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--jets", type=int, default=100_000, help="training jets; a fifth as many for validation"
    )
    parser.add_argument("--test-jets", type=int, default=60_000)
    for part in SPLITS:
        parser.add_argument(
            f"--data-{part}",
            metavar="PATTERN",
            help="files of jets that are there already; with all three, none are generated",
        )
    parser.add_argument(
        "--epochs", type=int, help="of every training (default: 10 for pfn, 25 for ParticleNet)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="trainings at a time, one thread each"
    )
    arguments = parser.parse_args(argv)
    splits = [part for part in SPLITS if getattr(arguments, f"data_{part}")]
    if splits and len(splits) < len(SPLITS):
        parser.error("--data-train, --data-val and --data-test go together")
    arguments.folder = arguments.folder.absolute()
    return run_main(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
