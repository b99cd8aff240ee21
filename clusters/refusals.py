"""Why a pod is not created, read from events and from answers of the API server.

A refused pod never exists, so that only its creator reports the reason. The training operator
writes FailedCreatePod at the PyTorchJob (pkg/controller.v1/control/pod_control.go of v1.9.3). The
controller of ReplicaSets writes FailedCreate at the ReplicaSet (pkg/controller/controller_utils.go
of Kubernetes 1.34.4). Both repeat the message of the API server.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from kubernetes.utils.quantity import parse_quantity

from clusters.protocol import Manifest
from clusters.reasons import event_time, short

CREATION_REASONS = {"SuccessfulCreate", "SuccessfulCreatePod"}
REFUSAL_REASONS = {"FailedCreate", "FailedCreatePod"}
LONGEST = 900  # characters: Pod Security lists each field of each container
# text before the message of the API server, with the name of each new pod
HEAD = re.compile(
    r"^(\(combined from similar events\): )?(Error creating: )?(pods \"[^\"]*\" is forbidden: )?"
)
WEBHOOK = re.compile(
    r"(?:failed calling webhook \"([^\"]+)\"|(conversion webhook for .+?) failed):"
    r" (?:failed to call webhook: )?(.*)",
    re.DOTALL,
)
QUOTA = re.compile(r"exceeded quota: .*requested: (\S+), used: \S+, limited: (\S+)")
# permanent refusals, and what can be done about each
HOPELESS = (
    (
        re.compile(r"violates PodSecurity"),
        "the namespace's label pod-security.kubernetes.io/enforce asks for it, which its"
        " administrator sets",
    ),
    (
        re.compile(r"(maximum|minimum) \S+ usage per |max limit to request ratio per "),
        "a LimitRange of the namespace asks for it; ask for another amount, or its administrator",
    ),
    (
        re.compile(r"failed quota: .*must specify|insufficient quota to "),
        "a quota of the namespace asks for it; ask its administrator",
    ),
    (re.compile(r"no PriorityClass with name"), "type another --priority-class"),
    (re.compile(r"^Pod \"[^\"]*\" is invalid: "), "the API server will never accept this pod"),
)
TOO_LARGE = "one pod asks for more than the quota allows in all; ask for less, or for more quota"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a pod is not created."""

    text: str
    """The reason in one sentence, the same for each attempt."""
    hopeless: bool
    """Whether it stays refused until somebody changes the namespace or the pod."""
    occurrence: str
    """Identifies the attempt."""


def refusal_of(events: Iterable[Manifest], since: str = "") -> Refusal | None:
    """Return the newest refusal of a pod in events that are listed oldest first.

    None if there is none, or if a pod was created after it. Events before `since`, a time as in
    `creationTimestamp`, belong to an earlier object of the same name.
    """
    recent = [event for event in events if event_time(event) >= since]
    refusals = [event for event in recent if event.get("reason") in REFUSAL_REASONS]
    creations = [event for event in recent if event.get("reason") in CREATION_REASONS]
    if not refusals or (creations and event_time(creations[-1]) >= event_time(refusals[-1])):
        return None
    newest = refusals[-1]
    message = _without_pod_name(newest)
    webhook = silent_webhook(message)
    cure = _cure(message)
    if webhook:
        text = f"no pod of it can be created: {webhook[0]} does not answer: {webhook[1]}"
    else:
        text = f"no pod of it may be created: {message}"
    return Refusal(
        text=short(f"{text} ({cure})" if cure else text, LONGEST),
        hopeless=bool(cure),
        occurrence=f"{newest['metadata'].get('name')} {newest.get('count')} {event_time(newest)}",
    )


def silent_webhook(message: str) -> tuple[str, str] | None:
    """Return the webhook that did not answer the API server, and why; None without one."""
    match = WEBHOOK.search(message)
    if not match:
        return None
    name = f"webhook {match[1]}" if match[1] else match[2]
    return name, short(match[3])


def _without_pod_name(event: Manifest) -> str:
    """Return the message of the API server without the changing names of new pods."""
    message = HEAD.sub("", short(event.get("message", ""), 4 * LONGEST))
    owner = (event.get("involvedObject") or {}).get("name", "")
    return re.sub(re.escape(owner) + r"-[a-z0-9]{5}\b", f"{owner}-...", message)


def _cure(message: str) -> str:
    """Return what can be done about a permanent refusal; empty for one that may pass."""
    quota = QUOTA.search(message)
    if quota and _exceeds(quota[1], quota[2]):
        return TOO_LARGE
    return next((cure for pattern, cure in HOPELESS if pattern.search(message)), "")


def _exceeds(requested: str, limit: str) -> bool:
    """Return whether one request alone exceeds a limit: 'cpu=2,pods=1' and 'cpu=1,pods=10'."""
    limits = _amounts(limit)
    return any(amount > limits.get(name, amount) for name, amount in _amounts(requested).items())


def _amounts(text: str) -> dict[str, float]:
    amounts = {}
    for part in text.split(","):
        name, _, quantity = part.rpartition("=")
        try:
            amounts[name] = float(parse_quantity(quantity))
        except ValueError:
            continue  # no quantity: nothing can be compared
    return amounts
