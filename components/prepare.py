"""prepare: parse the parameters, choose the run id, check and decode the data, write run.json.

Everything that can be refused is refused before anything is written. The later steps read all
parameters from run.json and get only the run's URI.
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
from common.run import Run, kubernetes_name, make_run_id
from common.storage import space
from common.storage.addresses import local_path
from components import inputs as inputs_module
from components import lineage, model_registry, predictor, start_at, step, tracked, unchanged
from components.inputs import SAMPLE, Inputs
from components.steps import IMAGE_VARIABLE
from reporting import markdown
from training.experiment import CHANGEABLE_PARAMETERS
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
    *CHANGEABLE_PARAMETERS,
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
"""Maximum fraction of a set's jets that may be in another set too.

A production may contain a few jets twice; a file that is in two sets by mistake exceeds this.
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
    """Create the run's folder, or update that of a run to resume; return the run.

    For an existing run it updates the status and the RESUMABLE_PARAMETERS, and decodes data again
    that were removed.

    Raises:
        InputError: an input cannot be used, or an existing run has other inputs. Nothing is
            written before.
    """
    config = with_run_id(config, job_id)
    if config.s3_bucket == AUTO:
        raise InputError(step.NO_BUCKET)
    config = config.replace(
        # later steps run in other working directories
        s3_bucket=storage.absolute(config.s3_bucket),
        user=step.user(config),
        namespace=namespace(config),
        baseline=baseline_folder(config),
    )
    config = tracking.with_server_address(config, on_this_machine=step.LOCAL_DIR in os.environ)

    # Refuse what cannot be used.
    run = Run(config=config)
    is_complete = storage.exists(run.path("run.json"))
    inputs = check_inputs(config, copies_folder=run.path("config") if is_complete else NONE)
    predictor.check_keys_early(run)
    tracker = tracked.connect(config, is_resumed=is_complete)
    if not is_complete:
        model_registry.check(config)
    run = Run(config=config.replace(search_space=to_json(inputs.space)))
    is_missing = True
    if is_complete:
        before = Run.load(run.uri)
        check_same(before, run, inputs)
        # Always saved, because an earlier version wrote the webhook's URL, which is a secret. The
        # images may have changed.
        record = before.record
        if record.images != images(run.config):
            record = dataclasses.replace(
                record, images=images(run.config), image_digests=image_digests(run.config)
            )
        Run(config=run.config, record=record).save()
        # the cache of decoded data may have been cleared, or its disk damaged
        is_missing = not all(is_decoded(run, split) for split in before.record.data)
        is_missing |= not has_jet_columns(before)

    start_at.claim(run, job_id)
    step.write_output(run_output, run.uri)
    step.say(f"run {run.id} in {run.uri}")
    step.echo(run.config)
    if artifacts:
        artifacts.set("parameters", content=parameters_page(run))
    unchanged.forget(run)
    if not is_complete and config.if_data_changed:
        earlier = unchanged.earlier_success(run.config, unchanged.inputs_digest(run.config, inputs))
        if earlier:
            add_sample(inputs)
            if unchanged.data_fingerprint(inputs) == earlier.data_fingerprint:
                unchanged.end(run, earlier, artifacts, job_id)
                return run
    step.with_status(
        "prepare",
        run,
        lambda: fill_run_folder(run, inputs, job_id) if is_missing else None,
        job_id=job_id,
    )
    prepared_run = Run.load(run.uri)
    tracked.begin(tracker, prepared_run)
    if artifacts:
        lineage.publish_dataset(prepared_run, artifacts)
    jets = ", ".join(f"{data.jets:,} {split}" for split, data in prepared_run.record.data.items())
    step.say_result(f"{run.id} is prepared, with these jets: {jets}")
    return prepared_run


def is_decoded(run: Run, split: str) -> bool:
    """Return whether the prepared data of a split exist and are complete."""
    from weaver.prepared.columns import resolve_reference  # late: it imports awkward

    reference = run.folder.data(split)
    try:
        place = storage.find_object(reference).get("dataset")
    except InputError:  # a damaged file, which is written again
        return False
    return isinstance(place, str) and is_whole(resolve_reference(reference, place))


