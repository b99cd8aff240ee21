"""Small files in the schemas of published data sets, the same on every machine.

Only uniform random numbers and the four basic operations are used: they give the same bits
everywhere, which logarithms and the like do not. The values need to look like jets only as far as
selections, bins and clipping go.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tables
import uproot

Columns = dict[str, np.ndarray | ak.Array]
TWICE = ("of_one_name", "of_two_name")  # the second gets the name of the first
JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
PFCAND = (
    *(
        "pt_nopuppi",
        "pt_log_nopuppi",
        "e_log_nopuppi",
        "etarel",
        "phirel",
        "abseta",
        "charge",
        "VTX_ass",
    ),
    *("dz", "dxysig", "btagPtRatio"),
)
SV = ("pt_log", "mass", "etarel", "phirel", "ntracks", "d3dsig")


class Draw:
    """Columns of `count` jets, drawn one after another."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.rng = count, np.random.default_rng(seed)

    def flat(self, low: float, high: float, dtype: str = "f4") -> np.ndarray:
        return (low + (high - low) * self.rng.random(self.count)).astype(dtype)

    def falling(self, low: float, dtype: str = "f4") -> np.ndarray:
        """Above `low`, half of them below twice of it, as a pT spectrum."""
        return (low / (0.03 + 0.97 * self.rng.random(self.count))).astype(dtype)

    def whole(self, low: int, high: int, dtype: str = "i4") -> np.ndarray:
        return self.rng.integers(low, high, self.count).astype(dtype)

    def multiplicity(self, most: int, long: int) -> np.ndarray:
        """Particles of each jet: up to `most`, one jet with none and two with `long`."""
        counts = self.whole(1, most + 1, "i8")
        counts[3], counts[5], counts[-1] = 0, long, long
        return counts

    def particles(self, counts: np.ndarray, low: float, high: float, dtype: str = "f4") -> ak.Array:
        values = low + (high - low) * self.rng.random(int(counts.sum()))
        if np.dtype(dtype).kind == "i":
            values = np.floor(values)
        # Few digits, so that the stored arrays compress; as fractions of powers of two they are
        # exact.
        return ak.unflatten((np.round(values * 1024) / 1024).astype(dtype), counts)

    def points(self, counts: np.ndarray) -> ak.Array:
        return self.particles(counts, -0.8, 0.8)


def jetntuple(count: int, seed: int) -> Columns:
    """The branches of a JetNtuple file that the JEC configs read."""
    draw = Draw(count, seed)
    n = draw.multiplicity(30, 130)
    columns: Columns = {
        name: draw.flat(0, 1)
        for name in ("jetMass", "jetArea", "jetGirth", "QG_ptD", "QG_axis2", "rhoAll")
    }
    columns |= {
        "jetPt": draw.falling(30),
        "jetEta": draw.flat(-2.6, 2.6),
        "jetPhi": draw.flat(-3.1, 3.1),
    }
    columns |= {
        name: draw.whole(0, 40) for name in ("QG_mult", "partonFlav", "hadronFlav", "PV_npvsGood")
    }
    columns["jetRawPt"] = columns["jetPt"] * draw.flat(0.9, 1.1)
    columns["genJetPt"] = columns["jetPt"] * draw.flat(0.8, 1.2) * (draw.whole(0, 10) > 0)
    columns["genJetEta"] = columns["jetEta"]
    pf = {
        "pT": draw.particles(n, 0.5, 30),
        "dR": draw.particles(n, 0, 1.2),
        "dTheta": draw.particles(n, -3, 3),
    }
    pf |= {"dEta": draw.points(n), "dPhi": draw.points(n)}
    choices = np.array([211, -211, 130, 22, 11, -13, 1], "i4")
    pf["id"] = ak.unflatten(choices[draw.rng.integers(0, len(choices), int(n.sum()))], n)
    pf |= {"fromPV": draw.particles(n, 0, 4, "i4"), "fromAK4Jet": draw.particles(n, 0, 2, "i4")}
    columns["PF"] = ak.zip(pf)
    return columns


def _momenta(draw: Draw, n: np.ndarray, kind: str = "f4") -> dict[str, ak.Array]:
    return {name: draw.particles(n, -40, 40, kind) for name in ("px", "py", "pz")} | {
        "energy": draw.particles(n, 50, 90, kind)
    }


