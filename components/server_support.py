"""What a Kubeflow Pipelines server does with the pipeline's IR, by the server's version.

A server refuses a run whose IR has a field that it does not know, and says so only after the
pipeline is uploaded. So the IR is written for the server that is asked. There are no servers
between 2.5 and 2.14. The fields are those of pipeline_spec.proto and
kubernetes_executor_config.proto in the server's source; the tests hold each version's messages.
"""

from __future__ import annotations

import dataclasses

from common.config import NONE

OLDEST = (2, 5)
"""Older servers take no name of a Secret from a parameter (pipelines#10914)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Support:
    """What a server knows of what the IR may ask.

    The defaults are for a server of an unknown version: every version takes that IR.
    """

    step_labels: bool = True
    """It gives the pod of each step the step's own labels.

    Before 2.14 all steps inside an exit handler share one pod template: with 2.5.0's compiler all
    of them get the label of deploy (backend/src/v2/compiler/argocompiler/container.go:274-289).
    """
    nested_retries: bool = True
    """It retries steps inside an exit handler.

    Before 2.14 it looks for retry policies among the outermost tasks only (the same file, 508-518).
    """
    display_names: bool = False
    """It finds a task's outputs by the task's key also where the task has another name to show.

    Before 2.14 it looks for the key among the shown names (pipelines#11938).
    """
    optional_secret: bool = False
    """It knows SecretAsEnv.optional, so that a run may have no Secret with S3 keys."""
    non_root: bool = False
    """It knows SecurityContext.run_as_non_root."""


def support_of(version: tuple[int, int] | None) -> Support:
    """Return what a server of this (major, minor) version supports; None for an unknown one."""
    if version is None:
        return Support()
    return Support(
        step_labels=version >= (2, 14),
        nested_retries=version >= (2, 14),
        display_names=version >= (2, 14),
        optional_secret=version >= (2, 15),
        non_root=version >= (2, 16),
    )


def losses(support: Support, secret: str, webhook_secret: str = NONE) -> list[str]:
    """Return what a run on such a server goes without or needs, one sentence each.

    `secret` is the name of the Secret with the S3 keys, `webhook_secret` NAME/KEY of the one with
    the webhook's URL.
    """
    sentences = []
    if not support.nested_retries:
        sentences.append(
            "it makes no second attempt of the steps before finish: after any failure go on with"
            " --resume"
        )
    if not support.step_labels:
        sentences.append(
            "the steps' pods get no label jec/step: --logs shows no log of theirs, a summary may"
            " not tell why one was stopped, and PodDefaults such as deploy/eos do not reach them"
        )
    if not support.optional_secret:
        sentences.append(
            f"no step starts without the Secret {secret} in its namespace and both keys in it"
        )
    if not support.optional_secret and webhook_secret != NONE:
        name, _, key = webhook_secret.partition("/")
        sentences.append(f"finish does not start without the Secret {name} and its key {key}")
    return sentences