def has_jet_columns(run: Run) -> bool:
    """Return whether the jet-level columns of a run exist and are complete."""
    from weaver.prepared.columns import resolve_reference  # late: it imports awkward

    reference = run.folder.data("test")
    return all(
        is_whole(resolve_reference(reference, uri)) for uri in run.record.jet_columns.values()
    )


def is_whole(dataset: str) -> bool:
    """Return whether prepared data exist and, on a local disk, are undamaged."""
    from weaver.prepared.columns import damage, is_prepared  # late: it imports awkward

    if not is_prepared(dataset):
        return False
    return not storage.is_local(dataset) or not damage(Path(dataset))


def with_run_id(config: RunConfig, job_id: str) -> RunConfig:
    """Return the configuration with a run id; 'auto' becomes an id derived from the KFP job."""
    if config.run_id != AUTO:
        return config
    return config.replace(run_id=make_run_id(config.network_config, job_id))


def namespace(config: RunConfig) -> str:
    """Return the namespace of the run's objects: for 'auto' the pod's, on one machine 'auto'."""
    if config.namespace != AUTO or step.LOCAL_DIR in os.environ:
        return config.namespace
    return own_namespace() or AUTO


def baseline_folder(config: RunConfig) -> str:
    """Return the absolute folder of the run of --baseline, or 'none'.

    Raises InputError if it was not evaluated, or for 'served' if no run was deployed.
    """
    if config.baseline == NONE:
        return NONE
    if config.baseline == SERVED:
        return served_run(config)
    uri = storage.absolute(config.baseline)
    if not storage.exists(storage.join(uri, "metrics.json")):
        raise InputError(
            f"--baseline {config.baseline} has no metrics.json; give the folder of a run that was"
            " evaluated (python pipeline.py --list shows the gain of those)"
        )
    return uri


def served_run(config: RunConfig) -> str:
    """Return the folder of the run in this storage that was deployed last under the same name.

    Raises InputError if there is none.
    """
    place, name = storage.absolute(config.s3_bucket), Run(config=config).model_name
    times = {}
    for entry in storage.glob(storage.join(place, "*", "service.json")):
        folder = RunFolder(entry.uri.rsplit("/", 1)[0])
        service, status = ServiceRecord.find(folder.service), StatusRecord.find(folder.status)
        deploy_status = status.steps.get("deploy") if status else None
        # A resumed run is not its own baseline.
        if storage.name(folder.uri) == config.run_id or not storage.exists(folder.metrics):
            continue
        if service and service.name == name and deploy_status:
            times[folder.uri] = deploy_status.time
    if not times:
        raise InputError(
            f"--baseline {SERVED}: no run in {place} was deployed as {name}; leave"
            " --baseline out, or give the folder of a run that was evaluated"
        )
    return max(times, key=times.__getitem__)


def parameters_page(run: Run) -> str:
    """Return a page (Markdown) with the value of every parameter, for Kubeflow's UI.

    Parameters that differ from their default come first. The search space is a block of JSON.
    """
    defaults, values = RunConfig().parameters(), run.config.parameters()
    space = values.pop("search_space")
    other_values: list[tuple[str, str]] = []
    default_values: list[tuple[str, str]] = []
    for name, value in values.items():
        rows = other_values if value != defaults[name] else default_values
        rows.append((flag(name), markdown.code(value)))
    head = ["parameter", "value"]
    parts = [f"# {run.id}\n"]
    if other_values:
        parts += ["Not the default:\n", markdown.table(head, other_values)]
    parts += ["The defaults:\n", markdown.table(head, default_values)]
    space_text = json.dumps(json.loads(str(space)), indent=2)
    parts += ["Search space:\n", markdown.block(space_text, "json", wrap=False)]
    return "\n".join(parts)


