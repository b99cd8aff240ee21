"""Ranks: which part of a distributed training this process is, on which device, and the few sums
that ranks share.

The training operator (and the local home) sets MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE for
each replica; torchrun adds LOCAL_RANK where a replica has several GPUs. Without them there is one
rank. All ranks do the same steps in the same order, so a rank that is gone shows at the next step:
its connections close at once, and a silent one after STEP_TIMEOUT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from common.errors import ClusterError, InputError

# pods of one job may be scheduled and pull their image minutes apart
START_TIMEOUT = timedelta(minutes=10)
# between two sums lies a step, a validation or a checkpoint; a lost rank ends the others in a
# minute
STEP_TIMEOUT = timedelta(seconds=55)


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
        """Sums over all ranks of the numbers in a list or (n,) tensor, in float64.

        Raises ClusterError if another rank is gone.
        """
        if self.size == 1:
            return torch.as_tensor(values, dtype=torch.float64).tolist()
        total = torch.as_tensor(values, dtype=torch.float64, device=self.device).clone()
        with explained(self):
            dist.all_reduce(total)
            return total.tolist()

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of a tensor, left on its device: nobody waits for the number."""
        total = value.clone()
        with explained(self):
            dist.all_reduce(total)
        return total

    def share_of(self, batch_size: int) -> int:
        """This rank's jets of a global batch. Raises InputError where it cannot be divided."""
        if batch_size % self.size:
            near = max(1, round(batch_size / self.size)) * self.size
            raise InputError(
                f"--batch-size {batch_size} cannot be divided by {self.size} ranks; {near} can"
            )
        return batch_size // self.size

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model that sums gradients over ranks; on GPUs with batch normalisation over all
        ranks' jets (PyTorch has it there only).
        """
        if self.size == 1:
            return model
        if self.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        devices = [self.device] if self.device.type == "cuda" else None
        with explained(self):
            return torch.nn.parallel.DistributedDataParallel(model, device_ids=devices)


@contextlib.contextmanager
def explained(world: World) -> Iterator[None]:
    """Turn what a collective raises when a rank has gone into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not _is_lost_connection(error):
            raise
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"rank {world.rank} of {world.size} lost another rank, whose own log tells why"
            f" ({reason})"
        ) from None


@contextlib.contextmanager
def ranks(device: torch.device, backend: str) -> Iterator[World]:
    """Meet the other ranks, as the environment tells, and part from them at the end."""
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
    """The device for --gpus: "auto", "" (CPU), or numbers of GPUs, of which this process takes the
    one of its LOCAL_RANK.

    Where GPUs are asked for and there is none, one line says so and the CPU is taken. Raises
    InputError for several GPUs in one process, or a number that does not exist.
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
    local_rank, count = _number("LOCAL_RANK", 0), torch.cuda.device_count()
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
    environment: Mapping[str, str] = os.environ
    if missing := [
        name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if name not in environment
    ]:
        raise InputError(f"WORLD_SIZE is {world.size}, but {', '.join(missing)} is not set")
    address, port = environment["MASTER_ADDR"], _number("MASTER_PORT", 0)
    # torchrun keeps the store in its own process
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            world.size,
            is_master=world.rank == 0 and not hosted,
            timeout=START_TIMEOUT,
        )
        # A restart under torchrun meets in the same store; its own prefix keeps it from reading the
        # keys of the last round.
        store = dist.PrefixStore(
            f"weaver/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        )
        device = world.device if backend == "nccl" else None
        dist.init_process_group(
            backend,
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=STEP_TIMEOUT,
            device_id=device,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"rank {world.rank} of {world.size} could not meet the others at {address}:{port}:"
            f" {reason}"
        ) from None


def _is_lost_connection(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(
        word in text for word in ("gloo", "nccl", "connection", "timed out", "timeout", "peer")
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"the environment variable {name} must be a whole number, not '{text}'")
    return int(text)
