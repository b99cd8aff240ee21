"""Parses an IR with the messages of a Kubeflow Pipelines server of one version, as it does itself:
an unknown field anywhere is a refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

FOLDER = Path(__file__).parent / "kfp_messages"
VERSIONS = sorted(
    (file.stem for file in FOLDER.glob("*.binpb")),
    key=lambda version: [int(part) for part in version.split(".")],
)


class Messages:
    """The messages of a server's version."""

    def __init__(self, version: str) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(
            (FOLDER / f"{version}.binpb").read_bytes()
        )
        self._pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self._pool.Add(file)

    def parse(self, name: str, content: dict[str, Any]) -> None:
        """Raises json_format.ParseError for what the message does not know."""
        message = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))
        json_format.ParseDict(content, message())

    def refusals(self, ir: Path) -> list[str]:
        """Why the server would refuse the IR; empty where it takes it."""
        spec, platform = yaml.safe_load_all(ir.read_text())
        parts = [
            ("ml_pipelines.PipelineSpec", spec),
            ("ml_pipelines.PlatformSpec", platform),
            ("ml_pipelines.PipelineDeploymentConfig", spec["deploymentSpec"]),
        ]
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        parts += [
            ("kfp_kubernetes.KubernetesExecutorConfig", executor) for executor in executors.values()
        ]
        refusals = []
        for name, content in parts:
            try:
                self.parse(name, content)
            except json_format.ParseError as error:
                refusals.append(f"{name}: {error}")
        return refusals
