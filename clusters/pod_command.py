"""The command of a pod: one line of shell that Katib may wrap and that passes signals on.

Katib joins the command and the arguments of a trial's container with blanks, unquoted, and appends
its own commands (katib v0.19.0 pkg/webhook/v1beta1/pod/utils.go:155-199). A command `sh -c` with
one argument stays whole. Its collector ends a trial by SIGTERM to the only child of that shell
(cmd/metricscollector/v1beta1/file-metricscollector/main.go:281-297), and the kubelet sends SIGTERM
to the shell alone, which would die without its child.
"""

from __future__ import annotations

import re
import shlex

from clusters.protocol import Manifest

SHELL = ["sh", "-c"]
# `wait` also returns when the shell got a signal: then the program is waited for again. The
# subshell's code is the line's, so that what Katib appends with || and && sees it: 143 where
# SIGTERM ended the program.
BEFORE = "trap 'kill -TERM $!' TERM; "
AFTER = " & wait $!; code=$?; while kill -0 $! 2>/dev/null; do wait $!; code=$?; done; (exit $code)"
KUBELET_DOLLAR = re.compile(r"\$(?!\{trialParameters\.)")
"""What the kubelet would expand in a literal value; Katib's placeholders are gone by then."""


def shell_command(program: list[str]) -> Manifest:
    """The fields `command` and `args` of a container that runs the program.

    Each word is quoted, and Katib replaces `${trialParameters.x}` inside the quotes. So a value of
    a search space must not hold a single quote (training.search_space refuses it).
    """
    # The kubelet turns $$ into $ and $(NAME) into a variable.
    literal = [KUBELET_DOLLAR.sub("$$", word) for word in program]
    return {"command": list(SHELL), "args": [BEFORE + shlex.join(literal) + AFTER]}


def program_of(container: Manifest) -> list[str]:
    """The words of the program that a container runs, without the shell of `shell_command`."""
    command = [*container["command"], *container.get("args", [])]
    line = command[-1]
    if command[:-1] != SHELL or not (line.startswith(BEFORE) and line.endswith(AFTER)):
        return command
    words = shlex.split(line.removeprefix(BEFORE).removesuffix(AFTER))
    return [word.replace("$$", "$") for word in words]
