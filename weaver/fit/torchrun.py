"""A torchrun whose store listens on the loopback interface only, for ranks of one machine.

    python -m weaver.fit.torchrun -m weaver.train ...

takes torchrun's arguments and PET_* variables. The original torchrun's store listens at all
addresses of the machine.
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

from common import scratch
from common.errors import FULL_DISK, PASSING_FAILURE
from weaver.fit import compiler_cache
from weaver.fit.distributed import is_loopback, listener

LOGS = "jec-torchrun-"


def make_store(
    address: str, port: int, size: int, is_master: bool, timeout: Any, **options: Any
) -> dist.TCPStore:
    """Make torchrun's store; with a loopback address, it listens at that address only."""
    if is_master and is_loopback(address):
        options["master_listen_fd"] = listener(address, port)
    return dist.TCPStore(address, port, size, is_master, timeout, **options)


def main() -> None:
    """Run torchrun's command line.

    A rank's exit code for a retryable failure becomes torchrun's own.

    Raises:
        SystemExit: a rank ended with such an exit code.
        ChildFailedError: a rank failed otherwise.
    """
    # The static rendezvous, torchrun's default, has no argument for a socket.
    static_tcp_rendezvous.TCPStore = make_store  # type: ignore[misc, assignment]
    with scratch.folder(LOGS) as folder, compiler_cache.of_command():
        # torchrun itself would leave an empty folder for logs among the temporary files.
        os.environ.setdefault("PET_LOG_DIR", str(folder))
        try:
            run.main()
        except ChildFailedError as error:
            # torchrun itself would exit with 1 for any exit code of its ranks.
            _, failure = error.get_first_failure()
            if failure.exitcode in (FULL_DISK, PASSING_FAILURE):
                raise SystemExit(failure.exitcode) from error
            raise


if __name__ == "__main__":
    main()
