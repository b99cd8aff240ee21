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
        known = [entry["service"]["revision"] for entry in self.entries if entry["service"]]
        self.revision = known[-1]
        self.has_former = known[0] != self.revision
        self._started: float | None = None
        self.current: dict = self.entries[0]

    def __call__(self, api: FakeApi) -> None:
        found = api.find("inferenceservices", "jec-pfn")
        if found is None:
            return
        ours = (found["metadata"].get("labels") or {}).get(REVISION_LABEL)
        if ours is None or ours == "former":
            self._apply(api, found, self.entries[0], "")
            return
        if self._started is None:
            self._started = time.monotonic()
        first = next(
            entry["time"]
            for entry in self.entries
            if entry["service"] and entry["service"]["revision"] == self.revision
        )
        now = first + SPEED * (time.monotonic() - self._started)
        self.current = [entry for entry in self.entries if entry["time"] <= now][-1]
        self._apply(api, found, self.current, ours)

    def make_former(self, api: FakeApi) -> None:
        """Make the service that the recording begins with."""
        former = service(uri="s3://models/former/model")
        former["metadata"]["labels"][REVISION_LABEL] = "former"
        api.create("inferenceservices", former)

    def _apply(self, api: FakeApi, found: dict, entry: dict, ours: str) -> None:
        if entry["service"]:
            status = copy.deepcopy(entry["service"]["status"])
            if found.get("status") != status:
                found["status"] = status
                api.touch(found)
        recorded = {pod["metadata"]["name"]: pod for pod in entry["pods"]}
        for pod in api.all("pods"):
            if pod["metadata"]["name"] not in recorded:
                api.delete("pods", pod)
        for name, pod in recorded.items():
            self._set_pod(api, name, copy.deepcopy(pod), ours)

    def _set_pod(self, api: FakeApi, name: str, pod: dict, ours: str) -> None:
        labels = pod["metadata"]["labels"]
        labels["serving.kserve.io/inferenceservice"] = "jec-pfn"
        is_ours = labels[REVISION_LABEL] == self.revision
        labels[REVISION_LABEL] = ours if is_ours else "former"
        stored = api.find("pods", name)
        if stored is None:
            spec = {"containers": [{"name": "kserve-container", "image": "triton"}]}
            stored = api.create("pods", {"metadata": {"name": name}, "spec": spec})
        stored["metadata"] |= pod["metadata"]
        stored["status"] = pod["status"]
        for container in pod["status"].get("initContainerStatuses", []):
            container |= {"image": "initializer", "imageID": ""}
        for container in pod["status"].get("containerStatuses", []):
            container |= {"image": "triton", "imageID": ""}
            for previous in (False, True):
                api.logs[pod["metadata"]["uid"], container["name"], previous] = (
                    TRITON_LOG.read_text()
                )
