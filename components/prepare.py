"""prepare: parse every parameter once, fix the run id, check and decode the data, write run.json.

Everything that can be refused is refused before anything is written. The later steps take the run's
URI and little else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from clusters.pod_namespace import own_namespace
from clusters.registry import digest_of
from common import card, form, storage, tracking
from common.choices import SPLITS
from common.cli import Parser, run_main
from common.config import AUTO, NONE, SERVED, RunConfig, add_arguments, flag
from common.errors import InputError, InterruptedRun, JecError
from common.layout import RunFolder
from common.project import git_commit, here
from common.records import DataSet, RunRecord, ServiceRecord, StatusRecord
from common.run import Run, make_run_id, slug
from common.storage import space
from common.storage.addresses import local_path
from components import inputs as inputs_module
from components import lineage, model_registry, predictor, start_at, step, tracked, unchanged
from components.inputs import SAMPLE, Inputs
from components.steps import IMAGE_VARIABLE
from reporting import markdown
from training.experiment import REPLACING
from training.search_space import to_json
from weaver.fit import disk_need

RESUMABLE_PARAMETERS = (
    "max_trials",
    "parallel_trials",
    "max_failed_trials",
    "deadline_hours",
    "serving_cpus",
    "serving_memory",
    "rollout",
    "steps_cpus",
    "steps_memory",
    *REPLACING,
    "gate",
    "min_improvement",
    "max_closure",
    "max_resolution_ratio",
    "max_tail_ratio",
    "max_flavour_ratio",
    "max_coverage_points",
    "gate_regions",
    "service_account",
    "min_replicas",
    "max_replicas",
    "predictor_form",
    "experiment_name",
    "webhook_secret",
    "mlflow",
    "mlflow_secret",
    "model_registry",
    "model_registry_secret",
    "delete_train_experiment",
    "delete_export_job",
    "if_data_changed",
)
"""Parameters that may differ on resume, because they do not affect finished trials."""
MAX_SHARED = 0.001
"""The fraction of a set's jets that may be in another set too.

A production has a few jets twice by itself; a file that leaked is far more.
"""
REGISTRY_SECONDS = 5.0
PACKAGES = (
    "kfp",
    "torch",
    "onnx",
    "onnxruntime",
    "uproot",
    "awkward",
    "numpy",
    "optuna",
    "scikit-learn",
    "kserve",
    "kubeflow-katib",
)


def prepare(
    config: RunConfig, job_id: str, run_output: str = "", artifacts: step.Artifacts | None = None
) -> Run:
    """Make the run's folder and return the run.

    Of a run that is complete it notes the status and the parameters that may change, and decodes
    data that were cleared away. Raises InputError for data, configurations, a network or a search
    space that cannot be used, before anything is written.
    """
    config = named(config, job_id)
    if config.s3_bucket == AUTO:
        raise InputError(step.NO_BUCKET)
    config = config.replace(
        # later steps run in other working directories
        s3_bucket=storage.absolute(config.s3_bucket),
        user=step.user(config),
        namespace=namespace(config),
        baseline=baseline_folder(config),
    )
    config = tracking.settled(config, on_this_machine=step.LOCAL_DIR in os.environ)

    # Refuse what cannot be used.
    run = Run(config=config)
    complete = storage.exists(run.path("run.json"))
    inputs = checked_inputs(config, kept=run.path("config") if complete else NONE)
    predictor.check_keys_early(run)
    tracker = tracked.connected(config, resumed=complete)
    if not complete:
        model_registry.check(config)
    run = Run(config=config.replace(search_space=to_json(inputs.space)))
    missing = True
    if complete:
        before = Run.load(run.uri)
        check_same(before, run, inputs)
        # also where nothing has changed: an earlier version wrote the webhook's URL, a secret
        # the images may be others now, as the configuration says
        record = before.record
        if record.images != images(run.config):
            record = dataclasses.replace(
                record, images=images(run.config), image_digests=image_digests(run.config)
            )
        Run(config=run.config, record=record).save()
        # the cache of decoded data may have been cleared, or its disk damaged
        missing = not all(is_decoded(run, split) for split in before.record.data)
        missing |= not has_jet_columns(before)

    start_at.claim(run, job_id)
    step.write_output(run_output, run.uri)
    step.say(f"run {run.id} in {run.uri}")
    step.echo(run.config)
    if artifacts:
        artifacts.set("parameters", content=parameters_page(run))
    unchanged.forget(run)
    if not complete and config.if_data_changed:
        earlier = unchanged.earlier_success(run.config, unchanged.inputs_digest(run.config, inputs))
        if earlier:
            add_sample(inputs)
            if unchanged.data_fingerprint(inputs) == earlier.data_fingerprint:
                unchanged.end(run, earlier, artifacts, job_id)
                return run
    step.with_status(
        "prepare", run, lambda: fill(run, inputs, job_id) if missing else None, job_id=job_id
    )
    prepared = Run.load(run.uri)
    tracked.begin(tracker, prepared)
    if artifacts:
        lineage.publish_dataset(prepared, artifacts)
    jets = ", ".join(f"{data.jets:,} {split}" for split, data in prepared.record.data.items())
    step.say_result(f"{run.id} is prepared, with these jets: {jets}")
    return prepared


def is_decoded(run: Run, split: str) -> bool:
    """Whether the prepared data that a run's reference names are there, and whole."""
    from weaver.prepared.columns import referred  # late: it imports awkward

    reference = run.folder.data(split)
    content = storage.find_json(reference)
    return content is not None and is_whole(referred(reference, content["dataset"]))


