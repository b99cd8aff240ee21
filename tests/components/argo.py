"""A fake of Argo and KFP's launcher, which runs the steps of a run on the fake API server.

Each step is a real process that stands for its pod. Each rule names its source: a project with its
version, file and line, or "seen": observed with KFP 2.15.0 and Argo 3.7.3, the version it needs.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import signal
import subprocess
import sys
import threading
import time

from clusters.protocol import KFP_POD, STEP_LABEL
from clusters.workflow import KFP_RUN_LABEL
from tests.clusters.fake_api import FakeApi, now, set_condition

# Seen: a step lives 0.42 to 0.82 s after SIGTERM (terminate and deleted pods), whatever its grace
# period is, because KFP's launcher dies at once and Argo then ends the container.
KILL_SECONDS = 0.5
# Seen: "Argo's own latency is about 10 s a step".
LATENCY = 10.0
TEMPLATE = "system-container-impl"
CHAIN = ("prepare", "search", "export", "evaluate", "deploy")


class Retries:
    """The rules by which Argo decides whether and when to retry a step. Times are in seconds."""

    def __init__(self, policy: dict) -> None:
        """`policy`: a task's retryPolicy in the IR."""
        self.limit = policy["maxRetryCount"]
        self.duration = float(policy["backoffDuration"].removesuffix("s"))
        self.factor = policy["backoffFactor"]
        # kfp 2.15.0 backend/src/v2/compiler/argocompiler/container.go:393: "0" where it is absent
        self.longest = float(policy.get("backoffMaxDuration", "0s").removesuffix("s"))
        self.attempts = 0
        self.first_start = math.nan

    @property
    def deadline(self) -> float:
        """The time at which the next attempt is killed.

        argo v3.7.3 workflow/controller/operator.go:1016 and :1068: the longest duration counts from
        the start of the first attempt, and becomes the deadline of each retried pod.
        """
        return self.first_start + self.longest if self.attempts else math.inf

    def wait(
        self, start_time: float, end_time: float, phase: str, *, terminated: bool
    ) -> float | None:
        """Seconds until the next attempt after one that did not succeed; None if none follows."""
        self.attempts += 1
        if self.attempts == 1:
            self.first_start = start_time
        # argo v3.7.3 workflow/controller/operator.go:993: none after the Workflow's deadline
        if terminated:
            return None
        # ... :1017 and :1055: none where the longest duration is over, or would be by then
        wait = self.duration * self.factor ** (self.attempts - 1)
        if end_time + wait > self.first_start + self.longest:
            return None
        # argo v3.7.3 pkg/apis/workflow/v1alpha1/workflow_types.go:2166: KFP sets no policy, and the
        # default retries a node that failed, not one with an error; operator.go:1262: a deleted pod
        # is an error
        if phase == "Error":
            return None
        # ... operator.go:1109
        return None if self.attempts > self.limit else wait


@dataclasses.dataclass(kw_only=True)
class Attempt:
    """One pod of a step."""

    step: str
    phase: str
    """Argo's: Succeeded, Failed or Error."""
    message: str = ""
    output: str = ""


