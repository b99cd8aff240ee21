"""How long the name of an InferenceService may be."""

from __future__ import annotations

from common.errors import InputError

# A label of a host name; KServe makes the host NAME-predictor-NAMESPACE.DOMAIN. What is longer
# passes every webhook and is never reconciled (seen with KServe 0.15.2).
LONGEST_LABEL = 63


def longest_allowed(namespace: str) -> int:
    """How many characters the name of a service in this namespace may have."""
    return LONGEST_LABEL - len(f"-predictor-{namespace}")


def too_long(name: str, namespace: str) -> bool:
    """Whether KServe could not make a host name of it."""
    return len(name) > longest_allowed(namespace)


def check(name: str, namespace: str) -> None:
    """Raise InputError for a name that KServe would never make a service of."""
    limit = longest_allowed(namespace)
    if len(name) > limit:
        shorter = f"--service-name {name[: max(limit, 1)].rstrip('-')}"
        raise InputError(
            f"the service's name '{name}' has {len(name)} characters; in namespace '{namespace}'"
            f" KServe takes at most {limit}, because {name}-predictor-{namespace} is part of a host"
            f" name and may have {LONGEST_LABEL}; give {shorter}"
        )
