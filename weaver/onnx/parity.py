"""The export gate: ONNX Runtime answers as PyTorch does, whatever Triton may do with the file.

`golden_jets` picks the jets: one of each multiplicity from none to the full length, then real ones.
`check_parity` compares, at each optimisation level that config.pbtxt can ask for and at batch sizes
from 1 to 1000, with PyTorch's answer to the same jet. A model that fails is looked into: the worst
jet is named, and the layer from which on it differs (weaver/onnx/layers_apart.py).

An answer agrees if |onnx - torch| <= 1e-5 * max(1, |torch|). 99.9 % of the jets must agree and none
may be further off than 1e-3: where two particles are nearly equally far away, rounding decides
which of them is a neighbour, and such a jet may move a little.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import GateError
from weaver.onnx.layers_apart import layers_apart
from weaver.onnx.triton_config import GRAPH_LEVELS

CLOSE = 1e-5  # an answer that agrees; relative where |answer| > 1
LIMIT = 1e-3  # no jet may be further off
SHARE = 0.999  # of the jets must agree
BATCH_SIZES = (1, 2, 17, 1000)
NUM_JETS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """Jets to compare answers on: inputs {name:

    (N, C, P) or (N, C) float32} and the number of real particles (N,) of each.
    """

    inputs: dict[str, np.ndarray]
    multiplicity: np.ndarray
    span: int
    """So many jets, the first ones, are one of each multiplicity."""
    counters: dict[str, str] = dataclasses.field(default_factory=dict)
    """Input whose second axis may have any size -> the input that counts what is real in it (raw
    jets).
    """

    def __len__(self) -> int:
        return len(self.multiplicity)

    def batch(self, jets: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of these jets; where the size is free, as wide as the fullest of
        them needs.
        """
        widths = {
            name: max(int(self.inputs[counter][jets].max(initial=0)), 1)
            for name, counter in self.counters.items()
        }
        return {
            name: x[jets, : widths[name]] if name in widths else x[jets]
            for name, x in self.inputs.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """What the gate measured; `worst` describes the jet that is furthest off."""

    num_jets: int
    num_answers: int
    share_close: float
    """Smallest share over the optimisation levels of jets that agree at every batch size."""
    max_difference: float
    worst: str
    levels: tuple[int, ...]
    batch_sizes: tuple[int, ...]

    def asdict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def golden_jets(
    inputs: Mapping[str, np.ndarray],
    multiplicity: np.ndarray,
    *,
    count: int = NUM_JETS,
    padding: Mapping[str, np.ndarray] | None = None,
    length: int | None = None,
    seed: int = 0,
) -> Golden:
    """`count` jets (more if the length asks for it) from the real ones given: one of each
    multiplicity 0..length, then jets as they are.

    A jet is cut to m particles by putting padding in place of the others, and filled up to m with
    particles of other jets, so that no particle occurs twice in it. When the real jets are used up,
    further cut ones follow. `padding` holds the value of each variable in a padded place, {name:
    (C,)}; zero where it is not given. `length`: P where it is not given. Reproducible for a seed.
    """
    rng = np.random.default_rng(seed)
    places = max((x.shape[2] for x in inputs.values() if x.ndim == 3), default=0)
    length = places if length is None else min(length, places)
    real = rng.permutation(len(multiplicity))[: max(count - length - 1, 0)]
    missing = count - len(real)
    wanted = np.concatenate(
        [np.arange(length + 1), rng.integers(0, length + 1, max(missing - length - 1, 0))]
    )
    base = rng.integers(0, len(multiplicity), len(wanted))
    made = {
        name: _with_multiplicity(x, multiplicity, base, wanted, (padding or {}).get(name), seed)
        for name, x in inputs.items()
    }
    # The first length + 1 jets are one of each multiplicity, in random order: the smaller batch
    # sizes are run on them alone.
    order = np.concatenate([rng.permutation(length + 1), np.arange(length + 1, len(wanted))])
    return Golden(
        inputs={name: np.concatenate([made[name][order], x[real]]) for name, x in inputs.items()},
        multiplicity=np.concatenate([wanted[order], multiplicity[real]]),
        span=length + 1,
    )


def _with_multiplicity(x, multiplicity, base, wanted, padding, seed) -> np.ndarray:
    """Jets x[base] with `wanted` particles each; jet features (N, C) stay as they are."""
    if x.ndim == 2:
        return x[base]
    filled = x[base].copy()
    length = x.shape[2]
    # The same seed for each input: a filled place takes the same particle everywhere.
    pool = np.random.default_rng(seed).permutation(
        np.argwhere(np.arange(length) < multiplicity[:, None])
    )
    next_free = 0
    for row, (jet, count) in enumerate(zip(base, wanted, strict=True)):
        own = min(int(multiplicity[jet]), length)
        take = (
            pool[np.arange(next_free, next_free + max(count - own, 0)) % max(len(pool), 1)]
            if len(pool)
            else pool
        )
        filled[row, :, own : own + len(take)] = x[take[:, 0], :, take[:, 1]].T
        filled[row, :, count:] = 0.0 if padding is None else np.asarray(padding)[:, None]
        next_free += len(take)
    return filled


def torch_answers(
    model, input_names: Sequence[str], inputs: Mapping[str, np.ndarray], batch_size: int = 500
) -> np.ndarray:
    """PyTorch's answers (N, outputs) on the CPU, in evaluation mode; several outputs (N, 1) side by
    side.
    """
    import torch

    count = len(inputs[input_names[0]])
    answers = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            answer = model(
                *(
                    torch.from_numpy(np.ascontiguousarray(inputs[name][start : start + batch_size]))
                    for name in input_names
                )
            )
            answers.append(torch.cat(answer, dim=1) if isinstance(answer, tuple) else answer)
    return torch.cat(answers).float().numpy()


def session(onnx_path: str | os.PathLike, level: int = 0):
    """An onnxruntime session on the CPU at one of Triton's graph optimisation levels
    (weaver.onnx.triton_config.GRAPH_LEVELS).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level]
    )
    # As many threads as this process may use: left alone, onnxruntime counts the machine's cores
    # and pins threads to them.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        os.fspath(onnx_path), options, providers=["CPUExecutionProvider"]
    )


def check_parity(
    model,
    onnx_path: str | os.PathLike,
    golden: Golden,
    input_names: Sequence[str],
    *,
    expected: np.ndarray | None = None,
    levels: Sequence[int] = tuple(GRAPH_LEVELS),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    advance: Callable[[int, str], None] = lambda count, note: None,
) -> Parity:
    """Compare the ONNX file with the model (on the CPU, in evaluation mode) on the golden jets; see
    the module's text for the rule.

    expected: the right answers (N, outputs), where they are not the model's own. `advance` is
    called with the number of jets done and the level. Raises GateError that names the worst jet,
    its number of particles, the batch size, the level and the layer.
    """
    expected = torch_answers(model, input_names, golden.inputs) if expected is None else expected
    if not np.isfinite(expected).all():
        jet = int(np.argmin(np.isfinite(expected).all(axis=1)))
        raise GateError(
            f"PyTorch's own answer to {_jet(golden, jet)} is {_numbers(expected[jet])}, not a"
            " finite number"
        )
    worst, share, total = _Worst(), 1.0, 0
    for level in levels:
        off = np.zeros(len(golden))  # largest difference of each jet over the batch sizes
        runtime = session(onnx_path, level)
        for size in batch_sizes:
            jets = _jets_for(size, golden)
            got = _onnx_answers(runtime, golden, jets, size, level, advance)
            difference = _difference(got, expected[jets])
            np.maximum.at(off, jets, difference)
            worst.see(golden, jets, difference, got, expected, size, level)
            total += len(jets)
        share = min(share, float(np.mean(off <= CLOSE)))
    if worst.difference > LIMIT or share < SHARE:
        raise GateError(
            f"ONNX Runtime does not answer as PyTorch: {share:.2%} of {len(golden):,} golden jets"
            f" within {CLOSE:g} (needed {SHARE:.1%}), the worst off by {worst.difference:.2g}"
            f" (allowed {LIMIT:g}): {worst.text}; "
            + layers_apart(
                model, onnx_path, input_names, golden.batch(np.array([worst.jet])), worst.level
            )
        )
    return Parity(
        num_jets=len(golden),
        num_answers=total,
        share_close=share,
        max_difference=worst.difference,
        worst=worst.text,
        levels=tuple(levels),
        batch_sizes=tuple(batch_sizes),
    )


@dataclasses.dataclass
class _Worst:
    """The jet that is furthest off so far."""

    difference: float = -1.0
    jet: int = -1
    level: int = 0
    text: str = ""

    def see(
        self,
        golden: Golden,
        jets: np.ndarray,
        difference: np.ndarray,
        got: np.ndarray,
        expected: np.ndarray,
        size,
        level,
    ) -> None:
        row = int(np.argmax(difference))
        if difference[row] > self.difference:
            self.jet, self.level, self.difference = int(jets[row]), level, float(difference[row])
            where = f"batch size {size} and graph level {level} ({GRAPH_LEVELS[level]})"
            answers = f"PyTorch {_numbers(expected[self.jet])}, ONNX Runtime {_numbers(got[row])}"
            self.text = f"{_jet(golden, self.jet)} at {where}: {answers}"


def num_answers(
    golden: Golden,
    levels: Sequence[int] = tuple(GRAPH_LEVELS),
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> int:
    """How many jets ONNX Runtime is asked for in check_parity, for a progress bar."""
    return len(levels) * sum(len(_jets_for(size, golden)) for size in batch_sizes)


def _jets_for(batch_size: int, golden: Golden) -> np.ndarray:
    """Indices of the jets run at a batch size: whole batches, enough of them to see one jet of each
    multiplicity.
    """
    batches = -(-golden.span // batch_size)
    return np.arange(batches * batch_size) % len(golden)


def _onnx_answers(
    runtime, golden: Golden, jets: np.ndarray, size: int, level: int, advance
) -> np.ndarray:
    parts = []
    for start in range(0, len(jets), size):
        batch = jets[start : start + size]
        try:
            answers = runtime.run(None, golden.batch(batch))
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise GateError(
                f"ONNX Runtime cannot run the file at batch size {size} and graph level {level}:"
                f" {error}"
            ) from error
        if any(answer.ndim != 2 or len(answer) != len(batch) for answer in answers):
            raise GateError(
                f"ONNX Runtime gave outputs of shapes {[answer.shape for answer in answers]} at"
                f" batch size {size}"
            )
        parts.append(np.concatenate(answers, axis=1))
        advance(len(batch), f"level {level}")
    return np.concatenate(parts)


def _difference(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest difference of each jet, relative where |expected| > 1; infinite where the answer is
    no number.
    """
    scaled = np.abs(got.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))
    return np.where(np.isfinite(scaled), scaled, np.inf).reshape(len(got), -1).max(axis=1)


def _jet(golden: Golden, jet: int) -> str:
    return f"golden jet {jet} ({golden.multiplicity[jet]} particles)"


def _numbers(answer: np.ndarray) -> str:
    return ", ".join(f"{x:.7g}" for x in np.ravel(answer))