def has_jet_columns(run: Run) -> bool:
    """Whether the jet-level columns that a run recorded are there, and whole."""
    from weaver.prepared.columns import referred  # late: it imports awkward

    reference = run.folder.data("test")
    return all(is_whole(referred(reference, uri)) for uri in run.record.jet_columns.values())


def is_whole(dataset: str) -> bool:
    """Whether prepared data is there and, on a disk, as it was written."""
    from weaver.prepared.columns import damage, is_prepared  # late: it imports awkward

    if not is_prepared(dataset):
        return False
    return not storage.is_local(dataset) or not damage(Path(dataset))


def named(config: RunConfig, job_id: str) -> RunConfig:
    """The configuration with the run id of a KFP job where it has none of its own."""
    if config.run_id != AUTO:
        return config
    return config.replace(run_id=make_run_id(config.network_config, job_id))


def namespace(config: RunConfig) -> str:
    """The namespace of the run's objects; 'auto' stays on one machine."""
    if config.namespace != AUTO or step.LOCAL_DIR in os.environ:
        return config.namespace
    return own_namespace() or AUTO


def baseline_folder(config: RunConfig) -> str:
    """Return the earlier run's folder, whatever the working directory.

    Raises InputError where no run was evaluated there, or none was deployed.
    """
    if config.baseline == NONE:
        return NONE
    if config.baseline == SERVED:
        return served_run(config)
    uri = storage.absolute(config.baseline)
    if not storage.exists(storage.join(uri, "metrics.json")):
        raise InputError(
            f"--baseline {config.baseline} has no metrics.json; give the folder of a run that was"
            " evaluated"
        )
    return uri


def served_run(config: RunConfig) -> str:
    """Return the folder of the run that was deployed last under this run's service name.

    Only runs of this storage count. Raises InputError where there is none.
    """
    place, name = storage.absolute(config.s3_bucket), Run(config=config).model_name
    times = {}
    for entry in storage.glob(storage.join(place, "*", "service.json")):
        folder = RunFolder(entry.uri.rsplit("/", 1)[0])
        service, status = ServiceRecord.find(folder.service), StatusRecord.find(folder.status)
        deployed = status.steps.get("deploy") if status else None
        # A run that goes on with --resume is no baseline of its own.
        if storage.name(folder.uri) == config.run_id or not storage.exists(folder.metrics):
            continue
        if service and service.name == name and deployed:
            times[folder.uri] = deployed.time
    if not times:
        raise InputError(
            f"--baseline {SERVED}: no run in {place} was deployed as {name}; leave"
            " --baseline out, or give the folder of a run that was evaluated"
        )
    return max(times, key=times.__getitem__)


def parameters_page(run: Run) -> str:
    """Return every parameter as it was understood, for Kubeflow to show beside the step.

    Those that differ from the default come first; the search space is JSON in a block of its own.
    """
    defaults, values = RunConfig().parameters(), run.config.parameters()
    space = values.pop("search_space")
    changed: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for name, value in values.items():
        rows = changed if value != defaults[name] else others
        rows.append((flag(name), markdown.code(value)))
    head = ["parameter", "value"]
    parts = [f"# {run.id}\n"]
    if changed:
        parts += ["Not the default:\n", markdown.table(head, changed)]
    parts += ["The defaults:\n", markdown.table(head, others)]
    indented = json.dumps(json.loads(str(space)), indent=2)
    parts += ["Search space:\n", markdown.block(indented, "json", wrap=False)]
    return "\n".join(parts)


