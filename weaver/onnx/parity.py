"""The export gate: check that ONNX Runtime reproduces PyTorch, in every way that Triton may run it.

`golden_jets` makes the jets: one of each multiplicity from 0 to the full length, then real ones.
`check_parity` compares the answers (the network's outputs) to these jets, at each optimisation
level of config.pbtxt and at batch sizes from 1 to 1000. For a model that fails, the error names the
worst jet, and the first layer that differs (weaver/onnx/layer_differences.py).

An answer agrees if |onnx - torch| <= 1e-5 * max(1, |torch|). 99.9 % of the jets must agree, and
none may differ by more than 1e-3. The rest allows for rounding, which may decide which of two
nearly equally distant particles is a neighbour.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.errors import GateError
from weaver.onnx.layer_differences import describe_layer_differences
from weaver.onnx.runtime import feed_of, session
from weaver.onnx.triton_config import GRAPH_LEVELS

CLOSE = 1e-5  # largest difference of an answer that agrees; relative where |answer| > 1
LIMIT = 1e-3  # largest difference that any jet may have
SHARE = 0.999  # fraction of jets that must agree
BATCH_SIZES = (1, 2, 17, 1000)
NUM_JETS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """Golden jets, for which the answers are compared."""

    inputs: dict[str, np.ndarray]
    """Name -> (N, C, P) or (N, C) float32; for raw jets (N, P) or (N, 1)."""
    multiplicity: np.ndarray
    """Number of particles (N,) of each jet, without padding."""
    span: int
    """The first `span` jets are one of each multiplicity."""
    counters: dict[str, str] = dataclasses.field(default_factory=dict)
    """For raw jets: input whose second axis may have any size -> its counter."""

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.multiplicity)

    def batch(self, jets: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs of these jets (n,).

        Free axes are as long as the largest multiplicity.
        """
        inputs = {}
        for name, x in self.inputs.items():
            inputs[name] = x[jets]
            if counter := self.counters.get(name):
                width = max(int(self.inputs[counter][jets].max(initial=0)), 1)
                inputs[name] = inputs[name][:, :width]
        return inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """The gate's result; `worst` describes the jet with the largest difference."""

    num_jets: int
    num_answers: int
    share_close: float
    """Fraction of jets that agree at every batch size, the smallest of all optimisation levels."""
    max_difference: float
    worst: str
    levels: tuple[int, ...]
    batch_sizes: tuple[int, ...]

    def asdict(self) -> dict[str, object]:
        """Return the fields, as JSON values."""
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
    """Make golden jets from real ones: one of each multiplicity 0..length, then unchanged jets.

    inputs: name -> (N, C, P) or (N, C). multiplicity: (N,). count: number of golden jets; there are
    more if the length requires it. padding: name -> value of each variable in a padded place (C,);
    default 0. length: default P. The same seed gives the same jets.

    To get m particles, a jet is truncated and padded, or extended with particles of other jets, so
    that no particle occurs twice in it. If there are too few real jets, more of this kind follow.
    """
    rng = np.random.default_rng(seed)
    places = max((x.shape[2] for x in inputs.values() if x.ndim == 3), default=0)
    length = places if length is None else min(length, places)

    # Real jets: as many as remain after one jet of each multiplicity.
    real = rng.permutation(len(multiplicity))[: max(count - length - 1, 0)]
    further = max(count - len(real) - length - 1, 0)
    sizes = np.concatenate([np.arange(length + 1), rng.integers(0, length + 1, further)])
    base = rng.integers(0, len(multiplicity), len(sizes))
    variants = {}
    for name, x in inputs.items():
        pad = (padding or {}).get(name)
        variants[name] = x[base]
        if x.ndim == 3:
            variants[name] = _with_multiplicity(x, multiplicity, base, sizes, pad, seed)

    # The first length + 1 jets are one of each multiplicity, in random order; small batch sizes are
    # tested with these jets only.
    order = np.concatenate([rng.permutation(length + 1), np.arange(length + 1, len(sizes))])
    return Golden(
        inputs={
            name: np.concatenate([variants[name][order], x[real]]) for name, x in inputs.items()
        },
        multiplicity=np.concatenate([sizes[order], multiplicity[real]]),
        span=length + 1,
    )


def _with_multiplicity(
    x: np.ndarray,
    multiplicity: np.ndarray,
    base: np.ndarray,
    sizes: np.ndarray,
    padding: np.ndarray | None,
    seed: int,
) -> np.ndarray:
    """Return the jets x[base] (n, C, P) of x (N, C, P), changed to `sizes` (n,) particles each."""
    variant = x[base].copy()
    length = x.shape[2]
    # (jet, place) of all particles, with which jets are extended. The seed is the same for each
    # input, so that all inputs take the same particle.
    particles = np.argwhere(np.arange(length) < multiplicity[:, None])
    pool = np.random.default_rng(seed).permutation(particles)
    next_free = 0
    for row, (jet, size) in enumerate(zip(base, sizes, strict=True)):
        own = min(int(multiplicity[jet]), length)
        take = pool  # empty if there are no particles
        if len(pool):
            missing = max(size - own, 0)
            take = pool[np.arange(next_free, next_free + missing) % len(pool)]
        variant[row, :, own : own + len(take)] = x[take[:, 0], :, take[:, 1]].T
        variant[row, :, size:] = 0.0 if padding is None else np.asarray(padding)[:, None]
        next_free += len(take)
    return variant