def check_inputs(config: RunConfig, copies_folder: str) -> Inputs:
    """Run all checks of the inputs; return the inputs. Raises InputError as the checks do."""
    inputs = Inputs(config, copies_folder)
    for path, name in ((config.data_config, "data.yaml"), (config.network_config, "network.py")):
        file = inputs.file_to_read(path, name)
        if file != here(path) and storage.read_bytes(file) != storage.read_bytes(here(path)):
            step.say(f"{path} has changed since the run started; the run uses its copy {file}")
    for check in (*inputs_module.CONFIGURATION_CHECKS, *inputs_module.DATA_CHECKS):
        say_warning(check.run(inputs))
    return inputs


def say_warning(result: inputs_module.Result) -> None:
    """Print the warning of a check, if it has one."""
    if result.warning:
        step.say(f"warning: {result.warning}")


def check_same(before: Run, run: Run, inputs: Inputs) -> None:
    """Refuse to resume a run with other inputs, because its trials would not be comparable.

    Raises InputError with the first difference in parameters, configurations or data.
    """
    # earlier versions stored 'auto' instead of the pod's own namespace
    before_now = before.config.replace(namespace=namespace(before.config))
    old, new = before_now.parameters(), run.config.parameters()
    different = []
    for name, value in new.items():
        if value != old[name] and name not in RESUMABLE_PARAMETERS:
            different.append(f"{flag(name)} was {old[name]!r}, now {value!r}")
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
    new_names = [name for name in RESUMABLE_PARAMETERS if new[name] != old[name]]
    if new_names and not different:
        for name in new_names:
            step.say(f"continues with --{flag(name)} {new[name]} instead of {old[name]}")
        fixed_flags = [f"--{flag(name)}" for name in new_names if name in CHANGEABLE_PARAMETERS]
        if (
            fixed_flags
            and step.LOCAL_DIR not in os.environ
            and not storage.exists(run.folder.search)
        ):
            step.say(
                f"Katib cannot change {', '.join(fixed_flags)} of a running Experiment: a new one"
                " runs the rest of the search; finished trials count, and unfinished ones resume"
                " from their checkpoints"
            )
    if different:
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        raise InputError(
            f"run {run.id} exists with other inputs: {different[0]}{more}; leave --resume out for a"
            " new run"
        )


def add_sample(inputs: Inputs) -> None:
    """Generate the jets of the sets whose files are 'sample', and check the generated files."""
    from data.generator.sample import ensure_sample

    splits = [split for split in SPLITS if inputs.patterns[split] == SAMPLE]
    if not splits:
        return
    config = inputs.config
    sample = ensure_sample(config.s3_bucket, jets=config.sample_sizes, seed=config.seed_number)
    for split in splits:
        inputs.patterns[split] = sample[split]
        inputs_module.check_files(inputs, split)
    if "val" in splits:
        say_warning(inputs_module.check_raw_model(inputs))


def fill_run_folder(run: Run, inputs: Inputs, job_id: str = "") -> None:
    """Write all that prepare puts into the run's folder: decoded data, configurations, run.json.

    run.json is written last, so that a run that has it is completely prepared. Raises
    InputError if sets share too many jets.
    """
    from components.gate_inputs import refusals_on_test_set
    from weaver.network.siblings import write_siblings

    # computed before `add_sample` replaces 'sample' by file names
    inputs_digest = unchanged.inputs_digest(run.config, inputs)
    add_sample(inputs)
    say_disk_need(run, inputs)
    sets = decode_sets(run, inputs)
    jet_columns, no_jet_columns = decode_jet_columns(run, inputs)
    # Files with different names may hold the same jets; only the decoded momenta show that.
    shared = check_shared({split: data.dataset for split, data in sets.items()})
    for reason in refusals_on_test_set(sets["test"].dataset, run.config):
        step.say(f"warning: the gate will refuse the model: {reason}")

    storage.write_bytes(run.path("config", "data.yaml"), inputs.data_config_text)
    storage.write_text(run.path("config", "network.py"), inputs.network.source)
    write_siblings(inputs.network.siblings, run.path("config"))
    storage.write_text(run.path("config", "search_space.json"), run.config.search_space + "\n")
    card.copy_to(run.config.card, run.path("config"))
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


