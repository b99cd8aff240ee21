"""End a model server with its owner, however the owner ends.

python -m serving.guard SERVER OWNER OWNER_STARTED

The owner is the command that serves. A signal that no program can catch leaves it no time to end
its server, and the server is not always its child. So this process watches both, and ends with the
server.
"""

from __future__ import annotations

import sys
import time

from serving import server_processes

POLL = 0.2  # seconds


def guard(server: int, owner: int, owner_started: str) -> None:
    """Wait for the end of a server or of its owner, and remove what is left of the server.

    owner_started: when the owner began, as `server_processes.started` says it.
    """
    while server_processes.lives(server):
        if not server_processes.lives(owner) or server_processes.started(owner) != owner_started:
            break
        time.sleep(POLL)
    server_processes.stop(server)


if __name__ == "__main__":
    guard(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
