"""Ranks: the part of a distributed training that this process is, and the sums that ranks share.

The training operator (and the local backend) sets MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE for
each replica; torchrun adds LOCAL_RANK where a replica has several GPUs. Without them there is one
rank. All ranks do the same steps in the same order, so a rank that is gone shows at the next step:
its connections close at once, and a silent one after STEP_TIMEOUT.
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

from common.errors import ClusterError, InputError

# pods of one job may be scheduled and pull their image minutes apart
START_TIMEOUT = timedelta(minutes=10)
# between two sums lies a step, a validation or a checkpoint; a lost rank ends the others in a
# minute
STEP_TIMEOUT = timedelta(seconds=55)
LOOPBACK = "lo"  # Linux's name of the interface that only this machine reaches
# words in the messages about a connection to another rank, in lower case
LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "peer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks of a training."""

    rank: int = 0
    size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True for the one rank that writes files and shows progress."""
        return self.rank == 0

    def sum(self, values: Sequence[float] | torch.Tensor) -> list[float]:
        """Sum the numbers in a list or (n,) tensor over all ranks, in float64.

        Raises ClusterError if another rank is gone.
        """
        if self.size == 1:
            return torch.as_tensor(values, dtype=torch.float64).tolist()
        total = torch.as_tensor(values, dtype=torch.float64, device=self.device).clone()
        with explained(self):
            dist.all_reduce(total)
            return total.tolist()

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, and leave it on its device: nobody waits for the number."""
        total = value.clone()
        with explained(self):
            dist.all_reduce(total)
        return total

    def share_of(self, batch_size: int) -> int:
        """Size of this rank's part of a global batch.

        Raises InputError where the batch cannot be divided.
        """
        if batch_size % self.size:
            near = max(1, round(batch_size / self.size)) * self.size
            raise InputError(
                f"--batch-size {batch_size} cannot be divided by {self.size} ranks; {near} can"
            )
        return batch_size // self.size

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap a model so that gradients are averaged over ranks.

        On GPUs its batch normalisation is over all ranks' jets.
        """
        if self.size == 1:
            return model
        devices = None
        if self.device.type == "cuda":
            # PyTorch has it on GPUs only
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            devices = [self.device]
        with explained(self):
            return torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)


@contextlib.contextmanager
def explained(world: World) -> Iterator[None]:
    """Turn what a collective raises when a rank has gone into a ClusterError of one sentence."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError, which only its text tells from one of the network
        text = str(error).lower()
        is_lost = isinstance(error, dist.DistError) or any(word in text for word in LOST)
        if world.size == 1 or not is_lost:
            raise
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"rank {world.rank} of {world.size} lost another rank, whose own log tells why"
            f" ({reason})"
        ) from None


@contextlib.contextmanager
def ranks(device: torch.device, backend: str) -> Iterator[World]:
    """Join the other ranks that the environment names, and leave them at the end."""
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield World(device=device)
        return
    world = World(rank=_number("RANK", 0), size=size, device=device)
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        _meet(world, backend)
        yield world
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def select_device(gpus: str) -> torch.device:
    """Choose the device for --gpus.

    gpus: "auto", "" (CPU), or numbers of GPUs, of which this process takes the one of its
    LOCAL_RANK. Where GPUs are requested and there is none, one line says so and the CPU is taken.
    Raises InputError for several GPUs in one process, or a number that does not exist.
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


def _meet(world: World, backend: str) -> None:
    """Join the process group: patient while the others start, strict afterwards."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if name not in os.environ]
    if missing:
        raise InputError(f"WORLD_SIZE is {world.size}, but {', '.join(missing)} is not set")
    address = os.environ["MASTER_ADDR"]
    port = _number("MASTER_PORT", 0)
    # torchrun keeps the store in its own process
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # A restart under torchrun meets in the same store; its own prefix keeps it from reading the
    # keys of the last round.
    prefix = f"weaver/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    is_master = world.rank == 0 and not hosted
    own_socket = None
    try:
        if is_loopback(address):
            _stay_on_loopback()
            # by itself the store listens on all addresses
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
            f"rank {world.rank} of {world.size} could not meet the others at {address}:{port}:"
            f" {reason}"
        ) from None


def is_loopback(address: str) -> bool:
    """Whether all ranks are processes of this machine, by the address of the first."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _stay_on_loopback() -> None:
    """Have gloo and NCCL listen where no other machine can connect."""
    names = {name for _, name in socket.if_nameindex()}
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if LOOPBACK in names:
            os.environ.setdefault(variable, LOOPBACK)


def listener(address: str, port: int) -> int:
    """The descriptor of a socket that listens at this address only; the store closes it."""
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
    """A whole number from the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"the environment variable {name} must be a whole number, not '{text}'")
    return int(text)
