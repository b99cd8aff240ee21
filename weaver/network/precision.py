"""The floating-point type that a network computes in: float32, or autocast to bf16 or fp16.

`auto` takes bfloat16 where the device multiplies matrices in it natively (CPUs with avx512_bf16 or
AMX, NVIDIA GPUs from compute capability 8.0 on), and float32 elsewhere: emulated bfloat16 is slower
than float32. bfloat16 has the range of float32, so that nothing overflows and no loss scaling is
needed. float16 is used only on request, and with a scaler.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

# The names are those of common.choices.PRECISIONS, which cannot import torch.
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# names in /proc/cpuinfo: of Intel and AMD, the last one of Arm
CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
NATIVE_CAPABILITY = (8, 0)  # Ampere, the first with bfloat16 in its tensor cores


@dataclasses.dataclass(frozen=True)
class Precision:
    """A type to compute in, and the reason for it."""

    name: str
    """One of TYPES."""
    reason: str = "as asked"

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in."""
        return TYPES[self.name]

    @property
    def is_mixed(self) -> bool:
        """Whether it is not float32 alone."""
        return self.name != "float32"

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return a context for the forward pass; it does nothing in float32."""
        return torch.autocast(
            device.type, self.dtype if self.is_mixed else None, enabled=self.is_mixed
        )

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return a scaler of the loss for float16, in which small gradients would vanish.

        With other types it leaves the loss unchanged.
        """
        return torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def __str__(self) -> str:
        """Describe the type and the reason for it."""
        return f"{self.name} {'autocast ' if self.is_mixed else ''}({self.reason})"


def choose(name: str, device: torch.device) -> Precision:
    """Choose the precision for a device; `name` is one of common.choices.PRECISIONS."""
    if name != "auto":
        return Precision(name)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        native = (major, minor) >= NATIVE_CAPABILITY
        chip = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return Precision("bf16" if native else "float32", f"auto: {chip}")
    flags = cpu_flags()
    for flag in CPU_FLAGS:
        if flag in flags:
            return Precision("bf16", f"auto: this CPU has {flag}")
    return Precision("float32", "auto: this CPU has no native bfloat16")


def cpu_flags(path: str = "/proc/cpuinfo") -> set[str]:
    """Return instruction sets of this machine's CPU; empty where the system has no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    flags: set[str] = set()
    for line in lines:
        # "flags : fpu vme ..." on x86, "Features : fp asimd ..." on Arm, once for each core
        if line.startswith(("flags", "Features")):
            flags.update(line.partition(":")[2].split())
    return flags