def jetclass(count: int, seed: int) -> Columns:
    """JetClass: particles with displacements and types, ten classes as 0-1 branches of several
    types.
    """
    draw = Draw(count, seed)
    n = draw.multiplicity(16, 140)
    part = {**_momenta(draw, n), "deta": draw.points(n), "dphi": draw.points(n)}
    part |= {name: draw.particles(n, -3, 3) for name in ("d0val", "dzval")} | {
        name: draw.particles(n, 0, 2) for name in ("d0err", "dzerr")
    }
    part["charge"] = draw.particles(n, -1, 2, "i4")
    part |= {
        f"is{name}": draw.particles(n, 0, 2, "i4")
        for name in ("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")
    }
    columns: Columns = {
        "part": ak.zip(part),
        "jet_pt": draw.flat(500, 1000),
        "jet_energy": draw.flat(600, 2000),
    }
    columns |= {
        f"jet_{name}": draw.flat(-2, 2)
        for name in ("eta", "phi", "sdmass", "tau1", "tau2", "tau3", "tau4")
    }
    columns["jet_nparticles"] = n.astype("f4")
    kinds = ("f4", "i4", "bool")
    which = draw.whole(0, len(JETCLASS))
    return columns | {
        f"label_{name}": (which == i).astype(kinds[i % 3]) for i, name in enumerate(JETCLASS)
    }


def top(count: int, seed: int) -> Columns:
    """TopLandscape and QuarkGluon as converted for particle_transformer: momenta in double
    precision, one 0-1 label.
    """
    draw = Draw(count, seed)
    n = draw.multiplicity(16, 150)
    part = {
        **_momenta(draw, n, "f8"),
        "deta": draw.particles(n, -0.8, 0.8, "f8"),
        "dphi": draw.points(n),
        "charge": draw.points(n),
    }
    choices = np.array([211, -211, 321, 130, 2112, 22, -2212, 11], "i4")
    part["pid"] = ak.unflatten(choices[draw.rng.integers(0, len(choices), int(n.sum()))], n)
    part |= {f"is{name}": draw.particles(n, 0, 2, "i4") for name in ("Photon", "Electron", "Muon")}
    columns: Columns = {f"part_{name}": values for name, values in part.items()}
    columns |= {
        "label": draw.whole(0, 2, "i8"),
        "jet_pt": draw.flat(500, 600),
        "jet_energy": draw.flat(600, 900, "f8"),
    }
    return columns | {"jet_eta": draw.flat(-2, 2), "n_parts": n.astype("i4")}


def cms(count: int, seed: int) -> Columns:
    """AK4 and AK8 jets of CMS' DeepNTuples: candidates, secondary vertices, spectra that want
    reweighting.
    """
    draw = Draw(count, seed)
    n, m = draw.multiplicity(4, 24), draw.multiplicity(3, 7)
    columns: Columns = {"pfcand": ak.zip({name: draw.particles(n, -3, 5) for name in PFCAND})}
    columns["sv"] = ak.zip(
        {name: draw.particles(m, -1, 9, "f8" if name == "mass" else "f4") for name in SV}
    )
    columns |= {
        "fj_pt": draw.falling(200),
        "fj_sdmass": draw.flat(10, 280),
        "fj_genjet_sdmass": draw.flat(0, 270),
    }
    columns |= {
        "jet_pt": draw.falling(14),
        "jet_eta": draw.flat(-2.7, 2.7),
        "fj_eta": draw.flat(-2.4, 2.4),
    }
    columns["fj_gen_mass"] = draw.flat(20, 250)
    which = draw.whole(0, 6)
    columns |= {
        "fj_isQCD": (which < 2).astype("i4"),
        "sample_isQCD": (which < 2).astype("i4"),
        "fj_isH": (which > 2).astype("i4"),
    }
    columns |= {
        f"label_H_{name}": (which == i).astype("i4")
        for i, name in ((3, "bb"), (4, "cc"), (5, "qq"))
    }
    columns |= {
        "label_Top": which == 2,
        "event_no": draw.whole(0, 10**6, "i8"),
        "jet_no": draw.whole(0, 3),
    }
    columns["jet_tightId"] = draw.whole(0, 9)
    columns["jet_nBHadrons"], columns["jet_nCHadrons"] = draw.whole(0, 3), draw.whole(0, 3)
    columns["jet_hadronFlavour"] = draw.whole(0, 3) + 3 * (draw.whole(0, 3) > 0).astype("i4")
    columns["genWeight"], columns["npfcands"] = draw.flat(0.2, 3, "f8"), n.astype("i4")
    return columns


