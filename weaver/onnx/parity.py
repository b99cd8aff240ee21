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
from typing import NamedTuple

import numpy as np

from common.errors import GateError
from weaver.onnx.layers_apart import layers_apart
from weaver.onnx.runtime import feed_of, session
from weaver.onnx.triton_config import GRAPH_LEVELS

CLOSE = 1e-5  # an answer that agrees; relative where |answer| > 1
LIMIT = 1e-3  # no jet may be further off
SHARE = 0.999  # of the jets must agree
BATCH_SIZES = (1, 2, 17, 1000)
NUM_JETS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """Jets to compare answers on."""

    inputs: dict[str, np.ndarray]
    """Name -> (N, C, P) or (N, C) float32; of raw jets (N, P) or (N, 1)."""
    multiplicity: np.ndarray
    """Real particles (N,) of each jet."""
    span: int
    """So many jets, the first ones, are one of each multiplicity."""
    counters: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of raw jets: input whose second axis may have any size -> the input that counts what is real
    in it."""

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.multiplicity)

    def batch(self, jets: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of these jets (n,), where the size is free as wide as the fullest needs."""
        inputs = {}
        for name, x in self.inputs.items():
            inputs[name] = x[jets]
            if counter := self.counters.get(name):
                width = max(int(self.inputs[counter][jets].max(initial=0)), 1)
                inputs[name] = inputs[name][:, :width]
        return inputs


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

    def asdict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
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
    """Make golden jets of real ones: one of each multiplicity 0..length, then jets as they are.

    There are `count` of them, or more if the length needs it. A jet is cut to m particles by
    putting padding in place of the others, and filled up to m with particles of other jets, so that
    no particle occurs twice in it. When the real jets are used up, further cut ones follow.
    `padding` holds the value of each variable in a padded place, {name: (C,)}; zero without it.
    `length`: P without it. The same seed gives the same jets.
    """
    rng = np.random.default_rng(seed)
    places = max((x.shape[2] for x in inputs.values() if x.ndim == 3), default=0)
    length = places if length is None else min(length, places)

    # Real jets, as many as are left beside one of each multiplicity.
    real = rng.permutation(len(multiplicity))[: max(count - length - 1, 0)]
    further = max(count - len(real) - length - 1, 0)
    sizes = np.concatenate([np.arange(length + 1), rng.integers(0, length + 1, further)])
    base = rng.integers(0, len(multiplicity), len(sizes))
    filled = {}
    for name, x in inputs.items():
        pad = (padding or {}).get(name)
        filled[name] = x[base]
        if x.ndim == 3:
            filled[name] = _with_multiplicity(x, multiplicity, base, sizes, pad, seed)

    # The first length + 1 jets are one of each multiplicity, in random order: the smaller batch
    # sizes are run on them alone.
    order = np.concatenate([rng.permutation(length + 1), np.arange(length + 1, len(sizes))])
    return Golden(
        inputs={name: np.concatenate([filled[name][order], x[real]]) for name, x in inputs.items()},
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
    """Jets x[base] (n, C, P) of x (N, C, P), with `sizes` (n,) particles each."""
    filled = x[base].copy()
    length = x.shape[2]
    # (jet, place) of all particles, from which jets are filled up. The same seed for each input: a
    # filled place takes the same particle everywhere.
    particles = np.argwhere(np.arange(length) < multiplicity[:, None])
    pool = np.random.default_rng(seed).permutation(particles)
    next_free = 0
    for row, (jet, size) in enumerate(zip(base, sizes, strict=True)):
        own = min(int(multiplicity[jet]), length)
        take = pool  # of a pool without particles, none
        if len(pool):
            missing = max(size - own, 0)
            take = pool[np.arange(next_free, next_free + missing) % len(pool)]
        filled[row, :, own : own + len(take)] = x[take[:, 0], :, take[:, 1]].T
        filled[row, :, size:] = 0.0 if padding is None else np.asarray(padding)[:, None]
        next_free += len(take)
    return filled


def torch_answers(
    model, input_names: Sequence[str], inputs: Mapping[str, np.ndarray], batch_size: int = 500
) -> np.ndarray:
    """PyTorch's answers (N, outputs) on the CPU, in evaluation mode.

    Several outputs, (N, 1) or (N,), stand side by side.
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
    """Compare the ONNX file with the model on the golden jets; the module's text has the rule.

    model: on the CPU, in evaluation mode. expected: the right answers (N, outputs), where they are
    not the model's own. `advance` is called with the number of jets done and the level. Raises
    GateError that names the worst jet, its number of particles, the batch size, the level and the
    layer.
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
        # on the worst jet alone, since it keeps the outputs of all layers
        inputs = golden.batch(np.array([worst.jet]))
        layers = layers_apart(model, onnx_path, input_names, inputs, worst.level)
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
    """The jet that is furthest off so far; none at first."""

    difference: float = -1.0
    jet: int = -1
    level: int = 0
    text: str = ""


def num_answers(
    golden: Golden,
    levels: Sequence[int] = tuple(GRAPH_LEVELS),
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> int:
    """How many jets ONNX Runtime answers in check_parity, for a progress bar."""
    return len(levels) * sum(len(_jets_for(size, golden)) for size in batch_sizes)


def _jets_for(batch_size: int, golden: Golden) -> np.ndarray:
    """Indices of the jets that are run at a batch size.

    They make whole batches, enough of them to see one jet of each multiplicity.
    """
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
    """ONNX Runtime's answers (n, outputs) to the jets (n,), in batches of a size."""
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
    """Largest difference (N,) of each jet, relative where |expected| > 1.

    Infinite where the answer is no number.
    """
    scaled = np.abs(answers.astype(np.float64) - expected) / np.maximum(1.0, np.abs(expected))
    finite = np.where(np.isfinite(scaled), scaled, np.inf)
    return finite.reshape(len(answers), -1).max(axis=1)


def _jet(golden: Golden, jet: int) -> str:
    return f"golden jet {jet} ({golden.multiplicity[jet]} particles)"


def _numbers(answer: np.ndarray) -> str:
    return ", ".join(f"{x:.7g}" for x in np.ravel(answer))