def torch_answers(
    model, input_names: Sequence[str], inputs: Mapping[str, np.ndarray], batch_size: int = 500
) -> np.ndarray:
    """Return PyTorch's answers (N, outputs) on the CPU; the model must be in evaluation mode.

    Several output tensors, (N, 1) or (N,), are concatenated.
    """
    import torch

    answers = []
    with torch.no_grad():
        for start in range(0, len(inputs[input_names[0]]), batch_size):
            batch = []
            for name in input_names:
                # a copy, because networks change their inputs in place (x *= mask)
                array = np.array(inputs[name][start : start + batch_size], order="C")
                batch.append(torch.from_numpy(array))
            answer = model(*batch)
            outputs = answer if isinstance(answer, tuple | list) else [answer]
            answers.append(torch.cat([out.reshape(len(out), -1) for out in outputs], dim=1))
    return torch.cat(answers).float().numpy()


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
    """Compare the ONNX file with the model for the golden jets, by the module's rule.

    model: on the CPU, in evaluation mode. expected: the right answers (N, outputs); default: those
    of the model. levels: of graph optimisation. advance: called with a number of jets and a note,
    for a progress bar. Raises GateError that names the worst jet, its number of particles, the
    batch size, the level and the layer.
    """
    expected = torch_answers(model, input_names, golden.inputs) if expected is None else expected
    finite = np.isfinite(expected).all(axis=1)
    if not finite.all():
        jet = int(np.argmin(finite))
        raise GateError(
            f"PyTorch's own answer to {_jet(golden, jet)} is {_numbers(expected[jet])}, not a"
            " finite number"
        )

    worst = _Worst()
    share = 1.0
    total = 0
    for level in levels:
        off = np.zeros(len(golden))  # largest difference of each jet over the batch sizes
        runtime = session(onnx_path, level)
        for size in batch_sizes:
            jets = _jets_for(size, golden)
            answers = _onnx_answers(runtime, golden, jets, size, level, advance)
            difference = relative_difference(answers, expected[jets])
            # a jet may be in several batches
            np.maximum.at(off, jets, difference)
            row = int(np.argmax(difference))
            if difference[row] > worst.difference:
                jet = int(jets[row])
                text = (
                    f"{_jet(golden, jet)} at batch size {size} and graph level {level}"
                    f" ({GRAPH_LEVELS[level]}): PyTorch {_numbers(expected[jet])}, ONNX Runtime"
                    f" {_numbers(answers[row])}"
                )
                worst = _Worst(float(difference[row]), jet, level, text)
            total += len(jets)
        share = min(share, float(np.mean(off <= CLOSE)))

    if worst.difference > LIMIT or share < SHARE:
        # for the worst jet only, because the outputs of all layers are kept in memory
        inputs = golden.batch(np.array([worst.jet]))
        layers = describe_layer_differences(model, onnx_path, input_names, inputs, worst.level)
        raise GateError(
            f"ONNX Runtime does not answer as PyTorch: {share:.2%} of {len(golden):,} golden jets"
            f" within {CLOSE:g} (needed {SHARE:.1%}), the worst off by {worst.difference:.2g}"
            f" (allowed {LIMIT:g}): {worst.text}; {layers}"
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


class _Worst(NamedTuple):
    """The jet with the largest difference so far."""

    difference: float = -1.0
    jet: int = -1
    level: int = 0
    text: str = ""


def num_answers(
    golden: Golden,
    levels: Sequence[int] = tuple(GRAPH_LEVELS),
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> int:
    """Return the number of jets that check_parity runs in ONNX Runtime, for a progress bar."""
    return len(levels) * sum(len(_jets_for(size, golden)) for size in batch_sizes)


def _jets_for(batch_size: int, golden: Golden) -> np.ndarray:
    """Return indices of jets for a batch size: full batches, with one jet of each multiplicity."""
    batches = -(-golden.span // batch_size)
    return np.arange(batches * batch_size) % len(golden)


def _onnx_answers(
    runtime,
    golden: Golden,
    jets: np.ndarray,
    size: int,
    level: int,
    advance: Callable[[int, str], None],
) -> np.ndarray:
    """ONNX Runtime's answers (n, outputs) to the jets (n,), in batches of `size`.

    Raises GateError if it fails, or its outputs have wrong shapes.
    """
    parts = []
    for start in range(0, len(jets), size):
        batch = jets[start : start + size]
        try:
            answers = runtime.run(None, feed_of(runtime, golden.batch(batch)))
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise GateError(
                f"ONNX Runtime cannot run the file at batch size {size} and graph level {level}:"
                f" {error}"
            ) from error
        shapes = [answer.shape for answer in answers]
        if any(len(shape) != 2 or shape[0] != len(batch) for shape in shapes):
            raise GateError(f"ONNX Runtime gave outputs of shapes {shapes} at batch size {size}")
        parts.append(np.concatenate(answers, axis=1))
        advance(len(batch), f"level {level}")
    return np.concatenate(parts)


def relative_difference(answers: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return largest difference (N,) of each jet, relative where |expected| > 1.

    Infinite for NaN.
    """
    differences = np.abs(answers.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))
    differences = np.where(np.isfinite(differences), differences, np.inf)
    return differences.reshape(len(answers), -1).max(axis=1)


def _jet(golden: Golden, jet: int) -> str:
    return f"golden jet {jet} ({golden.multiplicity[jet]} particles)"


def _numbers(answer: np.ndarray) -> str:
    return ", ".join(f"{x:.7g}" for x in np.ravel(answer))
