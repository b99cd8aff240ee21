"""Every choice of a run in one frozen object.

The flags of pipeline.py, the parameters of the KFP pipeline and run.json come from it.

Each field is one flag (`--num-gpus`) and one key of run.json (`num_gpus`). Its name in Kubeflow's
form begins with a prefix for its group (`pods_num_gpus`); common.form makes that name from the
field's metadata (see `option`). No field is optional or empty, because Kubeflow's UI loses such
values when it clones a run; the words `auto` and `none` take their place.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from common import algorithms
from common.choices import (
    EARLY_STOPPING,
    GATE_REGIONS,
    GATES,
    MAX_CLOSURE,
    MAX_COVERAGE_POINTS,
    MAX_FLAVOUR_RATIO,
    MAX_RESOLUTION_RATIO,
    MAX_TAIL_RATIO,
    MIN_IMPROVEMENT,
    PRECISIONS,
    RAW_MODELS,
    ROLLOUTS,
)
from common.cli import is_number, is_whole, require, truth
from common.errors import InputError, unknown
from common.storage.addresses import (
    CONTROL,
    HTTP,
    S3,
    check_tracking_address,
    check_url,
    refuse_secrets,
    scheme_of,
    split_s3,
)
from common.storage.patterns import parse_one, split_patterns

AUTO, NONE = "auto", "none"
SERVED = "served"  # the value of --baseline for the run that was deployed last
PREDICTOR_FORMS = ("model", "triton")
# name of a Kubernetes Secret, and a key of it
SECRET_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# name of a resource, a label or a taint: an optional domain, then a name
QUALIFIED_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
)
QUALIFIED_FORM = "a-z, A-Z, 0-9, '-', '_' and '.', after a domain and '/' if it has one"
IMAGE = re.compile(r"[A-Za-z0-9][-\w.:/@]{0,500}", re.ASCII)
SECRET_KEY = re.compile(rf"({SECRET_NAME.pattern})/([-._A-Za-z0-9]{{1,253}})")
RETIRED = ("webhook",)
"""Parameters of earlier versions that are left out, and never shown: the URL is a secret."""
TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


PREFIXED_NAME = "the group's prefix and the field's name"


def option(
    default: Any,
    text: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    form: str = PREFIXED_NAME,
    own_input: bool = False,
    of_site: bool = False,
) -> Any:
    """Define a field of RunConfig: its default, its help text and its group in `--help`.

    form: the field's name in Kubeflow's form; empty if the form does not have it.
    own_input: the form has a text field for it; otherwise it is an entry of the JSON object
    `settings` (common.form).
    of_site: the value is the same for all runs of a site, so that submit makes the current one the
    default of the form.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": text,
            "group": group,
            "choices": choices,
            "metavar": metavar,
            "form": form,
            "own_input": own_input,
            "of_site": of_site,
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of a run: data, search, resources, gates.

    Raises InputError for invalid values.
    """

    # -- data and network
    data_config: str = option(
        "data/jec_pfn_open.yaml",
        "data configuration in Weaver's YAML: a path or a URI",
        group="data and network",
        metavar="FILE",
        own_input=True,
    )
    network_config: str = option(
        "networks/pfn_regressor_open.py",
        "network file in Weaver's form (get_model, get_loss): a path or a URI",
        group="data and network",
        metavar="FILE",
        form="network_config",
        own_input=True,
    )
    data_train: str = option(
        "sample",
        "training ROOT files: comma-separated patterns of paths or s3://, root:// or https://"
        " addresses; 'sample' generates jets",
        group="data and network",
        metavar="FILES",
        own_input=True,
    )
    data_val: str = option(
        "sample",
        "validation ROOT files, as --data-train",
        group="data and network",
        metavar="FILES",
        own_input=True,
    )
    data_test: str = option(
        "sample",
        "test ROOT files, which only the step evaluate uses",
        group="data and network",
        metavar="FILES",
        own_input=True,
    )
    skip_bad_files: bool = option(
        False,
        "skip damaged data files, and print how many jets are lost with them",
        group="data and network",
    )
    if_data_changed: bool = option(
        False,
        "end successfully before the training if a run with the same parameters and data has"
        " completed before",
        group="data and network",
        form="data_if_changed",
    )
    sample_jets: int = option(
        20_000,
        "number of generated training jets; a quarter as many each for validation and test",
        group="data and network",
    )
    s3_bucket: str = option(
        AUTO,
        "storage of runs: s3://bucket/prefix, root://server//path or a directory; 'auto' is"
        " --output on one machine",
        group="data and network",
        metavar="URI",
        form="storage_bucket",
        own_input=True,
        of_site=True,
    )
    s3_endpoint: str = option(
        AUTO,
        "S3 endpoint URL; 'auto' takes the environment variable AWS_ENDPOINT_URL",
        group="data and network",
        metavar="URL",
        form="storage_endpoint",
        own_input=True,
        of_site=True,
    )
    s3_secret: str = option(
        "s3-secret",
        "Kubernetes Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        group="data and network",
        metavar="NAME",
        form="storage_secret",
        own_input=True,
        of_site=True,
    )

    # -- search
    search_space: str = option(
        "training/search_space.yaml",
        "search space: a YAML or JSON file, or JSON itself (in the UI); the default is for GPUs,"
        " training/search_space_small.yaml for one machine",
        group="search",
        metavar="FILE",
        own_input=True,
    )
    algorithm: str = option(
        "random",
        "search algorithm, by Katib's name",
        group="search",
        choices=algorithms.offered_names(),
    )
    max_trials: int = option(
        30,
        "total number of trials",
        group="search",
        own_input=True,
    )
    parallel_trials: int = option(
        5,
        "number of parallel trials (one machine: at most one per core)",
        group="search",
        own_input=True,
    )
    # 1 would end a search at its first unlucky trial: Katib fails the experiment when failed >=
    # this.
    max_failed_trials: int = option(5, "the search fails when N trials have failed", group="search")
    early_stopping: str = option(
        NONE,
        "'medianstop' stops a trial that is worse than the median of the others at the same epoch"
        " (Katib's rule)",
        group="search",
        choices=EARLY_STOPPING,
    )
    # Katib's default: the mean of fewer successes is too uncertain.
    early_stopping_min_trials: int = option(
        3, "trials that must have succeeded before any is stopped early", group="search"
    )
    early_stopping_start_step: str = option(
        AUTO,
        "first epoch after which a trial may be stopped early; 'auto': a fifth of its epochs, at"
        " least 2",
        group="search",
        metavar="N",
    )
    goal: str = option(
        NONE,
        "the search ends when a trial's AvgLoss is LOSS or less",
        group="search",
        metavar="LOSS",
        form="search_goal_loss",
    )
    num_epochs: int = option(
        50,
        "epochs per trial, unless the search space has num-epochs",
        group="search",
        own_input=True,
    )
    batch_size: int = option(
        500, "global batch size, unless the search space has batch-size", group="search"
    )
    precision: str = option(
        "float32",
        "numeric precision of the training, unless the search space has it; 'auto' takes the"
        " fastest safe one of the device",
        group="search",
        choices=PRECISIONS,
    )
    data_fraction: float = option(
        1.0,
        "fraction of the training jets that a trial uses, unless the search space has it",
        group="search",
    )
    seed: str = option(
        AUTO,
        "seed of the initial weights, the order of jets and the search; 'auto' is 1, except that on"
        " a cluster Katib gets no seed, because with one it repeats its first points whenever the"
        " algorithm's pod restarts",
        group="search",
        metavar="N",
    )

    # -- resources
    num_replicas: int = option(
        1, "nodes per trial (one Master, the others Workers)", group="resources"
    )
    num_gpus: int = option(
        0,
        "GPUs per node",
        group="resources",
        own_input=True,
    )
    num_cpus: int = option(2, "CPUs per node", group="resources")
    memory: str = option(
        "12Gi",
        "memory per node, as a Kubernetes quantity",
        group="resources",
        metavar="QUANTITY",
    )
    shared_memory: str = option(
        "1Gi", "size of /dev/shm, which is part of --memory", group="resources", metavar="QUANTITY"
    )
    ephemeral_storage: str = option(
        NONE,
        "disk per node, for the copy of the jets and the logs, as a Kubernetes quantity; 'none'"
        " requests none",
        group="resources",
        metavar="QUANTITY",
    )
    gpu_resource: str = option(
        "nvidia.com/gpu",
        "resource name of GPUs, as nvidia.com/gpu, nvidia.com/mig-1g.5gb or amd.com/gpu",
        group="resources",
        of_site=True,
    )
    node_selector: str = option(
        NONE,
        "labels of the nodes to run on, as key=value,key=value",
        group="resources",
        metavar="LABELS",
    )
    tolerations: str = option(
        NONE,
        "taints that the pods tolerate, as key=value:NoSchedule,key:NoExecute,key",
        group="resources",
        metavar="TAINTS",
    )
    priority_class: str = option(NONE, "PriorityClass of the pods", group="resources")
    nvidia_driver: str = option(
        NONE,
        "folder with NVIDIA's driver on the nodes, mounted at the same path into pods with GPUs",
        group="resources",
        metavar="DIR",
        of_site=True,
    )
    eos: str = option(
        NONE,
        "folder on the nodes where EOS is mounted, as /var/eos; the pods see it as /eos",
        group="resources",
        metavar="DIR",
    )
    kerberos_secret: str = option(
        NONE,
        "Secret with a Kerberos ticket for EOS, as krb-secret or krb-secret/KEY (KEY: krb5cc_1000)",
        group="resources",
    )
    xrootd_secret: str = option(
        NONE,
        "Secret with the login for root:// data: its key x509up (a proxy), token or krb5cc_1000;"
        " fixed when the pipeline is compiled",
        group="resources",
        metavar="NAME",
        of_site=True,
    )
    deadline_hours: float = option(
        48.0,
        "the search fails after X hours",
        group="resources",
        form="search_deadline_hours",
    )
    weaver_image: str = option(
        "jec-weaver:latest",
        "image of the training, export and evaluation pods",
        group="resources",
        metavar="IMAGE",
        of_site=True,
    )

    # What a step itself does needs little; the limits, 2 CPUs and 4Gi, leave room for decoding.
    steps_cpus: str = option(
        "500m",
        "CPU request of each step's pod; fixed when the pipeline is compiled",
        group="resources",
        metavar="QUANTITY",
        of_site=True,
    )
    steps_memory: str = option(
        "1Gi",
        "memory request of each step's pod; fixed when the pipeline is compiled",
        group="resources",
        metavar="QUANTITY",
        of_site=True,
    )

    # -- gates and serving
    gate: str = option(
        "default",
        "'default' refuses a model if its test jets show that it violates the limits below;"
        " 'strict' refuses it unless they show that it meets them, which takes several 100,000 test"
        " jets",
        group="gates and serving",
        choices=GATES,
    )
    min_improvement: float = option(
        MIN_IMPROVEMENT,
        "smallest resolution gain over the standard JEC, in per cent: the default gate passes a"
        " gain if the upper end of its 95 % interval reaches X, the strict gate if the lower end is"
        " above X",
        group="gates and serving",
        form="gate_min_improvement_percent",
    )
    max_closure: float = option(
        MAX_CLOSURE,
        "largest |median response - 1| in a bin, as a fraction; if the standard JEC's value in the"
        " bin is larger, that one is the limit",
        group="gates and serving",
        form="gate_max_closure_fraction",
    )
    max_resolution_ratio: float = option(
        MAX_RESOLUTION_RATIO,
        "largest resolution of a region or a bin of pT, as a multiple of the standard JEC's",
        group="gates and serving",
    )
    max_tail_ratio: float = option(
        MAX_TAIL_RATIO,
        "largest fraction of jets whose response is off by more than 30 %, and by more than a"
        " factor of 1.5, as a multiple of the standard JEC's",
        group="gates and serving",
    )
    max_flavour_ratio: float = option(
        MAX_FLAVOUR_RATIO,
        "largest spread of the median response between flavours, as a multiple of the standard"
        " JEC's",
        group="gates and serving",
    )
    max_coverage_points: float = option(
        MAX_COVERAGE_POINTS,
        "largest difference, in percentage points, between the fraction of jets inside their"
        " predicted interval and the nominal 68 %",
        group="gates and serving",
    )
    gate_regions: str = option(
        "both",
        "regions of eta that the gate judges; a region without test jets is refused",
        group="gates and serving",
        choices=GATE_REGIONS,
    )
    baseline: str = option(
        NONE,
        "folder of an earlier run, whose model the report compares with this one on the same test"
        " jets; 'served' is the run that was deployed last under this service's name",
        group="gates and serving",
        metavar="URI",
        form="report_baseline",
    )
    raw_model: str = option(
        AUTO,
        "whether to export a second model that takes the files' own columns: 'auto' exports it if"
        " the data config allows it, 'required' refuses another data config before the training,"
        " 'none' does not export it",
        group="gates and serving",
        choices=RAW_MODELS,
    )
    card: str = option(
        NONE,
        "file with facts for the model card (era, campaign, jet type, JEC version): YAML or JSON"
        " with names and values, or Markdown",
        group="gates and serving",
        metavar="FILE",
    )
    service_name: str = option(
        AUTO,
        "name of the InferenceService and the model; 'auto' takes the network's name",
        group="gates and serving",
        metavar="NAME",
        form="serve_name",
    )
    service_account: str = option(
        "default",
        "ServiceAccount of the predictor, which refers to the S3 Secret",
        group="gates and serving",
        metavar="NAME",
        form="serve_account",
        of_site=True,
    )
    # Scaled to zero, the first physicist of the day would wait for a node and a large image.
    min_replicas: int = option(
        1,
        "minimum number of servers; 0 lets the service scale to zero",
        group="gates and serving",
    )
    max_replicas: int = option(1, "maximum number of servers", group="gates and serving")
    # A jet takes microseconds on a CPU; a GPU would be idle most of the time.
    serving_gpus: int = option(
        0,
        "GPUs of each server",
        group="gates and serving",
        form="serve_gpus",
    )
    # Two CPUs: one for the server, one for the model; 4Gi suffice for large batches.
    serving_cpus: str = option(
        "2",
        "CPUs of each server, as 2 or 500m",
        group="gates and serving",
        metavar="QUANTITY",
        form="serve_cpus",
    )
    serving_memory: str = option(
        "4Gi",
        "memory of each server",
        group="gates and serving",
        metavar="QUANTITY",
        form="serve_memory",
    )
    rollout: str = option(
        AUTO,
        "how a new model replaces the previous one: 'surge' starts the new pod first, 'recreate'"
        " ends the old pod first, 'auto' is surge if the quota has room for a second pod",
        group="gates and serving",
        choices=ROLLOUTS,
    )
    predictor_form: str = option(
        "model",
        "field of the InferenceService's predictor: 'model' (KServe 0.8 and later) or 'triton'",
        group="gates and serving",
        choices=PREDICTOR_FORMS,
        of_site=True,
    )

    # -- tracking
    mlflow: str = option(
        AUTO,
        "MLflow tracking server for the run, its trials, report and models; 'auto' is the"
        " environment variable MLFLOW_TRACKING_URI if set, 'none' logs nothing",
        group="tracking",
        metavar="URL",
        of_site=True,
    )
    mlflow_secret: str = option(
        NONE,
        "Kubernetes Secret with MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN,"
        " and MLFLOW_TRACKING_URI where --mlflow is auto; fixed when the pipeline is compiled (one"
        " machine: these variables)",
        group="tracking",
        metavar="NAME",
        of_site=True,
    )
    model_registry: str = option(
        NONE,
        "Kubeflow model registry in which to register the model, its address and its metrics if it"
        " passes the gate",
        group="tracking",
        metavar="URL",
        of_site=True,
    )
    model_registry_secret: str = option(
        NONE,
        "Secret and key with the token for the model registry; fixed when the pipeline is compiled"
        " (one machine: JEC_MODEL_REGISTRY_TOKEN)",
        group="tracking",
        metavar="NAME/KEY",
        of_site=True,
    )

    # -- Kubeflow
    namespace: str = option(
        AUTO,
        "Kubeflow namespace; 'auto' is the namespace of the steps' pods",
        group="Kubeflow",
        of_site=True,
    )
    experiment_name: str = option(
        "jec",
        "KFP experiment that groups the runs",
        group="Kubeflow",
        form="",
    )
    user: str = option(
        AUTO,
        "owner of the run, for labels; 'auto' is the namespace's name on Kubeflow and the login"
        " name on one machine",
        group="Kubeflow",
        metavar="NAME",
    )
    webhook_secret: str = option(
        NONE,
        "Secret and key with a URL to which the run's summary is sent as JSON at its end, also"
        " after a failure; fixed when the pipeline is compiled (one machine: JEC_WEBHOOK or"
        " JEC_WEBHOOK_FILE)",
        group="Kubeflow",
        metavar="NAME/KEY",
        of_site=True,
    )
    delete_train_experiment: bool = option(
        False, "delete the Katib experiment once it has finished (results stay)", group="Kubeflow"
    )
    delete_export_job: bool = option(
        False, "delete the export and evaluation jobs once they have finished", group="Kubeflow"
    )
    run_id: str = option(
        AUTO,
        "run id; 'auto' derives it from the network's name and the KFP job; --resume sets it",
        group="Kubeflow",
        form="storage_run_id",
        own_input=True,
    )

    def __post_init__(self) -> None:
        """Check every value, and values that depend on each other. Raises InputError."""
        for name, value in self.parameters().items():
            require(
                not isinstance(value, float) or math.isfinite(value),
                f"--{flag(name)} {value}: must be finite",
            )
            require(
                value != "",
                f"--{flag(name)} is empty; leave it out, or write a value such as"
                f" {getattr(type(self), name)}",
            )
        self._check_texts()
        self._check_addresses()
        self._check_xrootd_secret()
        for name, low in LEAST.items():
            value = getattr(self, name)
            require(value >= low, f"--{flag(name)} {value}: must be at least {low}")
        for name, high in MOST.items():
            value = getattr(self, name)
            require(value <= high, f"--{flag(name)} {value}: must be at most {high:,}")
        require(
            self.min_replicas <= self.max_replicas,
            f"--min-replicas {self.min_replicas} is larger than --max-replicas"
            f" {self.max_replicas}; lower --min-replicas, or raise --max-replicas",
        )
        require(
            0 < self.data_fraction <= 1,
            f"--data-fraction {self.data_fraction}: must be above 0 and at most 1",
        )
        require(
            self.raw_model in RAW_MODELS,
            f"--raw-model {self.raw_model}: write auto, required or none",
        )
        require(
            self.algorithm in algorithms.offered_names(),
            f"--algorithm: {unknown('algorithm', self.algorithm, algorithms.offered_names())}",
        )
        require(
            self.parallel_trials <= self.max_trials,
            f"--parallel-trials {self.parallel_trials} is larger than --max-trials"
            f" {self.max_trials}; lower --parallel-trials, or raise --max-trials",
        )
        require(
            self.precision in PRECISIONS,
            f"--precision: {unknown('precision', self.precision, PRECISIONS)}",
        )
        require(
            self.early_stopping in EARLY_STOPPING,
            f"--early-stopping: {unknown('rule', self.early_stopping, EARLY_STOPPING)}",
        )
        step = self.early_stopping_start_step
        require(
            step == AUTO or (is_whole(step) and int(step) >= 1),
            f"--early-stopping-start-step '{self.early_stopping_start_step}': write auto or a whole"
            " number from 1 up",
        )
        require(
            self.seed == AUTO or (is_whole(self.seed) and int(self.seed) <= LARGEST_SEED),
            f"--seed '{self.seed}': write auto or a whole number from 0 to {LARGEST_SEED}",
        )
        self._check_goal()
        self._check_pods()
        require(
            self.rollout in ROLLOUTS, f"--rollout: {unknown('rollout', self.rollout, ROLLOUTS)}"
        )
        require(self.gate in GATES, f"--gate: {unknown('gate', self.gate, GATES)}")
        require(
            self.gate_regions in GATE_REGIONS,
            f"--gate-regions: {unknown('choice', self.gate_regions, GATE_REGIONS)}",
        )
        require(
            self.predictor_form in PREDICTOR_FORMS,
            f"--predictor-form: {unknown('form', self.predictor_form, PREDICTOR_FORMS)}",
        )
        require(
            label_value(self.user) == self.user,
            f"--user '{self.user}': Kubernetes takes up to 63 of a-z, A-Z, 0-9, '-', '_' and '.'",
        )
        # The value is not shown: it may be the URL itself, which is a secret.
        require(
            self.webhook_secret == NONE or SECRET_KEY.fullmatch(self.webhook_secret) is not None,
            "--webhook-secret names a Secret of the namespace and its key, as jec-webhook/url; the"
            " URL itself is the value of that key",
        )
        self._check_tracking()
        for name in ("service_name", "run_id"):
            value = getattr(self, name)
            named_as_kubernetes_likes = (
                re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", value) is not None
            )
            require(
                named_as_kubernetes_likes,
                f"--{flag(name)} '{value}': use up to 40 of a-z, 0-9 and '-', a letter first",
            )

    def _check_texts(self) -> None:
        """Refuse control characters, and names that Kubernetes would refuse later."""
        for name, value in self.parameters().items():
            if isinstance(value, str) and name not in SEVERAL_LINES:
                require(
                    CONTROL.search(value) is None,
                    f"--{flag(name)} {value!r} has a control character; write it without line"
                    " breaks",
                )
        for name in ("s3_secret", "service_account", "priority_class"):
            value = getattr(self, name)
            require(
                SECRET_NAME.fullmatch(value) is not None,
                f"--{flag(name)} '{value}': a name in Kubernetes has a-z, 0-9, '-' and '.', and a"
                " letter or digit at both ends",
            )
        require(
            NAMESPACE.fullmatch(self.namespace) is not None,
            f"--namespace '{self.namespace}': write up to 63 of a-z, 0-9 and '-', or auto",
        )
        check_image("weaver-image", self.weaver_image)
        require(
            QUALIFIED_NAME.fullmatch(self.gpu_resource) is not None,
            f"--gpu-resource '{self.gpu_resource}': Kubernetes takes {QUALIFIED_FORM}, as"
            " nvidia.com/gpu",
        )

    def _check_addresses(self) -> None:
        """Refuse an address of an unknown scheme, before it becomes a folder of that name."""
        for name in ("data_config", "network_config", "search_space", "s3_bucket", "baseline"):
            self._check_address(name, scheme_of, [getattr(self, name)])
        for name in ("data_train", "data_val", "data_test"):
            self._check_address(name, refuse_secrets, [getattr(self, name)])
            texts = split_patterns(getattr(self, name))
            require(
                bool(texts),
                f"--{flag(name)} '{getattr(self, name)}' names no file; give paths or patterns,"
                " separated by commas",
            )
            self._check_address(name, lambda text: bucket_of(parse_one(text).text), texts)
        self._check_address("s3_bucket", bucket_of, [self.s3_bucket])
        if self.s3_endpoint != AUTO:
            self._check_address("s3_endpoint", check_url, [self.s3_endpoint])
        require(
            scheme_of(self.s3_bucket) not in HTTP,
            f"--s3-bucket {self.s3_bucket}: web servers are read only; give s3://, root:// or a"
            " folder",
        )

    def _check_address(self, name: str, parse: Callable[[str], object], texts: list[str]) -> None:
        """Parse a field's addresses. Raises InputError, which names the flag."""
        try:
            for text in texts:
                parse(text)
        except InputError as error:
            raise InputError(f"--{flag(name)}: {error}") from None

    def _check_xrootd_secret(self) -> None:
        require(
            SECRET_NAME.fullmatch(self.xrootd_secret) is not None,
            f"--xrootd-secret '{self.xrootd_secret}': give the name of a Secret, or none",
        )

    def _check_tracking(self) -> None:
        """Refuse invalid addresses and names of Secrets."""
        if self.mlflow not in (AUTO, NONE):
            self._check_address("mlflow", check_tracking_address, [self.mlflow])
        if self.model_registry != NONE:
            self._check_address("model_registry", check_url, [self.model_registry])
        require(
            SECRET_NAME.fullmatch(self.mlflow_secret) is not None,
            f"--mlflow-secret '{self.mlflow_secret}': give the name of a Secret, or none",
        )
        # Not shown: it may be the token itself.
        require(
            self.model_registry_secret == NONE
            or SECRET_KEY.fullmatch(self.model_registry_secret) is not None,
            "--model-registry-secret names a Secret of the namespace and its key, as"
            " model-registry/token; the token itself is the value of that key",
        )

    def _check_goal(self) -> None:
        good = self.goal == NONE or is_number(self.goal)
        require(good, f"--goal '{self.goal}': write a number, as 0.08, or none")

    def _check_pods(self) -> None:
        for name in ("memory", "shared_memory", "serving_memory", "steps_memory"):
            quantity(name, getattr(self, name))
        for name in ("serving_cpus", "steps_cpus"):
            cpus(name, getattr(self, name))
        require(
            quantity("shared_memory", self.shared_memory) < quantity("memory", self.memory),
            f"--shared-memory {self.shared_memory} counts within --memory {self.memory} and leaves"
            " nothing of it",
        )
        if self.ephemeral_storage != NONE:
            quantity("ephemeral_storage", self.ephemeral_storage)
        selector(self.node_selector)
        tolerations(self.tolerations)
        for name in ("nvidia_driver", "eos"):
            value = getattr(self, name)
            is_path = value.startswith("/") and ":" not in value and ".." not in value.split("/")
            require(
                value == NONE or is_path,
                f"--{flag(name)} '{value}': write a path that begins with /, without ':' and '..',"
                " or none",
            )
        require(
            self.kerberos_secret == NONE or self.eos != NONE,
            "--kerberos-secret is for EOS: give --eos as well, as --eos /var/eos",
        )

    @property
    def seed_number(self) -> int:
        """The seed of everything but Katib's draws."""
        return DEFAULT_SEED if self.seed == AUTO else int(self.seed)

    @property
    def sample_sizes(self) -> tuple[int, int, int]:
        """Numbers of generated jets for training, validation and test, in the order of SPLITS."""
        part = max(self.sample_jets // 4, 1)
        return self.sample_jets, part, part

    def parameters(self) -> dict[str, Any]:
        """Return the values by field name, in order, as KFP and run.json store them."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> RunConfig:
        """Return a copy with other values for these fields."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Return the inverse of `parameters`. Raises InputError for a key that is no field.

        What earlier versions had and no later one has (RETIRED) is left out.
        """
        values = {name: value for name, value in values.items() if name not in RETIRED}
        values = with_former_defaults(values)
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise InputError(unknown("parameter", key, names))
        return cls(**with_types(values))

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> RunConfig:
        """Make the configuration of parsed flags."""
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


DEFAULT_SEED = 1
SEVERAL_LINES = ("search_space", "data_train", "data_val", "data_test")
"""Fields that may have line breaks: YAML, and lists that are separated by any blanks."""
LARGEST_SEED = 2**31 - 1  # every library of the chain, here and in Katib, takes an int32


def with_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert numbers to text for parameters that are text; return all parameters.

    Earlier versions stored such numbers: the seed was an integer, and is text now. JSON and
    Kubeflow do not distinguish 2.0 from 2, so that both become '2'.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    parameters_with_types = {}
    for name, value in values.items():
        default = defaults.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, str) and is_number:
            parameters_with_types[name] = str(int(value)) if value == int(value) else str(value)
        else:
            parameters_with_types[name] = value
    return parameters_with_types


LEAST = {
    "sample_jets": 400,
    "max_trials": 1,
    "parallel_trials": 1,
    "max_failed_trials": 1,
    "early_stopping_min_trials": 1,
    "num_epochs": 1,
    "batch_size": 1,
    "num_replicas": 1,
    "num_gpus": 0,
    "num_cpus": 1,
    "serving_gpus": 0,
    "deadline_hours": 0.001,
    "max_closure": 0.0,
    "max_resolution_ratio": 0.0,
    "max_tail_ratio": 0.0,
    "max_flavour_ratio": 0.0,
    "max_coverage_points": 0.0,
    "min_replicas": 0,
    "max_replicas": 1,
}

MOST: dict[str, float] = {
    "sample_jets": 1_000_000_000,  # about 1 TB
    "max_trials": 100_000,
    "max_failed_trials": 100_000,
    "early_stopping_min_trials": 100_000,
    "num_epochs": 1_000_000,
    "batch_size": 100_000_000,
    "num_replicas": 10_000,
    "num_gpus": 10_000,
    "num_cpus": 100_000,
    "serving_gpus": 10_000,
    "deadline_hours": 87_600,  # ten years
    "min_replicas": 10_000,
    "max_replicas": 10_000,
}
"""Upper limits far above any use: a larger number is a typing error, or overflows later."""


def check_image(name: str, text: str) -> None:
    """Raise InputError for what is no name of an image, before pods wait for it in vain."""
    require(
        IMAGE.fullmatch(text) is not None,
        f"--{name} '{text}': write it as registry/project/name:tag",
    )


def bucket_of(uri: str) -> str:
    """Return the bucket of an s3:// address, which must name one; empty for other addresses."""
    return split_s3(uri)[0] if scheme_of(uri) == S3 else ""


def with_former_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Add parameters that an earlier version did not have, with the values it used implicitly.

    Before `serving_gpus` existed, a run that trained with GPUs served its model on one GPU, and the
    configuration of its exported model still asks for it.
    """
    if "serving_gpus" in values or not values.get("num_gpus", 0):
        return values
    return {**values, "serving_gpus": 1}


def flag(name: str) -> str:
    """Return the flag of a field, without its dashes: num_gpus -> num-gpus."""
    return name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, *, skip: tuple[str, ...] = ()) -> None:
    """Add one flag for each field, in the field's group.

    A boolean flag without a value is true; Kubeflow always writes a value.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(RunConfig):
        if field.name in skip:
            parser.set_defaults(**{field.name: field.default})
            continue
        group = groups.get(field.metadata["group"]) or groups.setdefault(
            field.metadata["group"], parser.add_argument_group(field.metadata["group"])
        )
        boolean = isinstance(field.default, bool)
        # a boolean flag alone means true
        value_may_be_missing: dict[str, Any] = {"nargs": "?", "const": True} if boolean else {}
        group.add_argument(
            f"--{flag(field.name)}",
            type=truth if boolean else type(field.default),
            default=field.default,
            choices=field.metadata["choices"] or None,
            metavar=_metavar(field),
            help=f"{field.metadata['help']} (default: {field.default})".replace("%", "%%"),
            **value_may_be_missing,
        )


def _metavar(field: dataclasses.Field[Any]) -> str | None:
    if field.metadata["choices"]:
        return None  # argparse lists them
    return field.metadata["metavar"] or {bool: "true|false", int: "N", float: "X"}.get(
        type(field.default), "NAME"
    )


def label_value(text: str) -> str:
    """Convert a text to a valid value of a Kubernetes label; 'unknown' if no character is valid."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.") or "unknown"


UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
MOST_BYTES = 2**60  # more than any node has


def quantity(name: str, text: str) -> float:
    """Return bytes of a Kubernetes quantity such as 12Gi. Raises InputError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", text)
    if not match or match[2] not in UNITS:
        raise InputError(
            f"--{flag(name)} '{text}' is not a quantity; write a number and one of"
            f" {', '.join(u for u in UNITS if u)}, as 12Gi"
        )
    amount = float(match[1]) * UNITS[match[2]]
    require(
        0 < amount <= MOST_BYTES,
        f"--{flag(name)} '{text}': must be above 0 and at most {MOST_BYTES // 2**40:,} Ti",
    )
    return amount


def cpus(name: str, text: str) -> float:
    """Return the cores of a Kubernetes quantity such as 2, 0.5 or 500m.

    Raises InputError for anything else.

    >>> cpus("serving_cpus", "500m")
    0.5
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m?)", text)
    cores = float(match[1]) / (1000 if match[2] else 1) if match else 0.0
    require(
        0 < cores <= MOST["num_cpus"],
        f"--{flag(name)} '{text}' is not a number of CPUs; write 2, 0.5 or 500m",
    )
    return cores


def selector(text: str) -> dict[str, str]:
    """Return the labels of nodes from key=value,key=value; none of them for 'none'.

    Raises InputError for anything else.
    """
    labels = {}
    for part in _parts(text):
        key, equals, value = part.partition("=")
        is_label = equals and QUALIFIED_NAME.fullmatch(key) and _is_label_value(value)
        if not is_label:
            raise InputError(
                f"--node-selector '{part}' is not a label; write key=value,key=value, or none"
            )
        labels[key] = value
    return labels


def tolerations(text: str) -> list[dict[str, str]]:
    """Return Kubernetes' tolerations from a list with commas.

    An entry is key=value:Effect, key:Effect (any value) or key (any value and effect). Raises
    InputError for an effect that does not exist.
    """
    entries = []
    for part in _parts(text):
        taint, _, effect = part.partition(":")
        key, equals, value = taint.partition("=")
        if not key or (effect and effect not in TAINT_EFFECTS):
            wrong = unknown("effect", effect, TAINT_EFFECTS) if key else "a taint has a key"
            raise InputError(
                f"--tolerations '{part}': {wrong}; write key=value:NoSchedule, key:NoExecute or"
                " key, or none"
            )
        if not (QUALIFIED_NAME.fullmatch(key) and _is_label_value(value)):
            raise InputError(
                f"--tolerations '{part}': Kubernetes takes {QUALIFIED_FORM} as the key of a taint,"
                " and the same characters as its value"
            )
        operator = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
        entries.append({"key": key, **operator, **({"effect": effect} if effect else {})})
    return entries


def _is_label_value(text: str) -> bool:
    """Return whether Kubernetes takes a text (or an empty one) as a label's or taint's value."""
    return not text or label_value(text) == text


def _parts(text: str) -> list[str]:
    return [] if text == NONE else [part.strip() for part in text.split(",")]