def checked_inputs(config: RunConfig, kept: str) -> Inputs:
    """Run every check on what the configuration names. Raises InputError as the checks do."""
    inputs = Inputs(config, kept)
    for path, name in ((config.data_config, "data.yaml"), (config.network_config, "network.py")):
        place = inputs.place(path, name)
        if place != here(path) and storage.read_bytes(place) != storage.read_bytes(here(path)):
            step.say(f"{path} has changed since the run was made; it goes on with its copy {place}")
    for check in (*inputs_module.OF_CONFIGURATION, *inputs_module.OF_DATA):
        say_warning(check.run(inputs))
    return inputs


def say_warning(result: inputs_module.Result) -> None:
    """Print the warning of a check, if it has one."""
    if result.warning:
        step.say(f"warning: {result.warning}")


def check_same(before: Run, run: Run, inputs: Inputs) -> None:
    """Refuse to resume a run with other inputs, because its trials would mean nothing.

    Raises InputError with the first difference of parameters, configurations and data.
    """
    # earlier versions wrote down 'auto' for the pod's own namespace
    before_now = before.config.replace(namespace=namespace(before.config))
    then, now = before_now.parameters(), run.config.parameters()
    different = []
    for name, value in now.items():
        if value != then[name] and name not in RESUMABLE_PARAMETERS:
            different.append(f"{flag(name)} was {then[name]!r}, now {value!r}")
    if storage.read_bytes(run.path("config", "data.yaml")) != inputs.data_config_text:
        different.append("config/data.yaml is not what the file holds now")
    if storage.read_bytes(run.path("config", "network.py")) != inputs.network.source.encode():
        different.append("config/network.py is not what the file holds now")
    for path, content in inputs.network.siblings.items():
        copy = run.path("config", path)
        if not storage.exists(copy) or storage.read_bytes(copy) != content:
            different.append(
                f"config/{path} is not what the file beside the network file holds now"
            )
    for split, files in inputs.files.items():
        if before.record.data[split].fingerprint != storage.fingerprint(files):
            different.append(f"the files of --data-{split} have changed")
    changed = [name for name in RESUMABLE_PARAMETERS if now[name] != then[name]]
    if changed and not different:
        for name in changed:
            step.say(f"goes on with --{flag(name)} {now[name]} in place of {then[name]}")
        fixed = [f"--{flag(name)}" for name in changed if name in REPLACING]
        if fixed and step.LOCAL_DIR not in os.environ and not storage.exists(run.folder.search):
            step.say(
                f"an Experiment that has begun cannot change {', '.join(fixed)}: another one"
                " follows for what is left of the search; finished trials count, and those under"
                " way resume from their checkpoints"
            )
    if different:
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise InputError(
            f"run {run.id} exists with other inputs: {different[0]}{more}; leave --resume out for a"
            " new run"
        )