def mixed(count: int, seed: int) -> Columns:
    """Every difficult kind of column: all types, NaN and infinity, constant and empty variables,
    weights.
    """
    draw = Draw(count, seed)
    n, m = draw.multiplicity(14, 60), draw.multiplicity(3, 6)
    energy = np.asarray(ak.flatten(draw.particles(n, 0.25, 20))).copy()
    energy[::37], energy[5::41], energy[7::43] = np.nan, np.inf, 0
    columns: Columns = {
        "pf": ak.zip(
            {
                "e": ak.unflatten(energy, n),
                "x": draw.points(n),
                "same": draw.particles(n, 2, 3, "i4"),
            }
        )
    }
    columns["sv"] = ak.zip(
        {
            "mass": draw.particles(m, -2, 3, "f8"),
            "deta": draw.points(m),
            "nt": draw.particles(m, 1, 9, "i4"),
        }
    )
    f4, f8 = draw.flat(-3, 3), draw.flat(-3, 3, "f8")
    f4[::17], f4[1::19], f8[2::23] = np.nan, np.inf, -np.inf
    columns |= {
        "f4": f4,
        "f8": f8,
        "i4": draw.whole(-50, 50),
        "i8": draw.whole(-50, 50, "i8"),
        "b": draw.whole(0, 2) > 0,
    }
    return columns | {
        "u4": draw.whole(0, 50, "u4"),
        "jet_pt": draw.falling(20),
        "w1": draw.flat(0, 1),
        "w2": draw.flat(0, 2, "f8"),
    }


def changing(count: int, seed: int) -> Columns:
    """Columns whose types differ from file to file, and two branches of one name."""
    draw = Draw(count, seed)
    is_first = seed % 100 == 1
    n = draw.multiplicity(14, 40)
    pf = {
        "e": draw.particles(n, 0.25, 20, "f4" if is_first else "f8"),
        "id": draw.particles(n, -300, 300, "i4" if is_first else "i8"),
        "q": draw.particles(n, -1, 2, "i2" if is_first else "f4"),
    }
    event = draw.whole(0, 2**31 - 1, "i4") if is_first else draw.whole(2**33, 2**50, "i8")
    columns: Columns = {
        "pf": ak.zip(pf),
        "event": event,
        "u": draw.whole(0, 99, "u4" if is_first else "i4"),
        "z": draw.whole(-9, 9, "i4") if is_first else draw.flat(-9, 9, "f4"),
        "s": draw.whole(-9, 9, "i2") if is_first else draw.flat(-9, 9, "f4"),
        "l": draw.flat(-9, 9, "f4") if is_first else draw.whole(-9, 9, "i8"),
        "d": draw.flat(-3, 3, "f4" if is_first else "f8"),
        "w": draw.whole(1, 5, "i4") if is_first else draw.flat(0.5, 2, "f8"),
    }
    # written under two names of equal length
    return columns | {TWICE[0]: draw.flat(-1, 1), TWICE[1]: draw.whole(5, 9)}


def forms(count: int, seed: int) -> Columns:
    """Columns in every form: several numbers for each jet, lists with the option types of pandas
    and pyarrow, records of lists.
    """
    draw = Draw(count, seed)
    n = draw.multiplicity(9, 20)
    columns: Columns = {
        "pf_e": draw.particles(n, 0.25, 20, "f8"),
        "pf_q": draw.particles(n, -1, 2, "i4"),
        "pf_x": draw.points(n),
        "v3": draw.rng.random((count, 3)),
        "w3": draw.rng.random((count, 3)).astype("f4"),
        "u3": draw.rng.random((count, 3)),
        "x": draw.flat(1, 3, "f8"),
        "event": draw.whole(0, 10**6, "i8"),
        "run": draw.whole(1, 400),
        "kind": draw.whole(0, 3),
    }
    columns["part"] = ak.zip({"pt": draw.particles(n, 0.5, 9, "f8"), "eta": draw.points(n)})
    return columns


