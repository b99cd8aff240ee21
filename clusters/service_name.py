"""The maximum length of the name of an InferenceService."""

from __future__ import annotations

from common.errors import InputError

# Of a label in a host name; KServe uses the host NAME-predictor-NAMESPACE.DOMAIN. Services with
# longer names pass all webhooks but are never reconciled (seen with KServe 0.15.2).
LONGEST_LABEL = 63


def max_length(namespace: str) -> int:
    """Return the maximum length of the name of a service in this namespace."""
    return LONGEST_LABEL - len(f"-predictor-{namespace}")


def too_long(name: str, namespace: str) -> bool:
    """Return whether the name is too long for the host name that KServe makes."""
    return len(name) > max_length(namespace)


def check(name: str, namespace: str) -> None:
    """Check the length of the name of a service.

    Raises:
        InputError: If it is too long for KServe.
    """
    limit = max_length(namespace)
    if len(name) > limit:
        shorter = f"--service-name {name[: max(limit, 1)].rstrip('-')}"
        raise InputError(
            f"the service's name '{name}' has {len(name)} characters; in namespace '{namespace}'"
            f" KServe takes at most {limit}, because {name}-predictor-{namespace} is part of a host"
            f" name and may have {LONGEST_LABEL}; give {shorter}"
        )
