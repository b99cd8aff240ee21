"""Parts that several manifests need: the pods of a PyTorchJob, S3's environment, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clusters.pod_command import shell_command
from clusters.protocol import RUN_LABEL, STEP_LABEL, USER_LABEL, Manifest
from common.storage.xrootd_login import SECRET_FOLDER

NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""With an Istio sidecar a job never completes and its workers cannot connect.

Old versions read the annotation, new ones the label.
"""

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

UID = 1000
"""User and group of the images, as whom every container of our pods runs."""

POD_SECURITY: Manifest = {
    # By the pod, not by its containers: Katib's collector must be the trial's user, or the trial
    # cannot write the file by which both tell each other its end (seen with Katib 0.19.0).
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
"""With POD_SECURITY it is what the Pod Security level `restricted` asks for."""

RESTARTS = 3
"""How often a pod of a job may be started again.

A preempted or evicted pod is made anew and counts from 0. A failure that would repeat leaves a
marker, which ends the restarted pod at once.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What each pod of a job requests, as Kubernetes quantities.

    Requests equal limits: a pod that trains is never evicted for bursting.
    """

    cpus: int | str
    memory: str
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    shared_memory: str = "1Gi"
    disk: str = ""
    """Ephemeral storage; empty leaves it to the namespace's defaults."""

    def as_dict(self) -> dict[str, dict[str, str]]:
        """Return requests and limits, as a container has them."""
        amounts = {"cpu": str(self.cpus), "memory": self.memory}
        if self.disk:
            amounts["ephemeral-storage"] = self.disk
        if self.gpus:
            amounts[self.gpu_resource] = str(self.gpus)
        return {"requests": dict(amounts), "limits": dict(amounts)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFolder:
    """A folder of the node, as a pod sees it."""

    name: str
    path: str
    mount: str


TICKET_SECRET = "/secrets/kerberos"  # noqa: S105 (a folder)
TICKETS = "/tickets"
COPY_TICKET = """\
import os, shutil
shutil.copyfile("{secret}/{key}", "{tickets}/krb5cc")
os.chmod("{tickets}/krb5cc", 0o600)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticket:
    """A Kerberos ticket: one key of a Secret, copied to `/tickets/krb5cc` before the pod starts.

    EOS takes a ticket only from a file that belongs to the user and that nobody else may read
    (eosxd's SecurityChecker); the files of a Secret belong to root. The copy is made by an init
    container, which is no child of the shell that Katib wraps around a trial.
    """

    secret: str
    key: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which Kerberos finds the ticket."""
        return {"KRB5CCNAME": f"FILE:{TICKETS}/krb5cc"}

    def volumes(self) -> list[Manifest]:
        """The Secret, and the memory in which the ticket is kept."""
        secret = {
            "name": "kerberos-secret",
            "secret": {"secretName": self.secret, "defaultMode": 0o444},
        }
        return [
            secret,
            {"name": "kerberos-ticket", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]

    def mounts(self) -> list[Manifest]:
        """Where the ticket is mounted."""
        return [{"name": "kerberos-ticket", "mountPath": TICKETS}]

    def init_container(self, image: str) -> Manifest:
        """The container that copies the ticket, as the user of the program that reads EOS."""
        return {
            "name": "ticket",
            "image": image,
            "command": ["python", "-c"],
            "args": [COPY_TICKET.format(secret=TICKET_SECRET, key=self.key, tickets=TICKETS)],
            "resources": {
                "requests": {"cpu": "10m", "memory": "64Mi"},
                "limits": {"cpu": "1", "memory": "128Mi"},
            },
            "securityContext": CONTAINER_SECURITY,
            "volumeMounts": [
                {"name": "kerberos-secret", "mountPath": TICKET_SECRET, "readOnly": True},
                *self.mounts(),
            ],
        }


XROOTD_FOLDER = "/secrets/xrootd"
"""Where a pod sees the Secret of --xrootd-secret, whose keys are files there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodSettings:
    """Where a pod may run, and which folders and tickets it sees. Every field is optional."""

    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
    tolerations: list[dict[str, str]] = dataclasses.field(default_factory=list)
    priority_class: str = ""
    folders: tuple[HostFolder, ...] = ()
    ticket: Ticket | None = None
    xrootd_secret: str = ""
    """Name of the Secret with an X509 proxy or a token; the pod starts without it, too."""

    def environment(self) -> dict[str, str]:
        """What tells the pod's programs where the ticket and the Secret are."""
        variables = self.ticket.environment if self.ticket else {}
        return variables | ({SECRET_FOLDER: XROOTD_FOLDER} if self.xrootd_secret else {})

    def pod_fields(self) -> Manifest:
        """Fields of a pod's spec; empty ones are left out."""
        fields = {
            "nodeSelector": dict(self.node_selector),
            "tolerations": list(self.tolerations),
            "priorityClassName": self.priority_class,
        }
        return {name: value for name, value in fields.items() if value}

    def volumes(self) -> list[Manifest]:
        """Host folders as they are, whatever they are (type ''), the ticket's, the Secret's.

        Files of a Secret belong to root, and the program copies them: so anybody in the pod may
        read them.
        """
        volumes: list[Manifest] = [
            {"name": one.name, "hostPath": {"path": one.path, "type": ""}} for one in self.folders
        ]
        if self.xrootd_secret:
            source = {"secretName": self.xrootd_secret, "defaultMode": 0o444, "optional": True}
            volumes.append({"name": "xrootd-secret", "secret": source})
        return volumes + (self.ticket.volumes() if self.ticket else [])

    def mounts(self) -> list[Manifest]:
        """Where the volumes are mounted.

        With HostToContainer, as EOS mounts its instances below the folder only at first use.
        """
        mounts: list[Manifest] = [
            {"name": one.name, "mountPath": one.mount, "mountPropagation": "HostToContainer"}
            for one in self.folders
        ]
        if self.xrootd_secret:
            mount = {"name": "xrootd-secret", "mountPath": XROOTD_FOLDER, "readOnly": True}
            mounts.append(mount)
        return mounts + (self.ticket.mounts() if self.ticket else [])

    def init_containers(self, image: str) -> Manifest:
        """The pod's entry `initContainers`; empty where no ticket is needed."""
        return {"initContainers": [self.ticket.init_container(image)]} if self.ticket else {}


def labels(run_id: str, step: str, user: str = "unknown") -> dict[str, str]:
    """The labels of all objects and pods of a run, by which `--status` and `--down` find them."""
    return {RUN_LABEL: run_id, STEP_LABEL: step, USER_LABEL: user}


def s3_environment(endpoint: str | None, secret: str) -> list[Manifest]:
    """Environment entries for S3: the keys by reference to the Secret, the endpoint as it is.

    TensorBoard reads S3_ENDPOINT.
    """
    keys = secret_environment(secret, CREDENTIALS)
    plain = {
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    if endpoint:
        plain |= {"AWS_ENDPOINT_URL": endpoint, "S3_ENDPOINT": endpoint}
    return keys + environment(plain)


def secret_environment(secret: str, keys: Sequence[str]) -> list[Manifest]:
    """Environment entries by reference to keys of a Secret, which are also the variables' names."""
    return [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
        for key in keys
    ]


def environment(values: dict[str, str]) -> list[Manifest]:
    """Return environment variables as a container has them."""
    return [{"name": name, "value": value} for name, value in values.items()]


NO_SETTINGS = PodSettings()


def pod_fields(
    settings: PodSettings = NO_SETTINGS,
    *,
    image: str = "",
    shared_memory: str = "",
    service_account: str = "",
    restricted: bool = True,
) -> Manifest:
    """The part of a pod's spec beside its containers: where it runs, as whom, and its volumes.

    Every pod of a run is made with it, the predictor of the InferenceService included. `image` is
    that of the containers which prepare the pod; `shared_memory` is the size of /dev/shm. Without
    `restricted` the pod runs as its image's user.
    """
    fields = settings.pod_fields()
    if restricted:
        fields["securityContext"] = POD_SECURITY
    if service_account:
        fields["serviceAccountName"] = service_account
    volumes = settings.volumes()
    if shared_memory:
        # Docker's 64 MB are too small for NCCL and data loading; these count within the memory
        # limit.
        medium = {"medium": "Memory", "sizeLimit": shared_memory}
        volumes.insert(0, {"name": "shared-memory", "emptyDir": medium})
    if volumes:
        fields["volumes"] = volumes
    return {**fields, **settings.init_containers(image)}


def container_fields(
    settings: PodSettings = NO_SETTINGS,
    *,
    env: list[Manifest],
    resources: Resources,
    shared_memory: bool = False,
    restricted: bool = True,
) -> Manifest:
    """The part of a container beside its image and command: environment, resources, mounts.

    Without `restricted` it has the capabilities of its runtime.
    """
    fields: Manifest = {}
    env = [*env, *environment(settings.environment())]
    if env:
        fields["env"] = env
    fields["resources"] = resources.as_dict()
    mounts = settings.mounts()
    if shared_memory:
        mounts.insert(0, {"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108 (a mount)
    if mounts:
        fields["volumeMounts"] = mounts
    if restricted:
        fields["securityContext"] = CONTAINER_SECURITY
    return fields


def pod_template(
    *,
    labels: dict[str, str],
    image: str,
    program: list[str],
    env: list[Manifest],
    resources: Resources,
    settings: PodSettings = NO_SETTINGS,
) -> Manifest:
    """The pod of a PyTorchJob's replica: one container named 'pytorch', without a sidecar.

    `program` is a command with its arguments. The training operator refuses a container of another
    name.
    """
    container = {"name": "pytorch", "image": image, **shell_command(program)}
    container |= container_fields(settings, env=env, resources=resources, shared_memory=True)
    spec = pod_fields(settings, image=image, shared_memory=resources.shared_memory)
    return {
        "metadata": {"labels": {**labels, **NO_SIDECAR}, "annotations": dict(NO_SIDECAR)},
        "spec": {**spec, "containers": [container]},
    }


def pytorch_job_spec(
    pod: Manifest, *, replicas: int, gpus: int, deadline: int, sidecars: int = 0
) -> Manifest:
    """The spec of a PyTorchJob of a Master and `replicas - 1` Workers that all run the same pod.

    `deadline` is in seconds; `sidecars` is how many containers a controller adds to the Master.
    OnFailure restarts a pod that died (preemption, a lost node), and it resumes from its
    checkpoint. A failure that would repeat leaves a marker that ends the restarted pod at once.
    Only running pods are cleaned up, so that logs stay.
    """
    replica = {"restartPolicy": "OnFailure", "template": pod}
    specs = {"Master": {"replicas": 1, **replica}}
    if replicas > 1:
        specs["Worker"] = {"replicas": replicas - 1, **replica}
    # The operator sums the restarts of all containers of a job's running pods, and ends the job
    # once they reach the limit (trainer v1.9.3 pkg/core/job.go:95-132). Where one container dies,
    # the others of its pod and of the other replicas die with it.
    backoff_limit = RESTARTS * (replicas + sidecars) + 1
    spec: Manifest = {
        "runPolicy": {
            "cleanPodPolicy": "Running",
            "backoffLimit": backoff_limit,
            "activeDeadlineSeconds": deadline,
        },
        "pytorchReplicaSpecs": specs,
    }
    if gpus > 1:
        spec["nprocPerNode"] = str(gpus)
    return spec


def python_command(module: str, *, gpus: int) -> list[str]:
    """`python -m module`, or torchrun where a pod has several GPUs.

    torchrun reads the PET_* variables that the training operator sets.
    """
    return ["torchrun", "-m", module] if gpus > 1 else ["python", "-m", module]


def server_of(service: Manifest) -> Manifest:
    """The container of an InferenceService's predictor, whichever form that has."""
    predictor = service["spec"]["predictor"]
    server: Manifest = predictor["model" if "model" in predictor else "triton"]
    return server


def storage_uri(service: Manifest) -> str:
    """The model repository that an InferenceService serves."""
    uri: str = server_of(service)["storageUri"]
    return uri
