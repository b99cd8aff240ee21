"""One run: its names and the addresses of its files, which follow from the run id.

run.json is its record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

from common import storage
from common.config import AUTO, RunConfig
from common.errors import InputError
from common.layout import RunFolder
from common.records import RunRecord

# characters of the network's name in a run id, so that with '-' and 8 hex digits every name stays
# below Katib's 40
SLUG = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run with its id and storage.

    `record` has the content of run.json beside the configuration.
    """

    config: RunConfig
    record: RunRecord = dataclasses.field(default_factory=RunRecord)

    @property
    def id(self) -> str:
        """The run id."""
        return self.config.run_id

    @property
    def uri(self) -> str:
        """Address of the run's folder."""
        return storage.join(self.config.s3_bucket, self.id)

    @property
    def model_name(self) -> str:
        """Name of the service and of the model in its repository.

        They must agree: KServe routes by it.
        """
        return (
            kubernetes_name(self.config.network_config)
            if self.config.service_name == AUTO
            else self.config.service_name
        )

    @property
    def namespace(self) -> dict[str, str]:
        """{"namespace": ...}, to be added to the metadata of a Kubernetes object.

        Empty if --namespace is 'auto': the backend then adds its own namespace.
        """
        return {} if self.config.namespace == AUTO else {"namespace": self.config.namespace}

    @property
    def folder(self) -> RunFolder:
        """Where the run's files lie."""
        return RunFolder(self.uri)

    def path(self, *parts: str) -> str:
        """Return an address below the run's folder."""
        return self.folder.path(*parts)

    def save(self) -> None:
        """Write run.json, which makes the folder a run."""
        storage.write_json(
            self.folder.run,
            {"run_id": self.id, **self.record.as_json(), "config": self.config.parameters()},
        )

    @classmethod
    def load(cls, uri: str) -> Run:
        """Return the run of a folder.

        Raises InputError where there is no run.json, which means that prepare did not finish, or
        where it is not of its form.
        """
        place = RunFolder(uri).run
        if not storage.exists(place):
            raise InputError(
                f"{uri} is not a run: it has no run.json (prepare writes it when all is in place)"
            )
        content = read_run(place)
        record = RunRecord.from_json(content, place)
        # The folder may have been moved or mounted elsewhere, so its present address is used.
        folder = storage.absolute(uri).rsplit("/", 1)[0]
        config = RunConfig.from_dict(content["config"]).replace(s3_bucket=folder)
        return cls(config=config, record=record)


def read_run(place: str) -> dict[str, Any]:
    """Return what a run.json holds: `run_id` (text), `config` (parameter -> value), its record.

    Raises InputError where it is missing, no JSON, or without these two.
    """
    content: Any = storage.read_json(place)
    is_run = isinstance(content, dict) and isinstance(content.get("run_id"), str)
    if not is_run or not isinstance(content.get("config"), dict):
        raise InputError(
            f"{place} is damaged: it holds no run_id and config; copy it from the run's results"
            " again, or start a new run"
        )
    run_content: dict[str, Any] = content
    return run_content


def kubernetes_name(network_config: str) -> str:
    """Return the network file's name as Kubernetes allows it.

    >>> kubernetes_name("networks/pfn_regressor_open.py")
    'pfn-regressor-open'
    """
    stem = re.sub(r"\.py$", "", storage.name(network_config))
    text = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:SLUG].strip("-")
    return text if text[:1].isalpha() else f"net-{text}"[:SLUG].strip("-")


def make_run_id(network_config: str, job_id: str) -> str:
    """Return `<network file's name>-<8 hex>`, the run's id.

    It is the same for one KFP job however often prepare is repeated, another for a cloned run.
    """
    return f"{kubernetes_name(network_config)}-{hashlib.sha256(job_id.encode()).hexdigest()[:8]}"
