"""A torchrun whose store listens on the loopback interface only, for ranks of one machine.

    python -m weaver.fit.torchrun -m weaver.train ...

takes torchrun's arguments and PET_* variables. The original torchrun's store listens at all
addresses of the machine.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.distributed import run
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

from weaver.fit.distributed import is_loopback, listener


def make_store(
    address: str, port: int, size: int, is_master: bool, timeout: Any, **options: Any
) -> dist.TCPStore:
    """Make torchrun's store; with a loopback address, it listens at that address only."""
    if is_master and is_loopback(address):
        options["master_listen_fd"] = listener(address, port)
    return dist.TCPStore(address, port, size, is_master, timeout, **options)


def main() -> None:
    """Run torchrun's command line."""
    # The static rendezvous, torchrun's default, has no argument for a socket.
    static_tcp_rendezvous.TCPStore = make_store  # type: ignore[misc, assignment]
    run.main()


if __name__ == "__main__":
    main()
