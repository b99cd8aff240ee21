"""Play a recording of a real InferenceService to a client of the fake API server."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

from clusters.kubernetes_objects import REVISION_LABEL
from tests.clusters.contract import service
from tests.clusters.fake_api import FakeApi

FOLDER = Path(__file__).parent / "recordings"
TRITON_LOG = FOLDER / "triton-badconfig.log"
# of a recording in one second of the test; its pods take a minute to come up
SPEED = 100.0


class Replay:
    """A controller that sets the status and the pods of a service as they were recorded.

    The clock starts when a client makes or updates the service. The recording's last revision
    stands for the client's, whose label its pods then carry.
    """

    def __init__(self, name: str) -> None:
        lines = (FOLDER / f"{name}.jsonl").read_text().splitlines()
        self.entries = [json.loads(line) for line in lines]
        revisions = [entry["service"]["revision"] for entry in self.entries if entry["service"]]
        self.revision = revisions[-1]
        self.has_former = revisions[0] != self.revision
        self._start: float | None = None
        self.current: dict = self.entries[0]

    def __call__(self, api: FakeApi) -> None:
        service = api.find("inferenceservices", "jec-pfn")
        if service is None:
            return
        ours = (service["metadata"].get("labels") or {}).get(REVISION_LABEL)
        if ours is None or ours == "former":
            self._apply(api, service, self.entries[0], "")
            return
        if self._start is None:
            self._start = time.monotonic()
        first = next(
            entry["time"]
            for entry in self.entries
            if entry["service"] and entry["service"]["revision"] == self.revision
        )
        now = first + SPEED * (time.monotonic() - self._start)
        self.current = [entry for entry in self.entries if entry["time"] <= now][-1]
        self._apply(api, service, self.current, ours)

    def make_former(self, api: FakeApi) -> None:
        """Make the service that the recording begins with."""
        former = service(uri="s3://models/former/model")
        former["metadata"]["labels"][REVISION_LABEL] = "former"
        api.create("inferenceservices", former)

    def _apply(self, api: FakeApi, service: dict, entry: dict, ours: str) -> None:
        if entry["service"]:
            status = copy.deepcopy(entry["service"]["status"])
            if service.get("status") != status:
                service["status"] = status
                api.touch(service)
        pods = {pod["metadata"]["name"]: pod for pod in entry["pods"]}
        for pod in api.all("pods"):
            if pod["metadata"]["name"] not in pods:
                api.delete("pods", pod)
        for name, pod in pods.items():
            self._set_pod(api, name, copy.deepcopy(pod), ours)

    def _set_pod(self, api: FakeApi, name: str, pod: dict, ours: str) -> None:
        labels = pod["metadata"]["labels"]
        labels["serving.kserve.io/inferenceservice"] = "jec-pfn"
        is_ours = labels[REVISION_LABEL] == self.revision
        labels[REVISION_LABEL] = ours if is_ours else "former"
        old_pod = api.find("pods", name)
        if old_pod is None:
            spec = {"containers": [{"name": "kserve-container", "image": "triton"}]}
            old_pod = api.create("pods", {"metadata": {"name": name}, "spec": spec})
        old_pod["metadata"] |= pod["metadata"]
        old_pod["status"] = pod["status"]
        for container in pod["status"].get("initContainerStatuses", []):
            container |= {"image": "initializer", "imageID": ""}
        for container in pod["status"].get("containerStatuses", []):
            container |= {"image": "triton", "imageID": ""}
            for previous in (False, True):
                api.logs[pod["metadata"]["uid"], container["name"], previous] = (
                    TRITON_LOG.read_text()
                )