MODELS = 8
"""Disk space assumed for the exported models (the network's and the raw one), beside the files of
the trial, as a multiple of the size of the network's float32 weights."""
PAGES = 30 * 10**6
"""Bytes of reports, figures, golden requests and records."""


def say_disk_need(run: Run, inputs: Inputs) -> None:
    """Print how much a run may write to a local disk; warn if less is free.

    Too little free space is no error, because the number is an upper limit: the selection may drop
    most jets, and the data may be decoded already.
    """
    if not storage.is_local(run.uri) or inputs.parameters is None:
        return
    data = sum(
        file.bytes_per_entry * file.num_used
        for file_check in inputs.file_checks.values()
        for file in file_check.files
    )
    trials = run.config.max_trials * disk_need.trial_bytes(inputs.parameters)
    models = MODELS * disk_need.NUMBER * inputs.parameters + PAGES
    folder = local_path(run.config.s3_bucket)
    need, free = int(data + trials + models), space.free_bytes(folder)
    line = (
        f"the run may take {space.size_text(need)} in {folder} (jets {space.size_text(int(data))},"
        f" {run.config.max_trials} trials {space.size_text(trials)}, models and reports"
        f" {space.size_text(models)}); {space.size_text(free)} are free"
    )
    step.say(line if need <= free else f"warning: {line}")


def decode_sets(run: Run, inputs: Inputs) -> dict[str, DataSet]:
    """Decode the files of each split into the run's storage, unless they are decoded already."""
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
        # SPLITS begins with the training set, from which `decode` derives the standardisation.
        # Validation and test set must be decoded with the same numbers.
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
            step.say(f"{split}: {ref.num_jets:,} jets, already decoded")
        if storage.is_local(ref.uri):
            step.say(f"{split}: decoded jets in {where(Path(local_path(ref.uri)))}")
    return sets


def decode_jet_columns(run: Run, inputs: Inputs) -> tuple[dict[str, str], str]:
    """Decode the jet-level columns that evaluate needs into separate prepared data.

    The network does not use them, so that a run without them continues, with a shorter report.

    Returns:
        (folders, reason): split -> URI of the prepared folder, and why there are none. One of the
        two is empty.
    """
    from evaluating import jet_columns
    from weaver.config.data_config import DataConfig
    from weaver.prepared.prepare import prepare as decode
    from weaver.read.files import branch_names

    branches: set[str] | None = None
    for file_check in inputs.file_checks.values():
        names = set(branch_names(file_check.files[0]))
        branches = names if branches is None else branches & names
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
                report=lambda line: None,  # problems of the files were printed before
            )
            # As in `decode_sets`: with the histograms that were derived from the training set.
            config = ref.data_config
            sets[split] = ref.uri
    except InputError as error:
        return {}, str(error)
    storage.write_json(run.folder.jet_columns, columns.options)
    return sets, ""


def check_shared(sets: Mapping[str, str]) -> dict[str, int]:
    """Count the jets that each pair of prepared sets has in common: {"train and test": 0, ...}.

    `sets` is name -> URI of the prepared folder. It also notices copied, reordered and merged
    files. Raises InputError if a pair shares more than MAX_SHARED of its jets.
    """
    from weaver.prepared.shared_jets import shared_jets

    counts = {}
    for first, second, number, jets in shared_jets(sets):
        counts[f"{first} and {second}"] = number
        if number > MAX_SHARED * jets:
            raise InputError(
                f"{number:,} of the {jets:,} jets of --data-{second} are in --data-{first} as well,"
                " in files of other names; give each set jets of its own (python -m data.validate"
                f" '{first}:FILES' '{second}:FILES' looks at the files)"
            )
        if number:
            step.say(
                f"warning: {number:,} of the {jets:,} jets of --data-{second} are in --data-{first}"
                " as well"
            )
    return counts


