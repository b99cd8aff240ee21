"""prepare: parse every parameter once, fix the run id, check and decode the data, and write
run.json, which makes the run.

Everything that can be refused is refused before anything is written. The later steps take the run's
URI and little else.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from clusters.katib import check_experiment
from common import storage
from common.cli import Parser, run_main
from common.config import AUTO, NONE, RunConfig, add_arguments, flag
from common.errors import InputError, JecError
from common.project import ROOT, here, is_own
from common.records import DataSet, RunRecord
from common.run import Run, make_run_id, slug
from components import step
from training.experiment import experiment
from training.network_options import check_builds, check_options
from training.search_space import check_algorithm, for_network, load, to_json

SPLITS = ("train", "val", "test")
SAMPLE = "sample"
MAY_CHANGE = ("max_trials", "parallel_trials", "max_failed_trials", "goal", "deadline_hours")
"""Parameters that a run may be gone on with otherwise: no trial that has ended would have ended
otherwise by them.
"""
SHARED = 0.001
"""Of a set's jets may be in another one too: a production has a few twice by itself, a leaked file
is far more.
"""
PACKAGES = (
    "kfp",
    "torch",
    "onnx",
    "onnxruntime",
    "uproot",
    "awkward",
    "numpy",
    "optuna",
    "kserve",
    "kubeflow-katib",
)


def prepare(
    config: RunConfig, job_id: str, run_output: str = "", artifacts: step.Artifacts | None = None
) -> Run:
    """Make the run's folder and return the run.

    Of a run that is whole it notes the status and the parameters that may change, and decodes data
    that were cleared away. Raises InputError for data, configurations, a network or a search space
    that cannot be used, before anything is written.
    """
    if config.run_id == AUTO:
        config = config.replace(run_id=make_run_id(config.network_config, job_id))
    if config.s3_bucket == AUTO:
        raise InputError(
            "--s3-bucket is 'auto': give s3://bucket/prefix, where the pods of the run can read and"
            " write"
        )
    config = config.replace(
        s3_bucket=storage.absolute(config.s3_bucket),
        user=step.user(config),
        baseline=_baseline(config),
    )
    run = Run(config=config)
    whole = storage.exists(run.path("run.json"))
    inputs = _Inputs(config, kept=run.path("config") if whole else NONE)
    run = Run(config=config.replace(search_space=to_json(inputs.space)))
    if whole:
        _check_same(run, inputs)
        if (before := Run.load(run.uri)).config != run.config:
            Run(config=run.config, record=before.record).save()
    step.write_output(run_output, run.uri)
    step.say(f"run {run.id} in {run.uri}")
    step.echo(run.config)
    if artifacts:
        artifacts.set("echo", content=_echo(run))
    missing = not whole or not _data_there(run)
    step.with_status(
        "prepare", run, lambda: _fill(run, inputs, job_id) if missing else None, job_id=job_id
    )
    return Run.load(run.uri)


def _baseline(config: RunConfig) -> str:
    """The earlier run's folder, whatever the working directory.

    Raises InputError where no run was evaluated there.
    """
    if config.baseline == NONE:
        return NONE
    uri = storage.absolute(config.baseline)
    if not storage.exists(storage.join(uri, "metrics.json")):
        raise InputError(
            f"--baseline {config.baseline} has no metrics.json; give the folder of a run that was"
            " evaluated"
        )
    return uri


def _echo(run: Run) -> str:
    """Every parameter as it was understood, as Kubeflow shows it beside the step; what is not the
    default is bold.
    """
    defaults = RunConfig().parameters()
    rows = []
    for name, value in run.config.parameters().items():
        if name != "search_space":
            bold = "**" if value != defaults[name] else ""
            rows.append(f"| {bold}{flag(name)}{bold} | `{value}` |")
    return "\n".join(
        [
            f"# {run.id}",
            "",
            "| parameter | value |",
            "|---|---|",
            *rows,
            "",
            "```json",
            run.config.search_space,
            "```",
            "",
        ]
    )


class _Inputs:
    """What the user named, read and checked: data configuration, network, search space, lists of
    files. `kept` is the folder of copies of a run that exists.
    """

    def __init__(self, config: RunConfig, kept: str = NONE) -> None:
        from weaver.config.data_config import DataConfig
        from weaver.network.network_file import NetworkFile

        data_config = _source(config.data_config, kept, "data.yaml")
        self.data_config_text = storage.read_bytes(data_config)
        self.data_config = DataConfig.load(data_config)
        network = _source(config.network_config, kept, "network.py")
        self.network_text = storage.read_bytes(network)
        self.space = for_network(load(config.search_space), config.network_config)
        check_options(self.space, config.network_config, self.network_text.decode())
        check_algorithm(self.space, config.algorithm)
        check_experiment(experiment(Run(config=config)))
        check_builds(
            self.space,
            NetworkFile(uri=config.network_config, source=self.network_text.decode()),
            self.data_config,
        )
        self.files, self.raw_model, self.skip_bad_files = (
            {},
            config.raw_model,
            config.skip_bad_files,
        )
        for split in SPLITS:
            pattern = getattr(config, f"data_{split}")
            if pattern != SAMPLE:
                self.find(split, pattern)
        self.check_apart()

    def find(self, split: str, pattern: str) -> None:
        """List the files of a split and check each of them against the data configuration."""
        from weaver.read import files

        self.files[split] = files.find(pattern)
        checked = files.check(
            self.files[split],
            self.data_config,
            for_training=split != "test",
            skip_bad_files=self.skip_bad_files,
        )
        if split == "val":  # the set that export takes its jets from
            self.check_raw_model(checked.files[0].entry)

    def check_raw_model(self, entry: storage.Entry) -> None:
        """Say before any training whether the data configuration can be part of a model that takes
        the files' own columns.
        """
        from weaver.onnx.raw_jets import raw_columns
        from weaver.onnx.raw_program import check_raw

        try:
            if self.raw_model != NONE:
                check_raw(self.data_config, raw_columns(entry, self.data_config))
        except InputError as error:
            if self.raw_model != AUTO:
                raise InputError(f"{error}; or leave --raw-model out") from None
            step.say(f"warning: no model that takes raw jets will be exported: {error}")

    def check_apart(self) -> None:
        """Refuse a file that is in two of the sets: what a model was chosen by says nothing of how
        good it is.
        """
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            both = {e.uri for e in self.files.get(one, [])} & {
                e.uri for e in self.files.get(other, [])
            }
            if both:
                raise InputError(
                    f"{min(both)} is in --data-{one} and in --data-{other}; the sets must have no"
                    " file in common"
                )


def _source(path: str, kept: str, name: str) -> str:
    """The file to read for a configuration that was given as `path`.

    A run that exists goes on with its own copy (`kept`/`name`) of a file of this project, which a
    later version of the project may have changed. A user's own file is read anew, and refused
    later if it has changed.
    """
    if kept == NONE or not is_own(path):
        return here(path)
    copy = storage.join(kept, name)
    if storage.read_bytes(copy) != storage.read_bytes(here(path)):
        step.say(f"{path} has changed since the run was made; it goes on with its copy {copy}")
    return copy


def _check_same(run: Run, inputs: _Inputs) -> None:
    """A folder of that id may only be the same run: equal parameters, configurations and data, or
    its trials would mean nothing.
    """
    before = Run.load(run.uri)
    then, now = before.config.parameters(), run.config.parameters()
    changed = [name for name in now if now[name] != then[name] and name not in MAY_CHANGE]
    different = [f"{flag(name)} was {then[name]!r}, now {now[name]!r}" for name in changed]
    for name, content in (
        ("data.yaml", inputs.data_config_text),
        ("network.py", inputs.network_text),
    ):
        if storage.read_bytes(run.path("config", name)) != content:
            different.append(f"config/{name} is not what the file holds now")
    for split, files in inputs.files.items():
        if before.record.data[split].fingerprint != storage.fingerprint(files):
            different.append(f"the files of --data-{split} have changed")
    if different:
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise InputError(
            f"run {run.id} exists with other inputs: {different[0]}{more}; leave --resume out for a"
            " new run"
        )


def _data_there(run: Run) -> bool:
    """Whether the decoded data that run.json names are still there; the cache may have been
    cleared.
    """
    return all(
        storage.exists(storage.join(data.dataset, "dataset.json"))
        for data in Run.load(run.uri).record.data.values()
    )


def _fill(run: Run, inputs: _Inputs, job_id: str = "") -> None:
    from weaver.prepared.prepare import prepare as decode

    config = run.config
    sample = (
        _sample(config) if SAMPLE in (config.data_train, config.data_val, config.data_test) else {}
    )
    for split, pattern in sample.items():
        if getattr(config, f"data_{split}") == SAMPLE:
            inputs.find(split, pattern)
    data, data_config = {}, inputs.data_config
    for split in SPLITS:
        ref = decode(
            inputs.files[split],
            data_config,
            config.s3_bucket,
            for_training=split != "test",
            validation=split == "val",
            skip_bad_files=config.skip_bad_files,
            report=step.say,
        )
        # with what was derived on the training set, which comes first
        data_config = ref.data_config
        storage.write_json(run.path("data", f"{split}.json"), {"dataset": ref.uri})
        data[split] = DataSet(
            dataset=ref.uri,
            jets=ref.num_jets,
            read=ref.num_read,
            files=len(inputs.files[split]),
            fingerprint=storage.fingerprint(inputs.files[split]),
        )
        if ref.reused:
            step.say(f"{split}: {ref.num_jets:,} jets, decoded before")
    shared = check_shared({split: one.dataset for split, one in data.items()})
    storage.write_bytes(run.path("config", "data.yaml"), inputs.data_config_text)
    storage.write_bytes(run.path("config", "network.py"), inputs.network_text)
    storage.write_text(run.path("config", "search_space.json"), run.config.search_space + "\n")
    Run(config=config, record=_record(data, shared, job_id)).save()


def check_shared(sets: Mapping[str, str]) -> dict[str, int]:
    """How many jets each two of the prepared sets have in common; {"train and test": 0, ...}.

    Raises InputError where they are more than SHARED: a copied, reordered or merged file is the
    same file under another name.
    """
    from weaver.prepared.shared_jets import shared_jets

    found = {}
    for one, other, number, jets in shared_jets(sets):
        found[f"{one} and {other}"] = number
        if number > SHARED * jets:
            raise InputError(
                f"{number:,} of the {jets:,} jets of --data-{other} are in --data-{one} as well, in"
                " files of other names; give each set jets of its own (python -m data.validate"
                f" '{one}:FILES' '{other}:FILES' looks at the files)"
            )
        if number:
            step.say(
                f"warning: {number:,} of the {jets:,} jets of --data-{other} are in --data-{one} as"
                " well"
            )
    return found


def _sample(config: RunConfig) -> dict[str, str]:
    from data.generator.sample import ensure_sample

    part = max(config.sample_jets // 4, 1)
    return ensure_sample(config.s3_bucket, jets=(config.sample_jets, part, part), seed=config.seed)


def _record(data: dict[str, DataSet], shared_jets: dict[str, int], job_id: str) -> RunRecord:
    """What run.json says beside the configuration: data, their fingerprint, versions, the commit of
    the code.
    """
    joined = "".join(data[split].fingerprint for split in SPLITS)
    versions = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        versions[package] = _version(package)
    return RunRecord(
        data=data,
        data_fingerprint=storage.digest(joined.encode()),
        versions=versions,
        git_commit=_git_commit(),
        images={"steps": os.environ.get("JEC_STEPS_IMAGE", "none")},
        shared_jets=shared_jets,
        kfp_run=job_id,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _git_commit() -> str:
    """The commit of the code: set in images, asked of git in a checkout ('+' where files differ
    from it).
    """
    if "JEC_GIT_COMMIT" in os.environ:
        return os.environ["JEC_GIT_COMMIT"]
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@contextlib.contextmanager
def _refusal_recorded(config: RunConfig, job_id: str) -> Iterator[None]:
    """On Kubeflow note in the run's folder why prepare refused: the exit handler tells it, and a
    repeated attempt ends at once.

    On one machine nothing is written for what was refused, as the reason stands on the screen.
    """
    if step.LOCAL_DIR in os.environ or not job_id or not storage.is_s3(config.s3_bucket):
        yield
        return
    run = Run(
        config=(
            config
            if config.run_id != AUTO
            else config.replace(run_id=make_run_id(config.network_config, job_id))
        )
    )
    step.refuse_repetition("prepare", run.uri, job_id)
    try:
        yield
    except InputError as error:
        with contextlib.suppress(JecError):
            step.write_failure(run, "prepare", error, job_id)
        raise


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m components.prepare", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--job-id", default="", help="KFP job id, of which the run id is made")
    parser.add_argument("--run-output", default="", help="file that gets the run's URI")
    parser.add_argument(
        "--executor-input", default="", help="KFP's executor input (JSON); by hand: leave it out"
    )
    args = parser.parse_args(argv)

    def body() -> None:
        step.use_endpoint(args.s3_endpoint)
        config = RunConfig.from_args(args)
        if config.run_id == AUTO and not args.job_id:
            raise InputError(
                f"give --job-id or --run-id, as --run-id {slug(config.network_config)}-00000001"
            )
        with _refusal_recorded(config, args.job_id):
            prepare(config, args.job_id, args.run_output, step.Artifacts(args.executor_input))

    step.stop_on_sigterm()
    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
