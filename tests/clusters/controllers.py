"""Scripted controllers for the fake API server, which fail as real ones do.

They are a node that runs pods, the training operator, Katib and KServe. The server calls each in
turn while it holds its lock. A controller changes objects as the real one does, as far as a client
of the API server sees it. A `Play` says what a pod does; a pod of `ProcessNode` is a real process.

Each rule carries its source: a project with version, file and line, or "seen" with the version and
the topic. Times are scaled down.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.clusters.fake_api import FakeApi, has_condition, now, set_condition
from tests.clusters.katib_wrap import COLLECTOR, EARLY_STOPPED, expand_references, inject

# Katib's default filter: katib v0.19.0 pkg/metricscollector/v1beta1/common/const.go:47
KATIB_METRIC = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
UNAVAILABLE = "unavailable"  # katib v0.19.0 pkg/controller.v1beta1/consts/const.go:155
METRICS_PATH = "/var/log/katib/metrics.log"
# kubernetes v1.34.4 pkg/kubelet/kuberuntime/kuberuntime_manager.go:1626-1633
CRASHED = {
    "waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
}
# kubernetes v1.34.4 pkg/scheduler/framework/types.go:764
UNSCHEDULABLE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
# kubernetes v1.34.4 apiserver/pkg/admission/plugin/resourcequota/controller.go:622
QUOTA = (
    'pods "{name}" is forbidden: exceeded quota: kf-resource-quota, requested:'
    " requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited:"
    " requests.nvidia.com/gpu=2"
)


@dataclasses.dataclass(kw_only=True)
class Play:
    """The life of a pod: what it waits for, how long it runs (seconds), and how it ends."""

    pending: str = ""
    """'unschedulable', 'image', 'config' or 'mount': the pod waits until a test empties it."""
    seconds: float = 0.0
    exit_code: int = 0
    log: str = ""
    metrics: str = ""
    reason: str = ""
    """Why it ends: 'OOMKilled' (the container's reason) or 'Evicted' (the pod's)."""
    stops_early: bool = False
    container: str = ""
    """The container that ends; by default the pod's first.

    'storage-initializer' is KServe's init container.
    """


class Node:
    """Run every pod by its Play; `play(pod)` returns it, anew at each start of its container.

    A container that ends is started again as the pod's restartPolicy says (kubernetes v1.34.4
    pkg/kubelet/container/helpers.go:82), and a pod whose container waits for its next start stays
    Running (pkg/kubelet/kubelet_pods.go:1642, getPhase).
    """

    backoff = 0.12  # seconds between the end of a container and its next start

    def __init__(self, play: Callable[[dict], Play] = lambda pod: Play()) -> None:
        self.play = play
        self.metrics: dict[str, str] = {}
        self.plays: dict[str, Play] = {}
        self._since: dict[str, float] = {}

    def __call__(self, api: FakeApi) -> None:
        for pod in api.all("pods"):
            # The steps' own pods are run by tests/components/argo.py.
            if "workflows.argoproj.io/workflow" in (pod["metadata"].get("labels") or {}):
                continue
            if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
                self._advance(api, pod)

    def _advance(self, api: FakeApi, pod: dict) -> None:
        uid, status = pod["metadata"]["uid"], pod.setdefault("status", {"phase": "Pending"})
        play = (
            self.plays.setdefault(uid, self.play(pod)) if uid not in self.plays else self.plays[uid]
        )
        if play.pending:
            self._hold(api, pod, play.pending)
            return
        set_condition(pod, "PodScheduled")
        if (
            _restarting(status)
            and time.monotonic() - self._since.get(uid, -math.inf) < self.backoff
        ):
            return
        if play.container == "storage-initializer":
            self._fail_init(api, pod, play)
        elif status["phase"] == "Pending" or _restarting(status):
            self._start(api, pod, play)
        elif time.monotonic() - self._since[uid] >= play.seconds:
            self._end(api, pod, play)

    def _hold(self, api: FakeApi, pod: dict, why: str) -> None:
        """Let a pod wait, and say why as the scheduler and the kubelet do.

        kubernetes v1.34.4 pkg/scheduler/schedule_one.go:200 (Unschedulable);
        pkg/kubelet/kuberuntime/kuberuntime_container.go:68 (CreateContainerConfigError);
        pkg/kubelet/kubelet_pods.go:85 (ContainerCreating); pkg/kubelet/events/event.go:61 and
        pkg/volume/hostpath/host_path.go:471 (FailedMount).
        """
        scheduled = why != "unschedulable"
        set_condition(
            pod,
            "PodScheduled",
            str(scheduled),
            "" if scheduled else "Unschedulable",
            "" if scheduled else UNSCHEDULABLE,
        )
        waiting = {
            "image": _image_missing(pod["spec"]["containers"][0].get("image", "")),
            "config": {
                "reason": "CreateContainerConfigError",
                "message": 'secret "s3-keys" not found',
            },
            "mount": {"reason": "ContainerCreating"},
        }.get(why)
        if waiting:
            pod["status"]["containerStatuses"] = [
                _container(pod, {"waiting": waiting}, ready=False)
            ]
        if why == "image" and _of_a_trial(api, pod):
            self._crash_collector(api, pod)
        if why == "mount":
            api.event(
                pod,
                "FailedMount",
                'MountVolume.SetUp failed for volume "eos" : hostPath type check failed: /var/eos'
                " is not a directory",
            )

    def _crash_collector(self, api: FakeApi, pod: dict) -> None:
        """End Katib's collector with 255 again and again, as its training has no process.

        Seen with Katib 0.19.0; its log names another process each time.
        """
        uid, name = pod["metadata"]["uid"], "metrics-logger-and-collector"
        restarts = int(time.monotonic() / 0.05) % 1000
        end = {
            "exitCode": 255,
            "reason": "Error",
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:00Z",
        }
        pod["status"]["containerStatuses"].append(
            _container(pod, {"terminated": end}, ready=False, restarts=restarts, name=name)
        )
        api.logs[uid, name, False] = f"unable to find main pid from the process list [1 {restarts}]"

    def _start(self, api: FakeApi, pod: dict, play: Play) -> None:
        uid, status, container = pod["metadata"]["uid"], pod["status"], _first(pod)
        old = (status.get("containerStatuses") or [{}])[0]
        last, restarts = old.get("lastState") or {}, old.get("restartCount", 0)
        status["phase"] = "Running"
        # The fake's probe: a container that ends at once never passes it.
        ready = play.seconds > 0
        status["containerStatuses"] = _with_collector(
            pod,
            _container(
                pod, {"running": {"startedAt": now()}}, ready=ready, last=last, restarts=restarts
            ),
        )
        set_condition(pod, "Ready", str(ready))
        self._since[uid] = time.monotonic()
        api.logs[uid, container, False] = play.log
        api.touch(pod)

    def stop_early(self, api: FakeApi, pod: dict) -> None:
        """End a pod whose trial was stopped early: its container exits with 0.

        Seen with Katib 0.19.0: the stopped pod is Completed.
        """
        self._end(api, pod, dataclasses.replace(self.plays[pod["metadata"]["uid"]], exit_code=0))

    def _end(self, api: FakeApi, pod: dict, play: Play) -> None:
        """End a pod's container, and the pod where nothing starts it again.

        An evicted pod: kubernetes v1.34.4 pkg/kubelet/eviction/helpers.go:44-46 and
        eviction_manager.go:428 (DisruptionTarget).
        """
        uid, status = pod["metadata"]["uid"], pod["status"]
        self.metrics[uid] = play.metrics
        api.logs[uid, play.container or _first(pod), False] = play.log
        code = {"OOMKilled": 137, "Evicted": 137}.get(play.reason, play.exit_code)
        reason = "OOMKilled" if play.reason == "OOMKilled" else "Error" if code else "Completed"
        end = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "startedAt": now(),
                "finishedAt": now(),
            }
        }
        policy = pod["spec"].get("restartPolicy", "Always")
        set_condition(pod, "Ready", "False")
        if play.reason == "Evicted":
            status |= {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "The node was low on resource: memory.",
            }
            set_condition(pod, "DisruptionTarget", reason="TerminationByKubelet")
            status["containerStatuses"] = [_container(pod, end, ready=False)]
        elif policy == "Always" or (policy == "OnFailure" and code):
            self._restart(api, pod, end, play)
        else:
            status["phase"] = "Failed" if code else "Succeeded"
            status["containerStatuses"] = _with_collector(
                pod, _container(pod, end, ready=False, restarts=_restarts(status))
            )
        api.touch(pod)

    def _restart(self, api: FakeApi, pod: dict, end: dict, play: Play) -> None:
        uid, status, name = pod["metadata"]["uid"], pod["status"], play.container or _first(pod)
        api.logs[uid, name, True] = api.logs.pop((uid, name, False))
        status["containerStatuses"] = _with_collector(
            pod,
            _container(
                pod, CRASHED, ready=False, last=end, restarts=_restarts(status) + 1, name=name
            ),
        )
        self._since[uid] = time.monotonic()
        self.plays.pop(uid)

    def _fail_init(self, api: FakeApi, pod: dict, play: Play) -> None:
        """Let an init container fail again and again; the others wait (PodInitializing).

        kubernetes v1.34.4 pkg/kubelet/kubelet_pods.go:2264.
        """
        uid, status, name = pod["metadata"]["uid"], pod["status"], play.container
        restarts = (
            max(
                (
                    container["restartCount"]
                    for container in status.get("initContainerStatuses", [])
                ),
                default=-1,
            )
            + 1
        )
        end = {"terminated": {"exitCode": play.exit_code, "reason": "Error", "finishedAt": now()}}
        status["initContainerStatuses"] = [
            _container(pod, CRASHED, ready=False, last=end, restarts=restarts, name=name)
        ]
        status["containerStatuses"] = [
            _container(pod, {"waiting": {"reason": "PodInitializing"}}, ready=False)
        ]
        api.logs[uid, name, True] = play.log
        self._since[uid] = time.monotonic()
        api.touch(pod)

    def partial_metrics(self, pod: dict) -> str:
        """Return what a running pod has written to its metrics file; nothing for a Play."""
        return ""


class ProcessNode(Node):
    """Run the pods' containers as processes of this machine, each with its own metrics file."""

    backoff = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._processes: dict[str, subprocess.Popen] = {}

    def close(self) -> None:
        for uid, process in self._processes.items():
            self._kill(uid)
            process.wait()
        self._folder.cleanup()

    def __call__(self, api: FakeApi) -> None:
        alive = {pod["metadata"]["uid"] for pod in api.all("pods")}
        for uid in set(self._processes) - alive:
            self._kill(uid)
        super().__call__(api)

    def _advance(self, api: FakeApi, pod: dict) -> None:
        uid = pod["metadata"]["uid"]
        if (
            _restarting(pod.setdefault("status", {"phase": "Pending"}))
            and time.monotonic() - self._since[uid] < self.backoff
        ):
            return
        if uid not in self._processes:
            self._launch(pod)
            self.plays[uid] = Play(seconds=math.inf)
            self._start(api, pod, self.plays[uid])
        code = self._processes[uid].poll()
        if code is not None:
            output = Path(self._folder.name) / f"{uid}.out"
            metrics = self._metrics_folder(uid) / os.path.basename(METRICS_PATH)
            text = metrics.read_text() if metrics.exists() else ""
            self._processes.pop(uid)
            self._end(
                api,
                pod,
                Play(
                    exit_code=code if code >= 0 else 128 - code,
                    log=output.read_text(),
                    metrics=text,
                ),
            )

    def partial_metrics(self, pod: dict) -> str:
        uid = pod["metadata"]["uid"]
        path = self._metrics_folder(uid) / os.path.basename(METRICS_PATH)
        return path.read_text() if uid in self._processes and path.exists() else ""

    def terminate(self, pod: dict) -> str:
        """Stop a trial early, as Katib's collector does; return its metrics file.

        It marks the shell's process as stopped and ends the only child of that shell, which then
        completes (katib v0.19.0 cmd/metricscollector/v1beta1/file-metricscollector/main.go:265-297;
        several children: main.go:288).
        """
        uid, text = pod["metadata"]["uid"], self.partial_metrics(pod)
        shell = self._processes[uid]
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        if len(children) != 1:
            raise AssertionError(f"Multiple children processes are not supported: {children}")
        mark = self._metrics_folder(uid) / f"{shell.pid}.pid"
        mark.write_text(EARLY_STOPPED)
        os.kill(int(children[0]), signal.SIGTERM)
        shell.wait(10)
        return text

    def _launch(self, pod: dict) -> None:
        uid, container = pod["metadata"]["uid"], pod["spec"]["containers"][0]
        env = {
            entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry
        }
        folder = self._metrics_folder(uid)
        folder.mkdir(exist_ok=True)
        command = [
            part.replace(os.path.dirname(METRICS_PATH), str(folder))
            for part in expand_references([*container["command"], *container.get("args", [])], env)
        ]
        # The image's python is ours.
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        with (Path(self._folder.name) / f"{uid}.out").open("wb") as output:
            self._processes[uid] = subprocess.Popen(
                command,
                env={**os.environ, "PATH": path, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _metrics_folder(self, uid: str) -> Path:
        """The volume that Katib mounts at the folder of the metrics file."""
        return Path(self._folder.name) / uid

    def _kill(self, uid: str) -> None:
        """End a container's processes.

        So does the kubelet at the end of the grace period (Kubernetes documentation, Pod
        Lifecycle: "Termination of Pods").
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[uid].pid, signal.SIGKILL)


class TrainingOperator:
    """Make the pods of PyTorchJobs, and set the jobs' conditions.

    Order and words are those of trainer v1.9.3 pkg/controller.v1/common/job.go:187-247 (limits,
    before the pods' states) and pkg/controller.v1/pytorch/pytorchjob_controller.go:383-442.

    While `quota` is set no pod is admitted, and events report the quota; while `refusal` is, they
    report that text of the API server, to which {name} is the pod's name. The event is that of
    kubeflow/trainer v1.9.3, pkg/controller.v1/control/pod_control.go:153; each attempt counts it
    up (seen with 1.9.3: 14 attempts in 25 s). Only pods from number `admits` on are refused.
    """

    def __init__(self, quota: bool = False) -> None:
        self.quota = quota
        self.refusal = ""
        self.admits = 0
        self._start_times: dict[str, float] = {}

    def __call__(self, api: FakeApi) -> None:
        for job in api.all("pytorchjobs"):
            if not has_condition(job, "Succeeded", "Failed"):
                self._reconcile(api, job)

    def _reconcile(self, api: FakeApi, job: dict) -> None:
        """Make pods that are missing, and delete failed ones that are to be made again.

        trainer v1.9.3 pkg/controller.v1/common/pod.go:313-378; the condition Created:
        pkg/controller.v1/pytorch/pytorchjob_controller.go:521.
        """
        name = job["metadata"]["name"]
        set_condition(
            job, "Created", reason="PyTorchJobCreated", message=f"PyTorchJob {name} is created."
        )
        self._start_times.setdefault(job["metadata"]["uid"], time.monotonic())
        pods = {
            pod["metadata"]["name"]: pod
            for pod in api.all("pods", f"training.kubeflow.org/job-name={name}")
        }
        specs, policy = job["spec"]["pytorchReplicaSpecs"], job["spec"].get("runPolicy") or {}
        replicas = [
            (role, index)
            for role in ("Master", "Worker")
            if role in specs
            for index in range(specs[role].get("replicas", 1))
        ]
        for rank, (role, index) in enumerate(replicas):
            pod = pods.get(f"{name}-{role.lower()}-{index}")
            if pod is None:
                self._create_pod(api, job, role, index, rank, len(replicas))
            elif (
                pod["status"]["phase"] == "Failed"
                and specs[role].get("restartPolicy") == "OnFailure"
            ):
                api.delete("pods", pod)  # the next round creates it again
        self._set_status(api, job, list(pods.values()), policy)

    def _create_pod(
        self, api: FakeApi, job: dict, role: str, index: int, rank: int, world: int
    ) -> None:
        """Make one pod.

        trainer v1.9.3 pkg/controller.v1/common/pod.go:402-435 (labels, name, restart policy),
        pkg/controller.v1/common/util.go:50 (name), pkg/controller.v1/pytorch/envvar.go:56-95.
        """
        name, spec = job["metadata"]["name"], job["spec"]["pytorchReplicaSpecs"][role]
        pod = copy.deepcopy(spec["template"])
        pod_name = f"{name}-{role.lower()}-{index}"
        refusal = QUOTA if self.quota else self.refusal
        if refusal and rank >= self.admits:
            api.event(job, "FailedCreatePod", "Error creating: " + refusal.format(name=pod_name))
            return
        labels = {
            "job-name": name,
            "replica-type": role.lower(),
            "replica-index": str(index),
            "operator-name": "pytorchjob-controller",
        }
        if role == "Master":
            labels["job-role"] = "master"  # trainer v1.9.3 pkg/controller.v1/common/pod.go:406
        env = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "23456",
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "PYTHONUNBUFFERED": "1",
        }
        metadata = pod.setdefault("metadata", {})
        metadata |= {"name": pod_name, "ownerReferences": [_owner(job)]}
        metadata.setdefault("labels", {}).update(
            {f"training.kubeflow.org/{key}": value for key, value in labels.items()}
        )
        pod["spec"]["restartPolicy"] = spec.get("restartPolicy", "Never")
        for container in pod["spec"]["containers"]:
            container.setdefault("env", []).extend(
                {"name": key, "value": value} for key, value in env.items()
            )
        trial = api.find("trials", name)
        if trial is not None:
            inject(pod, trial)
        api.create("pods", pod)["status"] = {"phase": "Pending"}

    def _set_status(self, api: FakeApi, job: dict, pods: list[dict], policy: dict) -> None:
        name, counts = job["metadata"]["name"], {}
        for pod in pods:
            role = pod["metadata"]["labels"]["training.kubeflow.org/replica-type"].capitalize()
            key = {"Running": "active", "Succeeded": "succeeded", "Failed": "failed"}.get(
                pod["status"]["phase"]
            )
            if key:
                counts.setdefault(role, {})[key] = counts.get(role, {}).get(key, 0) + 1
        job["status"]["replicaStatuses"] = counts
        # Of all containers of the pods that run (trainer v1.9.3 pkg/core/job.go:112-126); one of
        # a job that has just failed again still runs. A pod whose image is missing stays Pending,
        # and nothing is counted (seen with 1.9.3).
        restarts = sum(
            container["restartCount"]
            for pod in pods
            if pod["status"]["phase"] == "Running"
            for container in pod["status"].get("containerStatuses") or []
        )
        limit = policy.get("backoffLimit")
        deadline = policy.get("activeDeadlineSeconds", math.inf)
        replica_failures = [
            (role, counts[role]["failed"])
            for role, spec in job["spec"]["pytorchReplicaSpecs"].items()
            if counts.get(role, {}).get("failed") and spec.get("restartPolicy") == "Never"
        ]
        if limit is not None and restarts > 0 and restarts >= limit:
            # Whatever cleanPodPolicy says, the pods and their logs are deleted before the status
            # is set (trainer v1.9.3 pkg/core/job.go:129-132, pkg/controller.v1/common/job.go:216).
            message = f"Job {name} has failed because it has reached the specified backoff limit"
            self._finish(api, job, pods, "Failed", message, all)
        elif time.monotonic() - self._start_times[job["metadata"]["uid"]] > deadline:
            message = f"Job {name} has failed because it was active longer than specified deadline"
            self._finish(api, job, pods, "Failed", message, all)
        elif counts.get("Master", {}).get("succeeded"):
            message = f"PyTorchJob {name} is successfully completed."
            self._finish(api, job, pods, "Succeeded", message)
        elif replica_failures:
            role, number = replica_failures[0]
            message = f"PyTorchJob {name} is failed because {number} {role} replica(s) failed."
            self._finish(api, job, pods, "Failed", message)
        elif counts.get("Master", {}).get("active"):
            message = f"PyTorchJob {name} is running."
            set_condition(job, "Running", reason="PyTorchJobRunning", message=message)
        api.touch(job)

    def _finish(
        self,
        api: FakeApi,
        job: dict,
        pods: list[dict],
        kind: str,
        message: str,
        clean: object = None,
    ) -> None:
        """Set a job's last condition, and delete its pods as its cleanPodPolicy says.

        trainer v1.9.3 pkg/controller.v1/common/job.go:43-69; the default None:
        pkg/apis/kubeflow.org/v1/pytorch_defaults.go:79; Running becomes False:
        pkg/util/status.go:142.
        """
        policy = (job["spec"].get("runPolicy") or {}).get("cleanPodPolicy", "None")
        for pod in pods:
            if (
                clean is all
                or policy == "All"
                or (policy == "Running" and pod["status"]["phase"] in ("Running", "Pending"))
            ):
                api.delete("pods", pod)
        set_condition(job, "Running", "False")
        set_condition(job, kind, reason=f"PyTorchJob{kind}", message=message)
        job["status"]["completionTime"] = now()


class Katib:
    """Make trials, jobs and observations, choose the optimal trial and end experiments.

    An experiment that has ended makes no trials, but counts those that still run, which nothing
    ends (katib v0.19.0 pkg/controller.v1beta1/experiment/experiment_controller.go:189-225 and
    :271-283; seen: "Failed experiment"). `assignments` holds the parameters of each trial in order;
    by default they are the product of the lists, or the ends of the ranges. With `suggestion_pod` a
    pod of the namespace proposes the trials, so it has to run first; while `suggestion_refusal` is
    set, that pod may not be created. With `silent_collector` the metrics collector never reports,
    so trials whose jobs have succeeded wait for ever.
    """

    def __init__(
        self,
        node: Node,
        assignments: list[dict[str, str]] | None = None,
        *,
        silent_collector: bool = False,
        suggestion_pod: bool = False,
        suggestion_refusal: str = "",
    ) -> None:
        self.suggestion_refusal = suggestion_refusal
        self._refusals = 0
        self._refused_at = -math.inf
        self.node = node
        self.assignments = assignments
        self.silent_collector = silent_collector
        self.suggestion_pod = suggestion_pod
        self.observation_rounds = 10
        """After how many of its rounds Katib observes a trial that was stopped early."""
        self._stopped_metrics: dict[str, str] = {}
        self._stopped_rounds: dict[str, int] = {}

    def __call__(self, api: FakeApi) -> None:
        for experiment in api.all("experiments"):
            self._reconcile(api, experiment)

    def _reconcile(self, api: FakeApi, experiment: dict) -> None:
        name = experiment["metadata"]["name"]
        trials = api.all("trials", f"katib.kubeflow.org/experiment={name}")
        for trial in trials:
            self._reconcile_trial(api, trial)
        if has_condition(experiment, "Succeeded", "Failed"):
            self._clean_up_suggestion(api, experiment)
        if _resumes(experiment, trials):
            _restart(experiment)
        elif has_condition(experiment, "Succeeded", "Failed"):
            if experiment["status"].get("trialsRunning"):
                _update_summary(experiment, trials)
                api.touch(experiment)
            return
        self._ensure_deployment(api, experiment)
        set_condition(
            experiment, "Created", reason="ExperimentCreated", message="Experiment is created"
        )
        set_condition(
            experiment, "Running", reason="ExperimentRunning", message="Experiment is running"
        )
        reaches_goal = _update_summary(experiment, trials)
        self._end(experiment, reaches_goal)
        if self.suggestion_refusal:
            self._refuse_suggestion_pod(api, experiment)
            return
        if self.suggestion_pod and not self._suggestion_pod_ready(api, experiment):
            return
        if not has_condition(experiment, "Succeeded", "Failed"):
            for index in range(_trials_to_make(experiment, trials)):
                self._create_trial(api, experiment, len(trials) + index)
        api.touch(experiment)

    def _ensure_deployment(self, api: FakeApi, experiment: dict) -> None:
        """Make the Deployment of the algorithm, also one that was deleted meanwhile.

        From katib v0.19.0 pkg/controller.v1beta1/suggestion/suggestion_controller_util.go:31-43.
        """
        name = _deployment_name(experiment)
        if api.find("deployments", name) is None:
            metadata = {"name": name, "ownerReferences": [_owner(experiment)]}
            api.create("deployments", {"metadata": metadata, "spec": {"replicas": 1}})

    def _clean_up_suggestion(self, api: FakeApi, experiment: dict) -> None:
        """Remove the algorithm's Deployment of an experiment that has ended and never resumes.

        From katib v0.19.0 pkg/controller.v1beta1/experiment/experiment_controller.go:190-197; seen:
        with LongRunning it stays until the experiment goes.
        """
        if experiment["spec"].get("resumePolicy", "Never") != "Never":
            return
        name = _deployment_name(experiment)
        for plural, dependent in (("deployments", name), ("pods", name + "-5d8")):
            thing = api.find(plural, dependent)
            if thing is not None:
                api.delete(plural, thing)

    def _refuse_suggestion_pod(self, api: FakeApi, experiment: dict) -> None:
        """Record each attempt of the ReplicaSet as an event about a pod of another name.

        Kubernetes 1.34.4, pkg/controller/controller_utils.go:595; of more than ten such events
        one is made, with a head (seen with Kubernetes 1.34.4 and Katib 0.19.0).
        """
        if time.monotonic() - self._refused_at < 0.05:
            return
        self._refused_at = time.monotonic()
        self._refusals += 1
        algorithm = experiment["spec"]["algorithm"]["algorithmName"]
        replica_set = f"{experiment['metadata']['name']}-{algorithm}-6797bffc9c"
        owner = {"kind": "ReplicaSet", "metadata": {"name": replica_set, "uid": "rs-1"}}
        pod_name = f"{replica_set}-{self._refusals:05d}"
        head = "(combined from similar events): " if self._refusals > 9 else ""
        text = f"{head}Error creating: {self.suggestion_refusal.format(name=pod_name)}"
        api.event(owner, "FailedCreate", text)

    def _suggestion_pod_ready(self, api: FakeApi, experiment: dict) -> bool:
        """Whether the algorithm's pod runs; without it no trial is proposed.

        katib v0.19.0 pkg/controller.v1beta1/suggestion/suggestion_controller.go:243-250.
        """
        name = _deployment_name(experiment) + "-5d8"
        pod = api.find("pods", name)
        if pod is None:
            metadata = {
                "name": name,
                "labels": {"katib.kubeflow.org/suggestion": experiment["metadata"]["name"]},
            }
            spec = {
                "containers": [{"name": "suggestion", "image": "katib/suggestion-hyperopt:v0.19.0"}]
            }
            pod = api.create(
                "pods",
                {"metadata": {**metadata, "ownerReferences": [_owner(experiment)]}, "spec": spec},
            )
            pod["status"] = {"phase": "Pending"}
        return has_condition(pod, "Ready")

    def _create_trial(self, api: FakeApi, experiment: dict, index: int) -> dict:
        """Make a trial of the template, its values put in as text.

        katib v0.19.0 pkg/controller.v1beta1/experiment/experiment_controller_util.go:39-96,
        pkg/controller.v1beta1/experiment/manifest/generator.go:109-171 (the values),
        pkg/controller.v1beta1/util/labels.go:40 (labels),
        pkg/controller.v1beta1/suggestion/suggestionclient/suggestionclient.go:177 (a random name),
        pkg/apis/controller/experiments/v1beta1/experiment_defaults.go:49-95 (strategies).
        """
        spec, name = experiment["spec"], f"{experiment['metadata']['name']}-{_suffix(index)}"
        assignment = (
            self.assignments[index] if self.assignments else _suggest(spec["parameters"], index)
        )
        template = spec["trialTemplate"]
        text = json.dumps(template["trialSpec"])
        for parameter in template["trialParameters"]:
            value = (
                name
                if parameter["reference"] == "${trialSpec.Name}"
                else assignment[parameter["reference"]]
            )
            text = text.replace(f"${{trialParameters.{parameter['name']}}}", value)
        labels = {
            **experiment["metadata"].get("labels", {}),
            "katib.kubeflow.org/experiment": experiment["metadata"]["name"],
        }
        strategies = [
            {
                "name": spec["objective"]["objectiveMetricName"],
                "value": spec["objective"]["type"][:3],
            }
        ]
        trial = api.create(
            "trials",
            {
                "metadata": {
                    "name": name,
                    "labels": labels,
                    "ownerReferences": [_owner(experiment)],
                },
                "spec": {
                    "earlyStoppingRules": self._rules(api, experiment),
                    "parameterAssignments": [
                        {"name": key, "value": value} for key, value in assignment.items()
                    ],
                    "objective": {"metricStrategies": strategies, **spec["objective"]},
                    "runSpec": json.loads(text),
                    "primaryPodLabels": template.get("primaryPodLabels"),
                    "metricsCollector": spec.get("metricsCollectorSpec"),
                    "retainRun": template.get("retain", False),
                },
                "status": {"startTime": now(), "completionTime": None},
            },
        )
        set_condition(trial, "Created", reason="TrialCreated", message="Trial is created")
        return trial

    def _rules(self, api: FakeApi, experiment: dict) -> list[dict]:
        """Return the rules of Katib's medianstop service.

        The limit is a mean over the trials that have succeeded, of the average of each trial's
        first values (katib v0.19.0 pkg/earlystopping/v1beta1/medianstop/service.py:161-243).
        """
        spec = experiment["spec"]
        early_stopping = spec.get("earlyStopping")
        if not early_stopping:
            return []
        settings = {
            setting["name"]: int(setting["value"])
            for setting in early_stopping["algorithmSettings"]
        }
        averages = []
        for trial in api.all(
            "trials", f"katib.kubeflow.org/experiment={experiment['metadata']['name']}"
        ):
            if has_condition(trial, "Succeeded"):
                master = api.find("pods", f"{trial['metadata']['name']}-master-0")
                first = _objective_values(
                    self.node.metrics[master["metadata"]["uid"]], spec["objective"]
                )[: settings["start_step"]]
                averages.append(sum(first) / len(first))
        if len(averages) < settings["min_trials_required"]:
            return []
        comparison = "greater" if spec["objective"]["type"] == "minimize" else "less"
        return [
            {
                "name": spec["objective"]["objectiveMetricName"],
                "value": str(sum(averages) / len(averages)),
                "comparison": comparison,
                "startStep": settings["start_step"],
            }
        ]

    def _reconcile_trial(self, api: FakeApi, trial: dict) -> None:
        """Make a trial's job, and read how it ended.

        katib v0.19.0 pkg/controller.v1beta1/trial/trial_controller.go:220-324 (the job, which goes
        with its trial unless it is retained), pkg/controller.v1beta1/trial/util/job_util.go:111
        (Running as soon as there is a job). A trial that was stopped early keeps Running (seen:
        "Succeeded, EarlyStopped").
        """
        if _state(trial) not in ("running", "pending"):
            self._observe_early_stop(api, trial)
            return
        name = trial["metadata"]["name"]
        job = api.find("pytorchjobs", name)
        if job is None:
            job = copy.deepcopy(trial["spec"]["runSpec"])
            job.setdefault("metadata", {}).update(name=name, ownerReferences=[_owner(trial)])
            job = api.create("pytorchjobs", job)
            set_condition(trial, "Running", reason="TrialRunning", message="Trial is running")
        self._collect(api, trial, job)
        if _state(trial) not in ("running", "pending") and not trial["spec"]["retainRun"]:
            api.delete("pytorchjobs", job)
        api.touch(trial)

    def _collect(self, api: FakeApi, trial: dict, job: dict) -> None:
        """Set a trial's condition by its job's end and by what was collected of its metrics.

        katib v0.19.0 pkg/controller.v1beta1/trial/trial_controller_util.go:42-132; a job that has
        succeeded is waited for until its metrics are there (trial_controller.go:261-266). A trial
        that was stopped early is marked by medianstop's service, which sets this condition only
        (pkg/earlystopping/v1beta1/medianstop/service.py:277-285).
        """
        master = api.find("pods", f"{job['metadata']['name']}-master-0")
        play = self.node.plays.get(master["metadata"]["uid"]) if master else None
        text = self.node.partial_metrics(master) if master else ""
        final_text = None
        if any(
            _stops(rule, text, trial["spec"]["objective"])
            for rule in trial["spec"].get("earlyStoppingRules", [])
        ):
            final_text = self.node.terminate(master)
        elif play and play.stops_early and master["status"]["phase"] == "Running":
            final_text = play.metrics
            if _one_user(master):
                self.node.stop_early(api, master)
        if final_text is not None:
            self._stopped_metrics[trial["metadata"]["uid"]] = final_text
            message = "Trial is early stopped"
            set_condition(trial, "EarlyStopped", reason="TrialEarlyStopped", message=message)
        elif has_condition(job, "Failed"):
            _end_trial(trial, "Failed", "Trial has failed", job)
        elif has_condition(job, "Succeeded") and not self.silent_collector:
            metrics = observe(
                self.node.metrics.get(master["metadata"]["uid"], ""), trial["spec"]["objective"]
            )
            trial["status"]["observation"] = {"metrics": metrics}
            if _metric(trial)["latest"] == UNAVAILABLE:
                _end_trial(trial, "MetricsUnavailable", "Metrics are not available", job)
            else:
                _end_trial(trial, "Succeeded", "Trial has succeeded", job)

    def _observe_early_stop(self, api: FakeApi, trial: dict) -> None:
        """Give a trial that was stopped early its observation, unless two users ran its pod.

        It comes after the condition (seen with Katib 0.19.0: the last trial of a search with
        medianstop). The collector's image runs as root and writes its mark with mode 0644, so that
        a container of another user cannot write "completed" there: it is restarted, and the trial
        never gets an observation (seen: "medianstop, container uid 1000").
        """
        uid = trial["metadata"]["uid"]
        if trial["status"].get("observation") or uid not in self._stopped_metrics:
            return
        self._stopped_rounds[uid] = self._stopped_rounds.get(uid, 0) + 1
        master = api.find("pods", f"{trial['metadata']['name']}-master-0")
        if master and _one_user(master) and self._stopped_rounds[uid] > self.observation_rounds:
            metrics = observe(self._stopped_metrics[uid], trial["spec"]["objective"])
            trial["status"]["observation"] = {"metrics": metrics}
            api.touch(trial)

    def _end(self, experiment: dict, reaches_goal: bool) -> None:
        """End an experiment by its goal, its failures or its number of trials, in this order.

        katib v0.19.0 pkg/controller.v1beta1/experiment/util/status_util.go:187-235.
        """
        spec, status = experiment["spec"], experiment["status"]
        failure_count = status.get("trialsFailed", 0) + status.get("trialMetricsUnavailable", 0)
        active = status.get("trialsRunning", 0) + status.get("trialsPending", 0)
        completed_count = status["trials"] - active
        if reaches_goal:
            self._finish(
                experiment,
                "Succeeded",
                "ExperimentGoalReached",
                "Experiment has succeeded because Objective goal has reached",
            )
        elif failure_count and failure_count >= spec.get("maxFailedTrialCount", math.inf):
            self._finish(
                experiment,
                "Failed",
                "ExperimentFailed",
                "Experiment has failed because max failed count has reached",
            )
        elif completed_count >= spec.get("maxTrialCount", math.inf):
            self._finish(
                experiment,
                "Succeeded",
                "ExperimentMaxTrialsReached",
                "Experiment has succeeded because max trial count has reached",
            )

    def _finish(self, experiment: dict, kind: str, reason: str, message: str) -> None:
        """katib v0.19.0 pkg/apis/controller/experiments/v1beta1/util.go:145-160."""
        set_condition(experiment, "Running", "False")
        set_condition(experiment, kind, reason=reason, message=message)
        experiment["status"]["completionTime"] = now()


class KServe:
    """Make the predictor pods of InferenceServices, and set the services' status.

    mode: 'raw', KServe's RawDeployment without an ingress, or 'serverless', with Knative.
    version: of the raw mode, which differ in PredictorReady: '0.15', '0.16' or '0.20'.
    lag: how long the status stays that of the spec before an update, in seconds.
    invalid: the message of a spec that KServe cannot serve.
    copies_labels: whether the pods get the service's labels.
    url: the services' address, by default one that does not resolve.
    room: how many predictor pods the namespace's quota allows.
    refuses: a message with which no pod is admitted, as Pod Security's.
    """

    def __init__(
        self,
        lag: float = 0.0,
        invalid: str = "",
        copies_labels: bool = True,
        url: str = "",
        *,
        mode: str = "raw",
        version: str = "0.15",
        room: float = math.inf,
        refuses: str = "",
    ) -> None:
        self.lag, self.invalid, self.copies_labels, self.url = lag, invalid, copies_labels, url
        self.mode, self.version, self.room, self.refuses = mode, version, room, refuses
        # of each service: its templates in the order of their first appearance
        self._templates: dict[str, list[str]] = {}
        self._current: dict[str, tuple[str, float]] = {}

    def __call__(self, api: FakeApi) -> None:
        services = api.all("inferenceservices")
        names = {service["metadata"]["name"] for service in services}
        for pod in api.all("pods", "serving.kserve.io/inferenceservice"):
            if pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"] not in names:
                api.delete("pods", pod)
        for service in services:
            self._reconcile(api, service)

    def _reconcile(self, api: FakeApi, service: dict) -> None:
        metadata, status = service["metadata"], service.setdefault("status", {})
        number, since = self._number(service)
        if time.monotonic() - since < (self.lag if number > 1 else 0):
            return
        if self.invalid:
            info = {"reason": "NoSupportingRuntime", "message": self.invalid}
            status["modelStatus"] = {"transitionStatus": "InvalidSpec", "lastFailureInfo": info}
            return
        pods = self._pods(api, metadata["name"])
        current = [pod for pod in pods if pod["metadata"]["labels"]["revision"] == str(number)]
        former = [pod for pod in pods if pod not in current]
        strategy = service["spec"]["predictor"].get("deploymentStrategy") or {}
        # Recreate ends the former pods first, a surge when the new ones are ready.
        ready = bool(current) and all(has_condition(pod, "Ready") for pod in current)
        if ready or (strategy.get("type") == "Recreate" and self.mode == "raw"):
            for pod in former:
                api.delete("pods", pod)
        if not current:
            self._create_pod(api, service, number)
        if self.mode == "raw":
            self._set_raw_status(api, service, number)
        else:
            self._set_serverless_status(api, service, number, ready)

    def _number(self, service: dict) -> tuple[int, float]:
        """Which template the service has, from 1, and since when.

        A template that was there before gets its ReplicaSet back, with the pods that it still has
        (seen: a service whose former spec and labels were put back kept its pod).
        """
        metadata = service["metadata"]
        # kserve v0.15.2 pkg/controller/v1beta1/inferenceservice/components/predictor.go:444:
        # labels and annotations of the service are those of the pods.
        predictor = {
            key: value
            for key, value in service["spec"]["predictor"].items()
            if key not in ("deploymentStrategy", "minReplicas", "maxReplicas")
        }
        parts = [predictor, metadata.get("labels") or {}, metadata.get("annotations") or {}]
        template = json.dumps(parts, sort_keys=True)
        templates = self._templates.setdefault(metadata["uid"], [])
        if template not in templates:
            templates.append(template)
        current, since = self._current.get(metadata["uid"], ("", -math.inf))
        if current != template:
            since = time.monotonic()
            self._current[metadata["uid"]] = template, since
        return templates.index(template) + 1, since

    def _pods(self, api: FakeApi, name: str) -> list[dict]:
        return api.all("pods", f"serving.kserve.io/inferenceservice={name}")

    def _create_pod(self, api: FakeApi, service: dict, number: int) -> None:
        name = service["metadata"]["name"]
        pod_name = f"{name}-predictor-{number:05d}"
        refusal = self.refuses
        if len(api.all("pods", "serving.kserve.io/inferenceservice")) >= self.room:
            refusal = QUOTA.format(name=pod_name)
        if refusal:
            # Seen: FailedCreate of the ReplicaSet, and nothing on the InferenceService.
            replica_set = {
                "kind": "ReplicaSet",
                "metadata": {"name": pod_name, "uid": f"{service['metadata']['uid']}-{number}"},
            }
            api.event(replica_set, "FailedCreate", f"Error creating: {refusal}")
            return
        service_labels = service["metadata"].get("labels", {}) if self.copies_labels else {}
        labels = {
            **service_labels,
            "serving.kserve.io/inferenceservice": name,
            "revision": str(number),
        }
        if self.mode == "serverless":
            labels["serving.knative.dev/revision"] = pod_name
        pod = api.create(
            "pods",
            {
                "metadata": {
                    "name": pod_name,
                    "labels": labels,
                    "ownerReferences": [_owner(service)],
                },
                "spec": {
                    "containers": [{"name": "kserve-container", "image": "tritonserver:23.05-py3"}],
                    "restartPolicy": "Always",
                },
            },
        )
        pod["status"] = {"phase": "Pending"}

    def _set_raw_status(self, api: FakeApi, service: dict, number: int) -> None:
        name, status = service["metadata"]["name"], service["status"]
        pods = self._pods(api, name)
        current = [pod for pod in pods if pod["metadata"]["labels"]["revision"] == str(number)]
        deployment = self._deployment(api, service, number, pods, current)
        set_condition(service, "IngressReady")
        if "deploymentMode" not in status:
            # Seen: in the first seconds PredictorReady and observedGeneration are missing.
            status["deploymentMode"] = "RawDeployment" if self.version == "0.15" else "Standard"
            set_condition(service, "Ready", "Unknown")
            api.touch(service)
            return
        available = any(has_condition(pod, "Ready") for pod in pods)
        # kserve v0.15.2 pkg/apis/serving/v1beta1/inference_service_status.go:334: PredictorReady is
        # the Deployment's Available, and observedGeneration the Deployment's.
        value, reason = str(available), "" if available else "MinimumReplicasUnavailable"
        rolling = len(pods) > len(current) or not all(
            has_condition(pod, "Ready") for pod in current
        )
        if self.version == "0.16" and (rolling or not current):
            # Read: 0.16 and 0.17 follow the rollout.
            value, reason = "Unknown", "DeploymentRolling"
        for kind in ("PredictorReady", "Ready"):
            set_condition(service, kind, value, reason)
        predictor = status.setdefault("components", {}).setdefault("predictor", {})
        status["observedGeneration"] = deployment["status"]["observedGeneration"]
        if value == "True":
            host = f"{name}-predictor.{api.namespace}.svc.cluster.local"
            predictor["url"] = f"http://{name}-predictor-{api.namespace}.example.com"
            status["url"] = f"http://{name}-{api.namespace}.example.com"
            status["address"] = {"url": self.url or f"http://{host}"}
        _set_model_status(service, pods)
        api.touch(service)

    def _deployment(
        self, api: FakeApi, service: dict, number: int, pods: list[dict], current: list[dict]
    ) -> dict:
        name = f"{service['metadata']['name']}-predictor"
        deployment = api.find("deployments", name)
        if deployment is None:
            deployment = api.create(
                "deployments",
                {"metadata": {"name": name, "ownerReferences": [_owner(service)]}, "spec": {}},
            )
        labels = dict(service["metadata"].get("labels") or {})
        selector = {"matchLabels": {"app": f"isvc.{name}"}}
        spec = {"replicas": 1, "selector": selector, "template": {"metadata": {"labels": labels}}}
        if deployment["spec"] != spec:
            deployment["spec"] = spec
            deployment["metadata"]["generation"] += 1
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(current),
            "availableReplicas": sum(has_condition(pod, "Ready") for pod in pods),
        }
        return deployment

    def _set_serverless_status(self, api: FakeApi, service: dict, number: int, ready: bool) -> None:
        name, status = service["metadata"]["name"], service["status"]
        for kind in ("IngressReady", "PredictorReady", "Ready"):
            set_condition(service, kind, str(ready), "" if ready else "MinimumReplicasUnavailable")
        status["deploymentMode"] = "Serverless"
        status["observedGeneration"] = number + 40
        revisions = status.setdefault("components", {}).setdefault("predictor", {})
        revisions["latestCreatedRevision"] = f"{name}-predictor-{number:05d}"
        if ready:
            revisions["latestReadyRevision"] = f"{name}-predictor-{number:05d}"
            status["url"] = self.url or f"https://{name}.{api.namespace}.example.org"
            status["address"] = {
                "url": f"http://{name}.{api.namespace}.svc.cluster.local/v1/models/{name}:predict"
            }
        api.touch(service)


def _set_model_status(service: dict, pods: list[dict]) -> None:
    """Set modelStatus from the newest of *all* pods of the service, former ones too.

    Source: kserve v0.15.2 pkg/apis/serving/v1beta1/inference_service_status.go:579
    (PropagateModelStatus) and pkg/controller/v1beta1/inferenceservice/utils/utils.go:340. A pod
    without container statuses, as one that no node takes, changes nothing; lastFailureInfo is never
    cleared.
    """
    model = service["status"].setdefault("modelStatus", {})
    if not pods:
        model["transitionStatus"] = "InProgress"
        return None
    status = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])["status"]
    for container in status.get("initContainerStatuses", []):
        if container["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
            return _block_model(model, container["lastState"]["terminated"])
    if has_condition(service, "Ready"):
        model["transitionStatus"] = "UpToDate"
        return None
    for container in status.get("containerStatuses", []):
        if container["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
            _block_model(model, container["lastState"]["terminated"])
        else:
            model["transitionStatus"] = "InProgress"
    return None


def _block_model(model: dict, end: dict) -> None:
    model["transitionStatus"] = "BlockedByFailedLoad"
    model["lastFailureInfo"] = {
        "reason": "ModelLoadFailed",
        "message": end.get("message", ""),
        "exitCode": end["exitCode"],
    }


def observe(text: str, objective: dict) -> list[dict[str, str]]:
    """Return the observation that Katib makes of a metrics file. The objective comes last.

    The minimum and the maximum are taken over the numbers, the latest value over all texts; Katib's
    order of metrics is random (katib v0.19.0
    pkg/controller.v1beta1/trial/trial_controller_util.go:192-244). Without a value of the objective
    nothing is reported (pkg/metricscollector/v1beta1/file-metricscollector/
    file-metricscollector.go:169-193).
    """
    names = [*objective.get("additionalMetricNames", []), objective["objectiveMetricName"]]
    metrics = {
        name: {"name": name, "min": UNAVAILABLE, "max": UNAVAILABLE, "latest": UNAVAILABLE}
        for name in names
    }
    matches = list(KATIB_METRIC.finditer(text))
    if objective["objectiveMetricName"] not in {match[1] for match in matches}:
        return list(metrics.values())
    for match in matches:
        metric, value = metrics.get(match[1]), match[2]
        if metric is None:
            continue
        metric["latest"] = value
        if not math.isnan(_number(value)):
            for key, choose in (("min", min), ("max", max)):
                metric[key] = (
                    value if metric[key] == UNAVAILABLE else choose(metric[key], value, key=float)
                )
    return list(metrics.values())


def _objective_values(text: str, objective: dict) -> list[float]:
    """Return the objective's finite values in the order of the file's lines."""
    values = [
        _number(match[2])
        for match in KATIB_METRIC.finditer(text)
        if match[1] == objective["objectiveMetricName"]
    ]
    return [value for value in values if math.isfinite(value)]


def _stops(rule: dict, text: str, objective: dict) -> bool:
    """Whether the collector stops a trial by a rule.

    It compares the best of the first `startStep` values with the rule's value, once (katib v0.19.0
    cmd/metricscollector/v1beta1/file-metricscollector/main.go:336-385).
    """
    values = _objective_values(text[: text.rfind("\n") + 1], objective)[: rule["startStep"]]
    if len(values) < rule["startStep"]:
        return False
    return (
        min(values) > float(rule["value"])
        if rule["comparison"] == "greater"
        else max(values) < float(rule["value"])
    )


def _resumes(experiment: dict, trials: list[dict]) -> bool:
    """Whether Katib resumes an experiment that has ended.

    It does if the experiment had all its trials, now allows more, and its resumePolicy is not
    Never, the default (katib v0.19.0
    pkg/controller.v1beta1/experiment/experiment_controller.go:201-204, util/status_util.go:240-246,
    pkg/apis/controller/experiments/v1beta1/constants.go:24).
    """
    succeeded = next(
        (
            condition
            for condition in experiment.get("status", {}).get("conditions", [])
            if condition["type"] == "Succeeded"
        ),
        {},
    )
    restartable = (
        succeeded.get("status") == "True" and succeeded["reason"] == "ExperimentMaxTrialsReached"
    )
    spec = experiment["spec"]
    return (
        restartable
        and spec.get("resumePolicy", "Never") != "Never"
        and spec["maxTrialCount"] > len(trials)
    )


def _restart(experiment: dict) -> None:
    """katib v0.19.0 pkg/apis/controller/experiments/v1beta1/util.go:139-143."""
    status = experiment["status"]
    end_conditions = ("Succeeded", "Failed")
    status["conditions"] = [
        condition for condition in status["conditions"] if condition["type"] not in end_conditions
    ]
    message = "Experiment is restarted"
    set_condition(experiment, "Restarting", reason="ExperimentRestarting", message=message)


COUNTS = {  # katib v0.19.0 pkg/apis/controller/experiments/v1beta1/experiment_types.go:119-140
    "killed": "trialsKilled",
    "failed": "trialsFailed",
    "succeeded": "trialsSucceeded",
    "earlyStopped": "trialsEarlyStopped",
    "running": "trialsRunning",
    "metricsUnavailable": "trialMetricsUnavailable",
    "pending": "trialsPending",
}


def _update_summary(experiment: dict, trials: list[dict]) -> bool:
    """Write the counts of trials by state and the optimal trial; whether the goal is reached.

    katib v0.19.0 pkg/controller.v1beta1/experiment/util/status_util.go:56-151. A count of 0 is
    left out.
    """
    status = experiment.setdefault("status", {})
    for key in COUNTS.values():
        status.pop(key, None)
    status["trials"] = len(trials)
    for trial in trials:
        key = COUNTS[_state(trial)]
        status[key] = status.get(key, 0) + 1
    best, reaches_goal = _optimum(experiment["spec"]["objective"], trials)
    if best:
        status["currentOptimalTrial"] = {
            "bestTrialName": best["metadata"]["name"],
            "observation": best["status"]["observation"],
            "parameterAssignments": best["spec"]["parameterAssignments"],
        }
    return reaches_goal


def _optimum(objective: dict, trials: list[dict]) -> tuple[dict | None, bool]:
    """The optimal trial, and whether the goal is reached.

    A trial whose value is no number counts as the best one until a better number follows; where it
    was the first one, a number is better if it is better than 0 (katib v0.19.0
    pkg/controller.v1beta1/experiment/util/status_util.go:94-129).
    """
    best, best_value, reaches_goal = None, 0.0, False
    goal = objective.get("goal")
    minimize = objective["type"] == "minimize"
    for trial in trials:
        text = _objective(trial)
        if text == UNAVAILABLE:
            continue
        value = _number(text)
        if math.isnan(value):
            best = trial
            continue
        if best is None or (value < best_value if minimize else value > best_value):
            best, best_value = trial, value
        if goal is not None:
            reaches_goal = reaches_goal or (best_value <= goal if minimize else best_value >= goal)
    return best, reaches_goal


def _objective(trial: dict) -> str:
    """A trial's value of the objective: katib v0.19.0 ... util/status_util.go:153-184."""
    if not trial["status"].get("observation"):
        return UNAVAILABLE
    metric = _metric(trial)
    value = metric[trial["spec"]["objective"]["metricStrategies"][0]["value"]]
    return metric["latest"] if value == UNAVAILABLE else value


def _metric(trial: dict) -> dict[str, str]:
    """The metric of the objective in a trial's observation."""
    name = trial["spec"]["objective"]["objectiveMetricName"]
    return next(
        metric for metric in trial["status"]["observation"]["metrics"] if metric["name"] == name
    )


def _end_trial(trial: dict, kind: str, message: str, job: dict) -> None:
    """Set a trial's last condition; reason and message repeat those of the job's.

    katib v0.19.0 pkg/controller.v1beta1/trial/trial_controller_util.go:50-110,
    pkg/apis/controller/trials/v1beta1/util.go:150-180 (Running becomes False).
    """
    set_condition(trial, "Running", "False")
    trial["status"]["completionTime"] = now()
    of_job = "Failed" if kind == "Failed" else "Succeeded"
    end = next(
        condition for condition in job["status"]["conditions"] if condition["type"] == of_job
    )
    reason = f"Trial{kind}. Job reason: {end['reason']}"
    message = f"{message}. Job message: {end['message']}"
    set_condition(trial, kind, reason=reason, message=message)


def _trials_to_make(experiment: dict, trials: list[dict]) -> int:
    """How many trials an experiment makes now.

    Trials without metrics do not count as completed. A trial that was stopped early and has no
    observation takes the place of a further one (katib v0.19.0
    pkg/controller.v1beta1/experiment/experiment_controller.go:290-333, :461-473; seen: "medianstop,
    container uid 1000").
    """
    spec, status = experiment["spec"], experiment["status"]
    active = status.get("trialsRunning", 0) + status.get("trialsPending", 0)
    completed = len(trials) - active - status.get("trialMetricsUnavailable", 0)
    parallel = spec.get("parallelTrialCount", 3)  # .../experiments/v1beta1/constants.go:21
    required = min(spec.get("maxTrialCount", math.inf) - completed, parallel)
    waiting = sum(
        has_condition(trial, "EarlyStopped") and not trial["status"].get("observation")
        for trial in trials
    )
    return max(0, required - active - waiting)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _state(trial: dict) -> str:
    """A trial's state, by the first of these conditions that is True.

    katib v0.19.0 pkg/controller.v1beta1/experiment/util/status_util.go:78-92.
    """
    for kind in ("Killed", "Failed", "Succeeded", "EarlyStopped", "Running", "MetricsUnavailable"):
        if has_condition(trial, kind):
            return kind[0].lower() + kind[1:]
    return "pending"


def _suggest(parameters: list[dict], index: int) -> dict[str, str]:
    """Return the index-th point of a grid over the lists, and over the two ends of each range."""
    assignment = {}
    for parameter in parameters:
        space = parameter["feasibleSpace"]
        values = space.get("list") or [space["min"], space["max"]]
        assignment[parameter["name"]] = values[index % len(values)]
        index //= len(values)
    return assignment


def _deployment_name(experiment: dict) -> str:
    """katib v0.19.0 pkg/controller.v1beta1/util/suggestion.go:27."""
    algorithm = experiment["spec"]["algorithm"]["algorithmName"]
    return f"{experiment['metadata']['name']}-{algorithm}"


def _one_user(pod: dict) -> bool:
    """Whether Katib's collector and the training run as the same user.

    The collector's image runs as root otherwise (seen: "medianstop, container uid 1000").
    """
    return "runAsUser" in (pod["spec"].get("securityContext") or {})


def _suffix(index: int) -> str:
    return f"{index:02d}xk{index * 7919 % 9973:04d}"


def _owner(thing: dict) -> dict:
    return {
        "apiVersion": thing["apiVersion"],
        "kind": thing["kind"],
        "name": thing["metadata"]["name"],
        "uid": thing["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _image_missing(image: str) -> dict:
    """One of the two states of a container whose image is missing; they alternate.

    Seen with Kubernetes 1.34.4 (kubernetes v1.34.4 pkg/kubelet/images/image_manager.go:280-291 and
    :354); before 1.32 the second message ended after the image (read).
    """
    cause = f'failed to resolve reference "{image}": no such host'
    if int(time.monotonic() / 0.05) % 2:
        return {"reason": "ErrImagePull", "message": cause}
    message = f'Back-off pulling image "{image}": ErrImagePull: {cause}'
    return {"reason": "ImagePullBackOff", "message": message}


def _of_a_trial(api: FakeApi, pod: dict) -> bool:
    name = (pod["metadata"].get("labels") or {}).get("training.kubeflow.org/job-name", "")
    job = api.find("pytorchjobs", name)
    owners = job["metadata"].get("ownerReferences", []) if job else []
    return any(owner["kind"] == "Trial" for owner in owners)


def _first(pod: dict) -> str:
    return pod["spec"]["containers"][0]["name"]


def _restarts(status: dict) -> int:
    return max(
        (container.get("restartCount", 0) for container in status.get("containerStatuses") or []),
        default=0,
    )


def _restarting(status: dict) -> bool:
    return any(
        "waiting" in container["state"] for container in status.get("containerStatuses") or []
    )


def _with_collector(pod: dict, first: dict) -> list[dict]:
    """The statuses of a pod's containers: that of the first, and of Katib's collector beside it.

    The collector fails with the program, and is restarted with it (seen: "backoffLimit 3").
    """
    if len(pod["spec"]["containers"]) == 1:
        return [first]
    return [first, {**first, "name": COLLECTOR}]


def _container(
    pod: dict,
    state: dict,
    *,
    ready: bool,
    last: dict | None = None,
    restarts: int = 0,
    name: str = "",
) -> dict:
    container = pod["spec"]["containers"][0]
    return {
        "name": name or container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": ready,
        "state": state,
        "lastState": last or {},
        "restartCount": restarts,
    }
