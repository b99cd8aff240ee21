"""What Katib's webhook and the kubelet make of the command of a trial's main container.

Restated from Katib and Kubernetes; the lines stand beside the rules.
"""

from __future__ import annotations

import os
import re

COLLECTOR = "metrics-logger-and-collector"
EARLY_STOPPED = "early-stopped"
COMPLETED = "completed"
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\((?P<name>[^)]*)\))")


def inject(pod: dict, trial: dict) -> None:
    """Add Katib's collector to the main pod of a trial, and wrap its container.

    From katib v0.19.0 pkg/webhook/v1beta1/pod/inject_webhook.go:117-196. The collector has no
    securityContext of its own (injectSecurityContext is off by default).
    """
    labels = pod["metadata"].get("labels") or {}
    primary = trial["spec"].get("primaryPodLabels") or {}
    if any(labels.get(key) != value for key, value in primary.items()):
        return
    path = trial["spec"]["metricsCollector"]["source"]["fileSystemPath"]["path"]
    container = pod["spec"]["containers"][0]
    stops = bool(trial["spec"].get("earlyStoppingRules"))
    *command, line = wrap_command(container, os.path.dirname(path), early_stopping=stops)
    container |= {"command": command, "args": [line]}
    pod["spec"]["containers"].append({"name": COLLECTOR, "image": "file-metrics-collector:v0.19.0"})
    pod["spec"]["shareProcessNamespace"] = True


def wrap_command(container: dict, folder: str, *, early_stopping: bool = False) -> list[str]:
    """The command of the container after the webhook: words joined with blanks, unquoted.

    katib v0.19.0 pkg/webhook/v1beta1/pod/utils.go:155-221.

    folder: where the metrics file and the marks of the trial's end lie.
    """
    words = [*container["command"], *container.get("args", [])]
    command = ["sh", "-c"]
    if words[0] in ("sh", "bash") and words[1] == "-c":
        command, words = words[:2], words[2:]
    mark = f"{folder}/$$$$.pid"
    if early_stopping:
        is_stopped = f"test -f {mark} && [ $(head -n 1 {folder}/$$.pid) = {EARLY_STOPPED} ]"
        words += [
            "||",
            f"if {is_stopped}; then echo Training Container was Early Stopped;"
            " else echo Training Container was Failed; exit 1; fi",
        ]
    words += ["&&", f"echo {COMPLETED} > {mark}"]
    return [*command, " ".join(words)]


def expand_references(command: list[str], env: dict[str, str]) -> list[str]:
    """The command that the kubelet runs: `$$` is `$`, and `$(NAME)` the variable if there is one.

    The name of a reference goes up to the next bracket; what is no variable stays as it is
    (kubernetes v1.34.4 third_party/forked/golang/expansion/expand.go:39-100).
    """

    def expand(match: re.Match) -> str:
        if match["dollar"]:
            return "$"
        return env.get(match["name"], match[0])

    return [VARIABLE.sub(expand, word) for word in command]
