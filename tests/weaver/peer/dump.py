"""Runs in weaver-core's own environment: store its arrays for data configs and files.

Reads a JSON list of jobs on standard input, each {"config", "output", "roles":
{"train"|"val"|"test": [files]}}, and writes one .npz a job. The roles come in this order, as in a
training: weaver-core writes what it derives from the training files beside the config.
"""

import json
import sys
import time

import awkward as ak
import numpy as np

time.sleep = lambda seconds: None  # it waits ten seconds after each of its warnings

from math_bits import math_bits  # noqa: E402 (beside this file)
from weaver.utils.data import preprocess  # noqa: E402
from weaver.utils.data.fileio import _read_files  # noqa: E402
from weaver.utils.dataset import SimpleIterDataset, _load_next  # noqa: E402


def load(config, files, role):
    data = SimpleIterDataset(
        {"_": files},
        config,
        for_training=role != "test",
        name=role,
        async_load=False,
        fetch_step=-1,
        remake_weights=role == "train",
    )
    peer_config = data._data_config
    options = dict(data._sampler_options, shuffle=False, reweight=False)
    ranges = [(0, 1)] * len(files)
    table, _ = _load_next(peer_config, files, ranges, options)
    out = {f"input {name}": np.asarray(table["_" + name]) for name in peer_config.input_names}
    out |= {f"label {name}": np.asarray(table[name]) for name in peer_config.label_names}
    out |= {
        f"observer {name}": np.asarray(ak.to_numpy(table[name])) for name in peer_config.z_variables
    }
    out |= {
        f"standardisation {name}": numbers(params)
        for name, params in peer_config.preprocess_params.items()
    }
    if peer_config.weight_name is not None and role != "test":
        out["weight"] = weights(peer_config, files, ranges, role)
        if not peer_config.use_precomputed_weights:
            out |= {
                f"histogram {name}": np.asarray(hist)
                for name, hist in peer_config.reweight_hists.items()
            }
    return out


def numbers(params):
    values = [params[key] for key in ("center", "scale", "min", "max", "pad_value")]
    return np.array([np.nan if value is None else value for value in values], "f8")


def weights(config, files, ranges, role):
    table = _read_files(
        files,
        config.train_load_branches,
        ranges,
        treename=config.treename,
        file_magic=config.file_magic,
    )
    table["aux_training_"] = role == "train"
    table = preprocess._apply_selection(table, config.selection, funcs=config.var_funcs)
    return preprocess._build_weights(
        preprocess._build_new_variables(table, config.train_var_funcs), config
    )


def main():
    for job in json.load(sys.stdin):
        result = {}
        for role, files in job["roles"].items():
            result |= {
                f"{role} {name}": array for name, array in load(job["config"], files, role).items()
            }
        np.savez_compressed(job["output"], **result, math_bits=np.array(math_bits()))


if __name__ == "__main__":
    main()
