"""Parts of several manifests: pods of a PyTorchJob, environment for S3, labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clusters.pod_command import shell_command
from clusters.protocol import RUN_LABEL, STEP_LABEL, USER_LABEL, Manifest
from common.storage.xrootd_login import SECRET_FOLDER

NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""Label and annotation against an Istio sidecar.

With a sidecar a job never completes and its workers cannot connect. Old versions of Istio read the
annotation, new ones the label.
"""

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

UID = 1000
"""User and group of the images; all containers of our pods run as this user."""

POD_SECURITY: Manifest = {
    # Set for the pod, not for its containers: Katib's collector must run as the user of the trial,
    # otherwise the trial cannot write the file that tells the collector its end (seen with Katib
    # 0.19.0).
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
"""Together with POD_SECURITY this meets the Pod Security level `restricted`."""

RESTARTS = 3
"""How often a pod of a job may restart.

A preempted or evicted pod is replaced by a new one, which counts from 0. After a failure that would
repeat, a marker file ends the restarted pod at once.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of each pod of a job, as Kubernetes quantities.

    Requests equal limits, so that a training pod is never evicted for exceeding its requests.
    """

    cpus: int | str
    memory: str
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    shared_memory: str = "1Gi"
    disk: str = ""
    """Ephemeral storage; empty leaves it to the namespace's defaults."""

    def as_dict(self) -> dict[str, dict[str, str]]:
        """Return requests and limits, as in a container."""
        amounts = {"cpu": str(self.cpus), "memory": self.memory}
        if self.disk:
            amounts["ephemeral-storage"] = self.disk
        if self.gpus:
            amounts[self.gpu_resource] = str(self.gpus)
        return {"requests": dict(amounts), "limits": dict(amounts)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostFolder:
    """A folder of the node that is mounted into a pod."""

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

    EOS accepts a ticket only from a file that belongs to the user and that nobody else may read
    (eosxd's SecurityChecker), but files of a Secret belong to root. An init container makes the
    copy, because the shell that Katib wraps around a trial must have only one child.
    """

    secret: str
    key: str

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Kerberos finds the ticket."""
        return {"KRB5CCNAME": f"FILE:{TICKETS}/krb5cc"}

    def volumes(self) -> list[Manifest]:
        """Return the Secret, and the memory in which the copy is stored."""
        secret = {
            "name": "kerberos-secret",
            "secret": {"secretName": self.secret, "defaultMode": 0o444},
        }
        return [
            secret,
            {"name": "kerberos-ticket", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]

    def mounts(self) -> list[Manifest]:
        """Return the mount of the ticket."""
        return [{"name": "kerberos-ticket", "mountPath": TICKETS}]

    def init_container(self, image: str) -> Manifest:
        """Return the container that copies the ticket, as the user of the program."""
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
"""Folder of a pod with the keys of the Secret of --xrootd-secret as files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodSettings:
    """Where a pod may run, and its folders and tickets. Every field is optional."""

    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
    tolerations: list[dict[str, str]] = dataclasses.field(default_factory=list)
    priority_class: str = ""
    folders: tuple[HostFolder, ...] = ()
    ticket: Ticket | None = None
    xrootd_secret: str = ""
    """Name of the Secret with an X509 proxy or a token; optional."""

    def environment(self) -> dict[str, str]:
        """Return the variables with the places of the ticket and the Secret."""
        variables = self.ticket.environment if self.ticket else {}
        return variables | ({SECRET_FOLDER: XROOTD_FOLDER} if self.xrootd_secret else {})

    def pod_fields(self) -> Manifest:
        """Return fields of the spec of a pod; empty ones are left out."""
        fields = {
            "nodeSelector": dict(self.node_selector),
            "tolerations": list(self.tolerations),
            "priorityClassName": self.priority_class,
        }
        return {name: value for name, value in fields.items() if value}

    def volumes(self) -> list[Manifest]:
        """Return volumes of host folders (of any type), of the ticket and of the Secret.

        Files of a Secret belong to root, and the program copies them, so that all users of the pod
        may read them.
        """
        volumes: list[Manifest] = [
            {"name": folder.name, "hostPath": {"path": folder.path, "type": ""}}
            for folder in self.folders
        ]
        if self.xrootd_secret:
            source = {"secretName": self.xrootd_secret, "defaultMode": 0o444, "optional": True}
            volumes.append({"name": "xrootd-secret", "secret": source})
        return volumes + (self.ticket.volumes() if self.ticket else [])

    def mounts(self) -> list[Manifest]:
        """Return the mounts of the volumes.

        Host folders use HostToContainer, because EOS mounts its instances below the folder at their
        first use.
        """
        mounts: list[Manifest] = [
            {"name": folder.name, "mountPath": folder.mount, "mountPropagation": "HostToContainer"}
            for folder in self.folders
        ]
        if self.xrootd_secret:
            mount = {"name": "xrootd-secret", "mountPath": XROOTD_FOLDER, "readOnly": True}
            mounts.append(mount)
        return mounts + (self.ticket.mounts() if self.ticket else [])

    def init_containers(self, image: str) -> Manifest:
        """Return the entry `initContainers` of a pod; empty without a ticket."""
        return {"initContainers": [self.ticket.init_container(image)]} if self.ticket else {}


def labels(run_id: str, step: str, user: str = "unknown") -> dict[str, str]:
    """Return the labels of all objects of a run, with which --status and --down find them."""
    return {RUN_LABEL: run_id, STEP_LABEL: step, USER_LABEL: user}


def s3_environment(endpoint: str | None, secret: str) -> list[Manifest]:
    """Return environment variables for S3: keys by reference to the Secret, and the endpoint.

    S3_ENDPOINT is for TensorBoard.
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
    """Return variables that refer to keys of a Secret of the same names."""
    return [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
        for key in keys
    ]


def environment(values: dict[str, str]) -> list[Manifest]:
    """Return environment variables as in a container."""
    return [{"name": name, "value": value} for name, value in values.items()]


NO_SETTINGS = PodSettings()


def pod_fields(
    settings: PodSettings = NO_SETTINGS,
    *,
    image: str = "",
    shared_memory: str = "",
    service_account: str = "",
    restricted: bool = True,
    keep_token: bool = False,
) -> Manifest:
    """Return the spec of a pod without its containers: where it runs, as which user, its volumes.

    All pods of a run use it, also the predictor of the InferenceService.

    Args:
        settings: Where the pod runs, and its folders and tickets.
        image: Image of the init containers.
        shared_memory: Size of /dev/shm.
        service_account: Name of the ServiceAccount.
        restricted: Meet the Pod Security level `restricted`; otherwise run as the image's user.
        keep_token: Let the ServiceAccount decide whether its token for Kubernetes' API is mounted.
            Otherwise it is not: trials and jobs do not use the API.
    """
    fields = settings.pod_fields()
    if restricted:
        fields["securityContext"] = POD_SECURITY
    if service_account:
        fields["serviceAccountName"] = service_account
    if not keep_token:
        fields["automountServiceAccountToken"] = False
    volumes = settings.volumes()
    if shared_memory:
        # Docker's 64 MB are too small for NCCL and data loading. It counts towards the memory
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
    """Return the fields of a container besides image and command: environment, resources, mounts.

    Args:
        settings: Folders and tickets of the pod.
        env: Environment variables.
        resources: Resources.
        shared_memory: Mount the pod's /dev/shm.
        restricted: Meet the Pod Security level `restricted`.
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
    """Return the pod of a PyTorchJob's replica: one container named 'pytorch', without a sidecar.

    The training operator refuses containers of other names. `program` is the command with its
    arguments.
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
    """Return the spec of a PyTorchJob of a Master and `replicas - 1` Workers with the same pod.

    OnFailure restarts a pod that died (preemption, a lost node), and it resumes from its
    checkpoint. After a failure that would repeat, a marker file ends the restarted pod at once.
    Only running pods are deleted at the end, so that logs stay.

    Args:
        pod: Template of the pods.
        replicas: Number of pods.
        gpus: GPUs of each pod.
        deadline: Seconds that the job may take.
        sidecars: Number of containers that a controller adds to the Master.
    """
    replica = {"restartPolicy": "OnFailure", "template": pod}
    specs = {"Master": {"replicas": 1, **replica}}
    if replicas > 1:
        specs["Worker"] = {"replicas": replicas - 1, **replica}
    # The operator sums the restarts of all containers of a job's running pods, and ends the job
    # once they reach the limit (trainer v1.9.3 pkg/core/job.go:95-132). If one container dies, the
    # others of its pod and of the other replicas die with it.
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
    """Return `python -m module`, or torchrun if a pod has several GPUs.

    torchrun reads the PET_* variables that the training operator sets.
    """
    return ["torchrun", "-m", module] if gpus > 1 else ["python", "-m", module]


def server_of(service: Manifest) -> Manifest:
    """Return the container of an InferenceService's predictor, in either of its forms."""
    predictor = service["spec"]["predictor"]
    server: Manifest = predictor["model" if "model" in predictor else "triton"]
    return server


def storage_uri(service: Manifest) -> str:
    """Return the address of the model repository that an InferenceService serves."""
    uri: str = server_of(service)["storageUri"]
    return uri