def arrays(count: int, seed: int) -> Columns:
    """Columns as HDF5 has them in weaver-core's layout: one number or several for each jet, and
    particles padded with zeros.
    """
    draw = Draw(count, seed)
    n = draw.whole(0, 10)
    real = np.arange(9) < n[:, None]
    return {
        "pf_e": (draw.rng.uniform(0.25, 20, (count, 9)) * real).astype("f4"),
        "pf_q": (draw.rng.integers(-1, 2, (count, 9)) * real).astype("i4"),
        "pf_x": (draw.rng.normal(size=(count, 9)) * real).astype("f4"),
        "w3": draw.rng.random((count, 3)).astype("f4"),
        "x": draw.flat(1, 3, "f8"),
        "f": draw.flat(-3, 3, "f4"),
        "event": draw.whole(2**33, 2**50, "i8"),
        "run": draw.whole(1, 400),
        "kind": draw.whole(0, 3),
    }


SCHEMAS: dict[str, tuple[Callable[[int, int], Columns], str]] = {
    "jetntuple": (jetntuple, "AK4jets/jetTree"),
    "jetclass": (jetclass, "tree"),
    "top": (top, "parquet"),
    "cms": (cms, "Events"),
    "mixed": (mixed, "tree"),
    "changing": (changing, "tree"),
    "forms_root": (forms, "tree"),
    "forms_rntuple": (forms, "rntuple"),
    "forms_pyarrow": (forms, "pyarrow"),
    "forms_hdf5": (arrays, "hdf5"),
}
"""Schema -> its columns and the path of the tree, or how another kind of file is written."""
SUFFIXES = {"parquet": "parquet", "pyarrow": "parquet", "hdf5": "h5"}
"""Kind of file -> what its name ends with, where that is not root."""


def write(folder: Path, schema: str, count: int) -> dict[str, list[str]]:
    """Files of `count` jets each; role -> addresses."""
    make, tree = SCHEMAS[schema]
    suffix = SUFFIXES.get(tree, "root")
    names = {name: folder / f"{schema}-{name}.{suffix}" for name in ("a", "b", "c")}
    for seed, path in enumerate(names.values(), start=1):
        columns = make(count, 100 * (list(SCHEMAS).index(schema) + 1) + seed)
        if tree == "parquet":
            write_parquet(path, columns)
        elif tree == "pyarrow":
            write_pyarrow(path, columns)
        elif tree == "rntuple":
            write_rntuple(path, columns)
        elif tree == "hdf5":
            write_hdf5(path, columns)
        else:
            write_root(path, columns, tree)
        if TWICE[1] in columns:
            content = path.read_bytes().replace(TWICE[1].encode(), TWICE[0].encode())
            path.write_bytes(content)
    return {
        "train": [str(names["a"]), str(names["b"])],
        "val": [str(names["c"])],
        # observers are compared in the test set only
        "test": [str(names["a"]), str(names["c"])] if schema == "changing" else [str(names["c"])],
    }


def write_parquet(path: Path, columns: Columns) -> None:
    ak.to_parquet(
        ak.Array({name: ak.Array(values) for name, values in columns.items()}),
        str(path),
        row_group_size=20,
    )


def write_pyarrow(path: Path, columns: Columns) -> None:
    """As pyarrow and pandas write Python's own lists: every column may hold nulls."""
    arrays = {name: pa.array(values.tolist()) for name, values in columns.items()}
    arrays["u3"] = pa.array(columns["u3"].tolist(), pa.list_(pa.float64(), 3))
    arrays["kind"] = arrays["kind"].dictionary_encode()
    pyarrow.parquet.write_table(pa.table(arrays), path, row_group_size=17)


def write_rntuple(path: Path, columns: Columns) -> None:
    with uproot.recreate(path) as file:
        file.mkrntuple("tree", columns)


def write_hdf5(path: Path, columns: Columns) -> None:
    with tables.open_file(path, "w") as file:
        for name, values in columns.items():
            file.create_carray("/", name, obj=np.asarray(values))


def write_root(path: Path, columns: Columns, tree: str) -> None:
    # names can be changed in a file that is not compressed
    compression = None if TWICE[1] in columns else uproot.ZLIB(1)
    with uproot.recreate(path, compression=compression) as file:
        ttree = file.mktree(
            tree,
            {
                k: np.dtype((v.dtype, v.shape[1:])) if isinstance(v, np.ndarray) else v.type.content
                for k, v in columns.items()
            },
        )
        for start in range(0, len(next(iter(columns.values()))), 50):
            ttree.extend({name: values[start : start + 50] for name, values in columns.items()})
