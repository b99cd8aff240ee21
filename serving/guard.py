"""Stop a model server when its owner ends, however the owner ends.

python -m serving.guard SERVER OWNER OWNER_START

The owner is the command that started the server. If it is killed with SIGKILL, it cannot stop the
server, which is not always its child. So this process watches both: it stops the server once the
owner has ended, and then ends as well.
"""

from __future__ import annotations

import sys
import time

from common import pids
from serving import server_processes

POLL = 0.2  # seconds


def guard(server: int, owner: int, owner_start: str) -> None:
    """Wait until a server or its owner ends, and stop what remains of the server.

    Args:
        server: pid of the server.
        owner: pid of its owner.
        owner_start: Start time of the owner from `pids.start_time`.
    """
    while pids.is_alive(server):
        if not pids.is_alive(owner) or pids.start_time(owner) != owner_start:
            break
        time.sleep(POLL)
    server_processes.stop(server)


if __name__ == "__main__":
    guard(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
