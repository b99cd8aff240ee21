"""The features of the pipeline's IR that a Kubeflow Pipelines server supports, by its version.

A server refuses a run whose IR has an unknown field, and only after the upload. Therefore the IR is
compiled for the server's version. There are no releases between 2.5 and 2.14. The fields are those
of pipeline_spec.proto and kubernetes_executor_config.proto in the server's source; the tests have
the messages of each version.
"""

from __future__ import annotations

import dataclasses

from common.config import NONE

OLDEST = (2, 5)
"""Older servers take no name of a Secret from a parameter (pipelines#10914)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Support:
    """Features that a server supports.

    The defaults are for a server of an unknown version; every version accepts the resulting IR.
    """

    step_labels: bool = True
    """The pod of each step gets the step's own labels.

    Before 2.14 all steps inside an exit handler share one pod template: with 2.5.0's compiler all
    of them get the label of deploy (backend/src/v2/compiler/argocompiler/container.go:274-289).
    """
    nested_retries: bool = True
    """Steps inside an exit handler are retried.

    Before 2.14 only the outermost tasks have retry policies (the same file, 508-518).
    """
    display_names: bool = False
    """A task may have a display name.

    Before 2.14 the server then does not find the task's outputs (pipelines#11938).
    """
    optional_secret: bool = False
    """SecretAsEnv.optional is known, so that a step starts without the Secret with S3 keys."""
    non_root: bool = False
    """SecurityContext.run_as_non_root is known."""


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


def limitations(support: Support, secret: str, webhook_secret: str = NONE) -> list[str]:
    """Return what does not work on a server with these features, or must exist there.

    Each is one sentence.

    `secret` is the name of the Secret with the S3 keys, `webhook_secret` NAME/KEY of the one with
    the webhook's URL.
    """
    sentences = []
    if not support.nested_retries:
        sentences.append(
            "it does not retry the steps before finish: after a failure, continue with --resume"
        )
    if not support.step_labels:
        sentences.append(
            "the steps' pods get no label jec/step: --logs does not find them, a summary may lack"
            " the reason why one was stopped, and PodDefaults such as deploy/eos do not apply"
        )
    if not support.optional_secret:
        sentences.append(
            f"no step starts without the Secret {secret} in its namespace and both keys in it"
        )
    if not support.optional_secret and webhook_secret != NONE:
        name, _, key = webhook_secret.partition("/")
        sentences.append(f"finish does not start without the Secret {name} and its key {key}")
    return sentences