def add_sample(inputs: Inputs) -> None:
    """Generate the jets of the sets that are to be the sample, and check their files."""
    from data.generator.sample import ensure_sample

    sampled = [split for split in SPLITS if inputs.patterns[split] == SAMPLE]
    if not sampled:
        return
    config = inputs.config
    # validation and test get a quarter as many each, as --sample-jets says
    part = max(config.sample_jets // 4, 1)
    sample = ensure_sample(
        config.s3_bucket, jets=(config.sample_jets, part, part), seed=config.seed_number
    )
    for split in sampled:
        inputs.patterns[split] = sample[split]
        inputs_module.check_files(inputs, split)
    if "val" in sampled:
        say_warning(inputs_module.check_raw_model(inputs))


def fill(run: Run, inputs: Inputs, job_id: str = "") -> None:
    """Decode the data, copy the configurations, and write run.json last, which makes the run."""
    from components.gate_inputs import missing_of_jets
    from weaver.network.siblings import write_siblings

    # before the files of a sample take the place of the word
    inputs_digest = unchanged.inputs_digest(run.config, inputs)
    add_sample(inputs)
    say_disk_need(run, inputs)
    sets = decode_sets(run, inputs)
    jet_columns, no_jet_columns = decode_jet_columns(run, inputs)
    # Only the decoded momenta show that files of other names hold the same jets.
    shared = check_shared({split: data.dataset for split, data in sets.items()})
    for reason in missing_of_jets(sets["test"].dataset, run.config):
        step.say(f"warning: the gate will refuse the model: {reason}")

    storage.write_bytes(run.path("config", "data.yaml"), inputs.data_config_text)
    storage.write_text(run.path("config", "network.py"), inputs.network.source)
    write_siblings(inputs.network.siblings, run.path("config"))
    storage.write_text(run.path("config", "search_space.json"), run.config.search_space + "\n")
    card.keep(run.config.card, run.path("config"))
    record = RunRecord(
        data=sets,
        data_fingerprint=unchanged.data_fingerprint(inputs),
        jet_columns=jet_columns,
        no_jet_columns=no_jet_columns,
        versions=versions(),
        git_commit=git_commit(),
        images=images(run.config),
        image_digests=image_digests(run.config),
        shared_jets=shared,
        kfp_run=job_id,
        inputs_digest=inputs_digest,
    )
    Run(config=run.config, record=record).save()


MODELS = 8  # times the weights: both forms of the model, as ONNX, beside the trial's own files
PAGES = 30 * 10**6  # bytes of reports, figures, golden requests and records


def say_disk_need(run: Run, inputs: Inputs) -> None:
    """Say what a run may write to a disk of this machine; warn where there is less room.

    It is no error, because a selection may leave most jets out, and data may be decoded already.
    """
    if not storage.is_local(run.uri) or inputs.parameters is None:
        return
    data = sum(
        file.bytes_per_entry * file.num_used
        for checked in inputs.checked.values()
        for file in checked.files
    )
    trials = run.config.max_trials * disk_need.trial_bytes(inputs.parameters)
    models = MODELS * disk_need.NUMBER * inputs.parameters + PAGES
    folder = local_path(run.config.s3_bucket)
    needed, free = int(data + trials + models), space.free_bytes(folder)
    line = (
        f"the run may take {space.shown(needed)} in {folder} (jets {space.shown(int(data))},"
        f" {run.config.max_trials} trials {space.shown(trials)}, models and reports"
        f" {space.shown(models)}); {space.shown(free)} are free"
    )
    step.say(line if needed <= free else f"warning: {line}")


def decode_sets(run: Run, inputs: Inputs) -> dict[str, DataSet]:
    """Decode the files of each split into the run's storage, or find them decoded there."""
    from weaver.prepared.columns import reference_to, where
    from weaver.prepared.prepare import prepare as decode

    config = run.config
    sets: dict[str, DataSet] = {}
    data_config = inputs.known_data_config
    for split in SPLITS:
        ref = decode(
            inputs.files[split],
            data_config,
            config.s3_bucket,
            # Weaver has another selection for the test set, test_time_selection.
            for_training=split != "test",
            validation=split == "val",
            skip_bad_files=config.skip_bad_files,
            report=step.say,
        )
        # with what was derived on the training set, which comes first
        data_config = ref.data_config
        reference = run.folder.data(split)
        storage.write_json(reference, reference_to(ref.uri, reference))
        sets[split] = DataSet(
            dataset=ref.uri,
            jets=ref.num_jets,
            read=ref.num_read,
            files=len(inputs.files[split]),
            fingerprint=storage.fingerprint(inputs.files[split]),
        )
        if ref.reused:
            step.say(f"{split}: {ref.num_jets:,} jets, decoded before")
        if storage.is_local(ref.uri):
            step.say(f"{split}: decoded jets in {where(Path(local_path(ref.uri)))}")
    return sets


def decode_jet_columns(run: Run, inputs: Inputs) -> tuple[dict[str, str], str]:
    """Decode the jet-level columns that evaluate needs, in prepared data of their own.

    Returns split -> URI of the prepared folder, or why there is none: the report then goes without
    them, so that no run fails for a column that its network does not need.
    """
    from evaluating import jet_columns
    from weaver.config.data_config import DataConfig
    from weaver.prepared.prepare import prepare as decode
    from weaver.read.files import branch_names

    branches: set[str] | None = None
    for checked in inputs.checked.values():
        of_split = set(branch_names(checked.files[0]))
        branches = of_split if branches is None else branches & of_split
    sets: dict[str, str] = {}
    try:
        columns = jet_columns.of_files(inputs.known_data_config, branches or ())
        if columns.reason:
            return {}, columns.reason
        config = DataConfig.from_options(columns.options, run.folder.jet_columns)
        for split in SPLITS:
            ref = decode(
                inputs.files[split],
                config,
                run.config.s3_bucket,
                for_training=split != "test",
                validation=split == "val",
                skip_bad_files=run.config.skip_bad_files,
                report=lambda line: None,  # what is wrong with the files was said before
            )
            # with the histograms of a reweighting, made of the training set, which comes first
            config = ref.data_config
            sets[split] = ref.uri
    except InputError as error:
        return {}, str(error)
    storage.write_json(run.folder.jet_columns, columns.options)
    return sets, ""


def check_shared(sets: Mapping[str, str]) -> dict[str, int]:
    """Count the jets that each two of the prepared sets have in common: {"train and test": 0, ...}.

    sets: name -> URI of the prepared folder. Raises InputError where they are more than MAX_SHARED:
    a copied, reordered or merged file is the same file under another name.
    """
    from weaver.prepared.shared_jets import shared_jets

    counts = {}
    for one, other, number, jets in shared_jets(sets):
        counts[f"{one} and {other}"] = number
        if number > MAX_SHARED * jets:
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
    return counts


def images(config: RunConfig) -> dict[str, str]:
    """Return the images of the run by name, as the user named them; on one machine 'none'."""
    if step.LOCAL_DIR in os.environ:
        return {"steps": NONE, "weaver": NONE}
    return {"steps": os.environ.get(IMAGE_VARIABLE, NONE), "weaver": config.weaver_image}


def image_digests(config: RunConfig) -> dict[str, str | None]:
    """Return the digests of the run's images as far as they can be known; empty on one machine.

    A tag is asked of its registry, without waiting long: pods may not reach it.
    """
    named = images(config).items()
    return {
        name: digest_of(image, seconds=REGISTRY_SECONDS)
        for name, image in named
        if step.LOCAL_DIR not in os.environ
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that make the results; 'none' is absent."""
    known = {"python": sys.version.split(maxsplit=1)[0]}
    for package in PACKAGES:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known[package] = "none"
    return known


@contextlib.contextmanager
def failure_recorded(config: RunConfig, job_id: str) -> Iterator[None]:
    """Note in the run's folder why prepare refused or failed, on Kubeflow.

    The exit handler tells it, and the attempt after a refusal ends at once. A failure that may pass
    is noted as well: data that cannot be reached or read (seen with a missing login for XRootD). On
    one machine nothing is written, as the reason stands on the screen.
    """
    if step.LOCAL_DIR in os.environ or not job_id or not storage.is_s3(config.s3_bucket):
        yield
        return
    run = Run(config=named(config, job_id))
    step.refuse_repetition("prepare", run.uri, job_id)
    try:
        yield
    except InterruptedRun:
        raise
    except Exception as error:
        # a storage that fails as well must not hide why prepare failed
        with contextlib.suppress(JecError):
            step.write_failure(run, "prepare", error, job_id)
        raise


def place(args: argparse.Namespace) -> RunConfig:
    """A configuration that says where the run's folder is, whatever the other arguments are."""
    return RunConfig(
        s3_bucket=args.s3_bucket, run_id=args.run_id, network_config=args.network_config
    )


def configuration(parser: argparse.ArgumentParser, argv: list[str] | None) -> RunConfig:
    """The configuration of the arguments; what `--settings` names are the defaults of the flags.

    Raises InputError for settings and for values that cannot be meant.
    """
    settings = parser.parse_args(argv).settings
    parser.set_defaults(**form.fields_of_settings(settings))
    return RunConfig.from_args(parser.parse_args(argv))


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = Parser(prog="python -m components.prepare", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--settings",
        default="{}",
        metavar="JSON",
        help="the parameter `settings` of Kubeflow's form: the defaults of the other flags",
    )
    parser.add_argument("--job-id", default="", help="KFP job id, of which the run id is made")
    parser.add_argument("--run-output", default="", help="file that gets the run's URI")
    parser.add_argument(
        "--executor-input", default="", help="KFP's executor input (JSON); by hand: leave it out"
    )
    args = parser.parse_args(argv)

    def body() -> None:
        step.use_endpoint(args.s3_endpoint)
        if args.run_id == AUTO and not args.job_id:
            raise InputError(
                f"give --job-id or --run-id, as --run-id {slug(args.network_config)}-00000001"
            )
        with failure_recorded(place(args), args.job_id):
            config = configuration(parser, argv)
            prepare(config, args.job_id, args.run_output, step.Artifacts(args.executor_input))

    def is_last() -> bool:
        run = Run(config=named(place(args), args.job_id))
        return step.is_last_attempt("prepare", run.uri, args.job_id)

    step.stop_on_sigterm()
    return run_main(step.patient(body, args.job_id, is_last))


if __name__ == "__main__":
    raise SystemExit(main())
