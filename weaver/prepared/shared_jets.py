"""Jets that two prepared sets have in common, whatever their files are called and whatever order
they stand in.

What a network was trained on, or chosen by, says nothing of how good it is. Two jets are taken for
the same where their momenta are, to the last bit of float32: of a million different jets and
another hundred thousand not one pair is.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from common import storage

IDENTITY = ("jetPt", "genJetPt", "genJetEta")
"""Observers that tell a jet from all others (GeV, GeV, none)."""


def shared_jets(sets: Mapping[str, str]) -> Iterator[tuple[str, str, int, int]]:
    """For each two sets: (name, name of a later one, how many jets of the later one are in both,
    how many it has).

    sets: name -> URI of the prepared folder. Nothing for a set whose data config does not keep
    IDENTITY among its observers.
    """
    found = {name: momenta for name, uri in sets.items() if (momenta := _momenta(uri)) is not None}
    for one, other in itertools.combinations(found, 2):
        yield one, other, int(np.count_nonzero(among(found[other], found[one]))), len(found[other])


def _momenta(uri: str) -> np.ndarray | None:
    """IDENTITY of each jet, (N, 3) float32; None where an observer is missing."""
    places = [storage.join(uri, f"observer.{name}.npy") for name in IDENTITY]
    if not all(storage.exists(place) for place in places):
        return None
    return np.stack(
        [np.load(io.BytesIO(storage.read_bytes(place))) for place in places], axis=1
    ).astype(np.float32, copy=False)


def among(jets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of `jets` (N, 3) are among `others` (M, 3), to the last bit: (N,) bool."""
    pairs, other_pairs = (
        np.ascontiguousarray(each[:, :2]).view(np.uint64)[:, 0] for each in (jets, others)
    )
    # nearly all; numbers are compared ten times as fast as the rows of the few that are left
    found = np.isin(pairs, other_pairs)
    whole, other_whole = (
        each.view("S12")[:, 0] for each in (jets[found], others[np.isin(other_pairs, pairs)])
    )
    found[found] = np.isin(whole, other_whole)
    return found