def images(config: RunConfig) -> dict[str, str]:
    """Return the run's images: 'steps' and 'weaver' -> image, on one machine 'none'."""
    if step.LOCAL_DIR in os.environ:
        return {"steps": NONE, "weaver": NONE}
    return {"steps": os.environ.get(IMAGE_VARIABLE, NONE), "weaver": config.weaver_image}


def image_digests(config: RunConfig) -> dict[str, str | None]:
    """Return the digests of the run's images, None if unknown; empty on one machine.

    For a tag the registry is asked, for at most REGISTRY_SECONDS, because pods may not reach it.
    """
    names = images(config).items()
    return {
        name: digest_of(image, seconds=REGISTRY_SECONDS)
        for name, image in names
        if step.LOCAL_DIR not in os.environ
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES; 'none' for one that is not installed."""
    result = {"python": sys.version.split(maxsplit=1)[0]}
    for package in PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = "none"
    return result


@contextlib.contextmanager
def record_failure(config: RunConfig, job_id: str) -> Iterator[None]:
    """On Kubeflow, write into the run's status.json why prepare refused its inputs or failed.

    The exit handler reports the reason, and the attempt after a refusal ends at once. The reason of
    a retryable failure is written as well, for example that a login for the data is missing. On one
    machine nothing is written, because the user sees the reason on the screen.
    """
    if step.LOCAL_DIR in os.environ or not job_id or not storage.is_s3(config.s3_bucket):
        yield
        return
    run = Run(config=with_run_id(config, job_id))
    step.refuse_repetition("prepare", run.uri, job_id)
    try:
        yield
    except InterruptedRun:
        raise
    except Exception as error:
        # an error of the storage must not hide why prepare failed
        with contextlib.suppress(JecError):
            step.write_failure(run, "prepare", error, job_id)
        raise


def folder_configuration(args: argparse.Namespace) -> RunConfig:
    """Return a configuration with the parameters that determine the run's folder, and no others.

    The others may be invalid; the reason is then written into this folder.
    """
    return RunConfig(
        s3_bucket=args.s3_bucket, run_id=args.run_id, network_config=args.network_config
    )


def configuration(parser: argparse.ArgumentParser, argv: list[str] | None) -> RunConfig:
    """Return the configuration of the arguments; `--settings` sets the defaults of the flags.

    Raises InputError for invalid settings or values.
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
        type=str,
        default="{}",
        metavar="JSON",
        help="the parameter `settings` of Kubeflow's form: the defaults of the other flags",
    )
    parser.add_argument(
        "--job-id",
        type=str,
        default="",
        metavar="ID",
        help="KFP job id, from which the run id is derived",
    )
    parser.add_argument(
        "--run-output", type=str, default="", metavar="FILE", help="file to write the run's URI to"
    )
    parser.add_argument(
        "--executor-input",
        type=str,
        default="",
        metavar="JSON",
        help="KFP's executor input; leave it out by hand",
    )
    args = parser.parse_args(argv)

    def body() -> None:
        """Check the arguments and run `prepare`."""
        step.use_endpoint(args.s3_endpoint)
        if args.run_id == AUTO and not args.job_id:
            example = f"{kubernetes_name(args.network_config)}-00000001"
            raise InputError(f"give --job-id or --run-id, as --run-id {example}")
        with record_failure(folder_configuration(args), args.job_id):
            config = configuration(parser, argv)
            prepare(config, args.job_id, args.run_output, step.Artifacts(args.executor_input))

    def is_last() -> bool:
        """Return whether Kubeflow makes no further attempt of this step."""
        run = Run(config=with_run_id(folder_configuration(args), args.job_id))
        return step.is_last_attempt("prepare", run.uri, args.job_id)

    step.stop_on_sigterm()
    return run_main(step.patient(body, args.job_id, is_last))


if __name__ == "__main__":
    raise SystemExit(main())
