"""The command of a pod: one line of shell that Katib can wrap and that passes on signals.

Katib joins command and arguments of a trial's container with blanks, unquoted, and appends its own
commands (katib v0.19.0 pkg/webhook/v1beta1/pod/utils.go:155-199). A command `sh -c` with one
argument survives this. Katib's collector stops a trial with SIGTERM to the only child of that shell
(cmd/metricscollector/v1beta1/file-metricscollector/main.go:281-297), and the kubelet sends SIGTERM
to the shell alone, which would die without stopping its child.
"""

from __future__ import annotations

import re
import shlex

from clusters.protocol import Manifest

SHELL = ["sh", "-c"]
# `wait` also returns when the shell gets a signal, so it is repeated until the program has ended.
# The line exits with the code of the program, which commands that Katib appends with || and &&
# need: 143 if SIGTERM ended the program.
BEFORE = "trap 'kill -TERM $!' TERM; "
AFTER = " & wait $!; code=$?; while kill -0 $! 2>/dev/null; do wait $!; code=$?; done; (exit $code)"
KUBELET_DOLLAR = re.compile(r"\$(?!\{trialParameters\.)")
"""A $ that the kubelet would expand; Katib replaces its placeholders before that."""


def shell_command(program: list[str]) -> Manifest:
    """Return the fields `command` and `args` of a container that runs the program.

    Each word is quoted, and Katib replaces `${trialParameters.x}` inside the quotes. So values of a
    search space must not contain single quotes (training.search_space refuses them).
    """
    # The kubelet turns $$ into $ and $(NAME) into a variable.
    literal = [KUBELET_DOLLAR.sub("$$", word) for word in program]
    return {"command": list(SHELL), "args": [BEFORE + shlex.join(literal) + AFTER]}


def program_of(container: Manifest) -> list[str]:
    """Return the program that a container runs, without the shell of `shell_command`."""
    command = [*container["command"], *container.get("args", [])]
    line = command[-1]
    if command[:-1] != SHELL or not (line.startswith(BEFORE) and line.endswith(AFTER)):
        return command
    words = shlex.split(line.removeprefix(BEFORE).removesuffix(AFTER))
    return [word.replace("$$", "$") for word in words]
