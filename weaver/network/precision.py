"""In which floating-point type the network computes: float32, or autocast to bfloat16 or float16.

`auto` takes bfloat16 where the device multiplies matrices in it natively (CPUs with avx512_bf16 or
AMX, NVIDIA GPUs from compute capability 8.0 on), and float32 elsewhere: emulated bfloat16 is slower
than float32. bfloat16 has float32's range, so that nothing overflows and no loss scaling is needed;
float16 is taken only when asked for, and with a scaler.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# as /proc/cpuinfo calls them: Intel and AMD, and last Arm
CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
NATIVE_CAPABILITY = (8, 0)


@dataclasses.dataclass(frozen=True)
class Precision:
    """A type to compute in, and why it was taken."""

    name: str
    """One of TYPES."""
    reason: str = "as asked"

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.name]

    @property
    def is_mixed(self) -> bool:
        return self.name != "float32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """A context for the forward pass; it does nothing in float32."""
        return torch.autocast(
            device.type, self.dtype if self.is_mixed else None, enabled=self.is_mixed
        )

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Scales the loss where small gradients would vanish, which is in float16 only; passes it
        on unchanged elsewhere.
        """
        return torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def __str__(self) -> str:
        return f"{self.name} {'autocast ' if self.is_mixed else ''}({self.reason})"


def choose(asked: str, device: torch.device) -> Precision:
    """The precision for "auto", "float32", "bf16" or "fp16" on a device."""
    if asked != "auto":
        return Precision(asked)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        chip = (
            f"{torch.cuda.get_device_name(device)}, compute capability"
            f" {capability[0]}.{capability[1]}"
        )
        return Precision("bf16" if capability >= NATIVE_CAPABILITY else "float32", f"auto: {chip}")
    flags = cpu_flags()
    native = next((flag for flag in CPU_FLAGS if flag in flags), None)
    return (
        Precision("bf16", f"auto: this CPU has {native}")
        if native
        else Precision("float32", "auto: this CPU has no native bfloat16")
    )


def cpu_flags(path: str = "/proc/cpuinfo") -> set[str]:
    """Instruction sets of this machine's CPU; empty where the system does not tell."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return set()
    return {
        word
        for line in lines
        if line.startswith(("flags", "Features"))
        for word in line.partition(":")[2].split()
    }