class Argo:
    """Run steps of the compiled pipeline, and the exit handler, as a Workflow of the fake cluster.

    `clock` is the time that the run would have taken: that of the processes, Argo's latency for
    each pod, and its waits between attempts, which are not slept.
    """

    def __init__(
        self,
        api: FakeApi,
        spec: dict,
        job_id: str,
        commands: dict[str, list[str]],
    ) -> None:
        """`commands`: step -> arguments of its program; steps without one have succeeded before."""
        self.api, self.job_id, self.commands = api, job_id, commands
        self.attempts: list[Attempt] = []
        self.omitted: list[str] = []
        self.clock = 0.0
        self.waits: list[float] = []
        self._policies = _policies(spec)
        self._ends: dict[str, str] = {}
        self._refusals: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        with api.lock:
            name = f"jec-pipeline-{job_id[-5:]}"
            self.workflow = api.create("workflows", {"metadata": {"name": name}, "spec": {}})

    def start(self) -> Argo:
        self._thread.start()
        return self

    def join(self, seconds: float = 40.0) -> None:
        """Wait until the exit handler has ended, too."""
        self._thread.join(seconds)
        output = "\n".join(attempt.output for attempt in self.attempts)
        assert not self._thread.is_alive(), f"the run did not end:\n{output}"

    @property
    def terminated(self) -> bool:
        return self.workflow["spec"].get("activeDeadlineSeconds") == 0

    def terminate(self) -> None:
        """kfp 2.15.0 backend/src/apiserver/resource/resource_manager.go:850: one patch."""
        with self.api.lock:
            self.workflow["spec"]["activeDeadlineSeconds"] = 0

    def delete_pod(self, step: str) -> None:
        self._ends[step] = "delete"

    def evict(self, step: str) -> None:
        """Let the kubelet evict the step's pod, which stays, as it does under memory pressure.

        argo v3.7.3 workflow/controller/operator.go:1653: such a node has failed, and is retried.
        """
        self._ends[step] = "evict"

    def refuse(self, node: str, message: str) -> Argo:
        """Let the API server refuse the pod of a step (search) or of a driver (search-driver)."""
        self._refusals[node] = message
        return self

    # The Workflow
    # --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        well = True
        for step in CHAIN:
            if step not in self.commands and not self.attempts:
                continue
            # Seen: steps after one that did not end well are omitted, after a termination as well.
            driver = f"{step}-driver"
            if not well or self.terminated:
                self.omitted.append(step)
            elif driver in self._refusals:
                # Seen: no retry, and the message begins so.
                well = False
                self.omitted.append(step)
                message = f"task 'x.{driver}' errored: {self._refusals[driver]}"
                self._add_node(driver, "Error", message)
            else:
                well = self._step(step)
        # Seen: the exit handler runs after a termination and after a lost pod as well; argo v3.7.3
        # workflow/controller/workflowpod.go:585: the Workflow's deadline is not its pod's.
        self._step("finish")
        with self.api.lock:
            # Seen: a terminated run ends as Failed.
            self.workflow.setdefault("status", {})["phase"] = "Succeeded" if well else "Failed"

    def _step(self, step: str) -> bool:
        retries = Retries(self._policies[step])
        while True:
            self.clock += LATENCY
            attempt_start = self.clock
            start_time = time.monotonic()
            attempt = self._attempt(step)
            self.attempts.append(attempt)
            name = f"{step}.executor({retries.attempts})"
            self._add_node(name, attempt.phase, attempt.message)
            self.clock += time.monotonic() - start_time
            if attempt.phase == "Succeeded":
                return True
            wait = retries.wait(
                attempt_start, self.clock, attempt.phase, terminated=self.terminated
            )
            if wait is None:
                return False
            self.waits.append(wait)
            self.clock += wait

    def _add_node(self, path: str, phase: str, message: str) -> None:
        flow = self.workflow["metadata"]["name"]
        with self.api.lock:
            nodes = self.workflow.setdefault("status", {}).setdefault("nodes", {})
            number = len(nodes)
            path = f"root.exit-handler-1.{path}"
            nodes[f"{flow}-{number}"] = node(path, phase, message, flow=flow, number=number)

    # A pod
    # --------------------------------------------------------------------------------------------

    def _attempt(self, step: str) -> Attempt:
        if step in self._refusals:
            return Attempt(step=step, phase="Error", message=self._refusals[step])
        pod = self._create_pod(step)
        environment = {**os.environ, KFP_POD: pod["metadata"]["name"]}
        environment.pop("JEC_LOCAL_DIR", None)
        process = subprocess.Popen(
            [sys.executable, "-m", f"components.{step}", *self.commands[step]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        end = ""
        while process.poll() is None and not end:
            end = self._ends.pop(step, "")
            if self.terminated and step != "finish":
                end = "terminate"
            time.sleep(0.01)
        if end:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        code = process.wait()
        reader.join()
        process.stdout.close()
        return dataclasses.replace(self._attempt_of(step, pod, end, code), output="".join(lines))

    def _create_pod(self, step: str) -> dict:
        """A step's pod.

        argo v3.7.3 workflow/controller/workflowpod.go:203 (owner), workflow/common/common.go:87
        (label); kfp 2.15.0 backend/src/common/util/consts.go:43 (label) and
        backend/src/v2/compiler/argocompiler/common.go:41 (KFP_POD_NAME).
        """
        name = self.workflow["metadata"]["name"]
        owner = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": name,
            "uid": self.workflow["metadata"]["uid"],
            "controller": True,
        }
        labels = {
            "workflows.argoproj.io/workflow": name,
            KFP_RUN_LABEL: self.job_id,
            STEP_LABEL: step,
        }
        with self.api.lock:
            # argo v3.7.3 workflow/util/pod_name.go:50, and the id of the node that comes of it
            nodes = self.workflow.get("status", {}).get("nodes", {})
            pod_name = f"{name}-{TEMPLATE}-{len(nodes)}"
            metadata = {"name": pod_name, "labels": labels, "ownerReferences": [owner]}
            pod = self.api.create(
                "pods", {"metadata": metadata, "spec": {"containers": [{"name": "main"}]}}
            )
            pod["status"] = {"phase": "Running"}
        return pod

    def _attempt_of(self, step: str, pod: dict, end: str, code: int) -> Attempt:
        """End a pod, and return the attempt that Argo records of it."""
        with self.api.lock:
            if end == "delete":
                self.api.delete("pods", pod)
                # argo v3.7.3 workflow/controller/operator.go:1262
                return Attempt(step=step, phase="Error", message="pod deleted")
            pod["status"]["phase"] = "Failed" if code else "Succeeded"
            # seen: argoexec ends with an error of its own when its pod is stopped
            codes = {"wait": 2 if end else 0, "main": code if code >= 0 else 128 - code}
            pod["status"]["containerStatuses"] = [
                container_status(name, exit_code) for name, exit_code in codes.items()
            ]
            if end == "evict":
                # kubernetes v1.34.4 pkg/kubelet/eviction/helpers.go:46, eviction_manager.go:428
                message = "The node was low on resource: memory."
                pod["status"] |= {"reason": "Evicted", "message": message}
                set_condition(pod, "DisruptionTarget", reason="TerminationByKubelet")
            self.api.touch(pod)
        return Attempt(step=step, phase="Failed" if code else "Succeeded")

    # What KFP shows of it
    # --------------------------------------------------------------------------------------------

    def task_details(self) -> list[dict]:
        """The tasks as GetRun of KFP 2.15.0 gives them."""
        phases = {attempt.step: attempt.phase for attempt in self.attempts}
        counts = {step: self.numbers(step) for step in phases}
        states = {step: "SUCCEEDED" if phases[step] == "Succeeded" else "FAILED" for step in phases}
        return task_details({**states, **dict.fromkeys(self.omitted)}, counts)

    def numbers(self, step: str) -> int:
        """How many attempts a step had."""
        return sum(attempt.step == step for attempt in self.attempts)


def task_details(states: dict[str, str | None], attempts: dict[str, int] | None = None) -> list:
    """Tasks as GetRun of KFP 2.15.0 gives them: step -> its state, None for one that is omitted.

    Seen: beside the steps there are root, the drivers, executors and their attempts; an omitted
    task has no state, and an end that is its start. kfp 2.15.0
    backend/src/apiserver/server/api_converter.go:1807: no task ever has an error.
    """
    tasks = [_task(name, "RUNNING") for name in ("root", "root-driver", "exit-handler-1")]
    for step, state in states.items():
        tasks.append(_task(f"{step}-driver", "SUCCEEDED" if state else None))
        tasks.append(_task(step, state))
        if state:
            tasks.append(_task("executor", state))
            count = (attempts or {}).get(step, 1)
            tasks += [_task(f"executor({number})", "FAILED") for number in range(count)]
    tasks.append(_task("exit-handler-1.onExit", "SUCCEEDED"))
    return tasks


def node(
    path: str, phase: str, message: str, kind: str = "Pod", *, flow: str = "flow", number: int = 1
) -> dict:
    """A node of a Workflow, as Argo 3.7.3 writes it (seen).

    `path` as in root.exit-handler-1.search.executor(0).
    """
    return {
        "id": f"{flow}-{number}",
        "name": f"{flow}.{path}",
        "displayName": path.rpartition(".")[2],
        "type": kind,
        "templateName": TEMPLATE,
        "phase": phase,
        "message": message,
        "startedAt": now(),
    }


def container_status(name: str, exit_code: int) -> dict:
    """The status of a container that has ended."""
    end = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed"}
    return {
        "name": name,
        "image": name,
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": {**end, "finishedAt": now()}},
        "lastState": {},
    }


def _task(name: str, state: str | None) -> dict:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    end_time = start + datetime.timedelta(seconds=30 if state else 0)
    # A task that runs carries the year 1: Go's zero time.
    end = "0001-01-01T00:00:00Z" if state == "RUNNING" else end_time.isoformat()
    task = {"display_name": name, "start_time": start.isoformat(), "end_time": end}
    return task | ({"state": state} if state else {})


def _policies(spec: dict) -> dict[str, dict]:
    """Each step's retryPolicy in the IR."""
    policies = {}
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    for dag in dags:
        for name, task in dag["tasks"].items():
            if "retryPolicy" in task:
                policies[name] = task["retryPolicy"]
    return policies
