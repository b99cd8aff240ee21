"""Distributed training: this process's rank, sums over ranks, and the device.

The training operator (and the local backend) sets MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE for
each replica; torchrun adds LOCAL_RANK where a replica has several GPUs. Without them there is one
rank. All ranks do the same steps in the same order. So the others notice at the next step if a rank
has ended (its connections are closed) or hangs (after STEP_TIMEOUT).
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from common.cli import is_whole
from common.errors import ClusterError, InputError

# pods of one job may be scheduled, and pull their image, minutes apart
START_TIMEOUT = timedelta(minutes=10)
# a step, a validation or a checkpoint takes less; with it, all ranks end within a minute after one
# is lost
STEP_TIMEOUT = timedelta(seconds=55)
LOOPBACK = "lo"  # Linux's name of the interface that only this machine reaches
# words, in lower case, by which an error of the connection to another rank is recognised
CONNECTION_WORDS = ("gloo", "nccl", "connection", "timed out", "timeout", "peer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """This process's rank, the number of ranks, and the device."""

    rank: int = 0
    size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True for the one rank that writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Sequence[float] | torch.Tensor) -> list[float]:
        """Sum the numbers of a list or tensor (n,) over all ranks, each by itself, in float64.

        Raises ClusterError if another rank is lost.
        """
        if self.size == 1:
            return torch.as_tensor(values, dtype=torch.float64).tolist()
        total = torch.as_tensor(values, dtype=torch.float64, device=self.device).clone()
        with report_lost_rank(self):
            dist.all_reduce(total)
            return total.tolist()

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a tensor of any shape over all ranks on its device, without waiting for the result.

        Raises:
            ClusterError: another rank is lost.
        """
        total = value.clone()
        with report_lost_rank(self):
            dist.all_reduce(total)
        return total

    def share_of(self, batch_size: int) -> int:
        """Return the number of jets of a global batch on this rank.

        Raises InputError if the batch cannot be divided by the number of ranks.
        """
        if batch_size % self.size:
            near = max(1, round(batch_size / self.size)) * self.size
            raise InputError(
                f"--batch-size {batch_size} cannot be divided by {self.size} ranks; {near} can"
            )
        return batch_size // self.size

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap a model so that gradients are averaged over ranks.

        On GPUs batch normalisation then uses the jets of all ranks. Raises ClusterError if another
        rank is lost.
        """
        if self.size == 1:
            return model
        devices = None
        if self.device.type == "cuda":
            # SyncBatchNorm exists on GPUs only
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            devices = [self.device]
        with report_lost_rank(self):
            return torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)


@contextlib.contextmanager
def report_lost_rank(world: World) -> Iterator[None]:
    """Turn the error of a collective operation that lost another rank into a ClusterError."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError; only its text distinguishes it from one of the model
        text = str(error).lower()
        is_connection_error = isinstance(error, dist.DistError) or any(
            word in text for word in CONNECTION_WORDS
        )
        if world.size == 1 or not is_connection_error:
            raise
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"rank {world.rank} of {world.size} lost another rank, whose own log has the reason"
            f" ({reason})"
        ) from None


@contextlib.contextmanager
def ranks(device: torch.device, backend: str) -> Iterator[World]:
    """Connect to the other ranks that the environment names, and disconnect after the block.

    backend: "auto", "gloo" or "nccl". Raises InputError for an incomplete environment, and
    ClusterError if the other ranks cannot be reached.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World(device=device)
        return
    world = World(rank=_number("RANK", 0), size=size, device=device)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        _connect(world, backend)
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def select_device(gpus: str) -> torch.device:
    """Choose the device for --gpus.

    gpus: "auto", "" (CPU), or numbers of GPUs separated by commas, of which this process takes the
    one of its LOCAL_RANK. If GPUs are requested and there is none, a warning says so and the CPU is
    used. Raises InputError for several GPUs in one process, and for a number that does not exist.
    """
    if gpus == "" or (gpus == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print(
            f"warning: --gpus {gpus} was asked for, but this machine has no CUDA GPU; the CPU is"
            " used",
            file=sys.stderr,
            flush=True,
        )
        return torch.device("cpu")
    local_rank = _number("LOCAL_RANK", 0)
    count = torch.cuda.device_count()
    numbers = list(range(count)) if gpus == "auto" else [int(number) for number in gpus.split(",")]
    if gpus != "auto" and len(numbers) > 1 and "LOCAL_RANK" not in os.environ:
        raise InputError(
            f"--gpus {gpus} needs a process for each GPU: torchrun --nproc-per-node {len(numbers)}"
            " -m weaver.train ..."
        )
    if local_rank >= len(numbers) or numbers[local_rank] >= count:
        raise InputError(
            f"--gpus {gpus} has no GPU for local rank {local_rank}; this machine has {count}"
        )
    device = torch.device("cuda", numbers[local_rank])
    torch.cuda.set_device(device)
    return device


def _connect(world: World, backend: str) -> None:
    """Join the process group: wait START_TIMEOUT for the other ranks, later STEP_TIMEOUT."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is {world.size}, but {', '.join(missing)} is not set")
    address = os.environ["MASTER_ADDR"]
    port = _number("MASTER_PORT", 0)
    # torchrun keeps the store in its own process
    agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # After a restart by torchrun the ranks use the same store. A new prefix keeps them from reading
    # the keys of the previous attempt.
    prefix = f"weaver/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    is_master = world.rank == 0 and not agent_has_store
    own_socket = None
    try:
        if is_loopback(address):
            _stay_on_loopback()
            # without a socket of ours the store listens at all addresses of the machine
            own_socket = listener(address, port) if is_master else None
        store = dist.TCPStore(
            address,
            port,
            world.size,
            is_master=is_master,
            timeout=START_TIMEOUT,
            master_listen_fd=own_socket,
        )
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(prefix, store),
            rank=world.rank,
            world_size=world.size,
            timeout=STEP_TIMEOUT,
            device_id=world.device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"rank {world.rank} of {world.size} could not connect to the other ranks at"
            f" {address}:{port}: {reason}"
        ) from None


def is_loopback(address: str) -> bool:
    """Return whether an address is the loopback interface's: all ranks are on this machine."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _stay_on_loopback() -> None:
    """Let gloo and NCCL listen on the loopback interface only."""
    names = {name for _, name in socket.if_nameindex()}
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if LOOPBACK in names:
            os.environ.setdefault(variable, LOOPBACK)


def listener(address: str, port: int) -> int:
    """Open a socket that listens at this address only; returns its descriptor.

    The store that gets the descriptor closes it. Raises OSError if the port is in use.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    own_socket = socket.socket(family)
    try:
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own_socket.bind((address, port))
        own_socket.listen()
    except OSError:
        own_socket.close()
        raise
    return own_socket.detach()


def _number(name: str, default: int) -> int:
    """Read a whole number from an environment variable. Raises InputError for other text."""
    text = os.environ.get(name, str(default))
    if not is_whole(text):
        raise InputError(f"the environment variable {name} must be a whole number, not '{text}'")
    return int(text)
