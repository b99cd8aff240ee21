"""Weaver's data config: which branches become which input tensors, labels and observers.

It is parsed and checked before work starts, section by section (weaver/config/sections.py and
weights_section.py). The YAML grammar is weaver-core's (0.5.3):

    treename             path of the tree in the file; may be left out where a file holds one tree
    selection            condition on jets (training and validation)
    test_time_selection  condition for the test set; without it `selection` applies there too
    new_variables        name: expression (weaver/config/expressions.py); may use branches and other
                         new variables, in any order
    preprocess           method: manual | auto; data_fraction of the training files from which auto
                         derives its numbers; params
    inputs               group: {length, pad_mode: constant | wrap, order_by, vars}
                         length: null means one value a jet
                         vars: name, or
                         [name, subtract_by, multiply_by, clip_min, clip_max, pad_value]
    labels               type: simple, value: [0-1 branches] -> `_label_`, the number of the class;
                         or type: custom, value: {name: expression}
    observers            columns kept beside the test jets; for training files they are optional
    monitor_variables    columns kept beside all jets; not together with observers
    weights              use_precomputed_weights: true, weight_branches: [...] multiplies columns
                         into the weight of a jet; or false, with reweight_method: flat | ref,
                         reweight_vars: {two variables: edges of bins}, reweight_classes,
                         class_weights, reweight_threshold, reweight_basewgt,
                         reweight_discard_under_overflow, reweight_hists
                         (their meaning: weaver/config/weights.py)
    branch_magic         {text: replacement} in branch names
    file_magic           {variable: {pattern of the file's address: value}}

A variable with `subtract_by` becomes clip((x - subtract_by) * multiply_by, clip_min, clip_max);
clipping comes before padding. Without it (or with null) it is taken as it is. Under method auto,
subtract_by defaults to the median and multiply_by to the inverse of the larger of the two distances
between the median and the 16th and 84th percentile.

The *.auto.yaml files that weaver-core writes are read too: their `preprocess: params` and `weights:
reweight_hists` are taken as they are, where weaver-core's training makes the histograms anew unless
told not to. `DataConfig.auto_yaml` writes such a file.

Keys that weaver-core does not have (it passes over them):

    inputs: group: order_by    [expression, ...]: sort the particles of each jet by their values,
                               the first expression first, before they are cut to the length. A
                               leading minus means falling order; ties keep the order of the file,
                               NaN comes last. Without it particles come in the order of the file.
    preprocess: non_finite     what becomes of NaN and infinity in inputs: weaver | zero | drop |
                               error (weaver/prepared/transform.py)
    weights: use_as            sampling (as weaver-core) | loss

Two things differ from weaver-core. A group with `length: null` has the shape (-1, C) in
`input_shapes`, or (-1,) if it holds one variable: the shape its tensor really has. `bucketing` has
no effect, which a warning says: batches are drawn from all jets.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import yaml

from common import storage, yaml_text
from common.errors import InputError, unknown
from weaver.config.document import Document, Options
from weaver.config.expressions import Expression
from weaver.config.plan import Functions, OrderKey, Plan
from weaver.config.sections import (
    AUTO,
    NON_FINITE,
    Parameters,
    Preprocess,
    parse_inputs,
    parse_labels,
    parse_params,
    parse_preprocess,
)
from weaver.config.weights import Histograms, Reweighting, histograms_from
from weaver.config.weights_section import parse_weights

# a column that weaver-core adds: true for the training set, false for validation and test
SHOWN_NAMES = 10  # of a circle of variables, in its error
TRAINING_FLAG = "aux_training_"

NO_BUCKETS = "the section has no effect: each batch is drawn from all jets, whatever their size"


class Derived(TypedDict):
    """What prepared data says about a data config, as plain JSON values."""

    preprocess_params: dict[str, Parameters]
    reweight_hists: dict[str, list] | None
    """Class -> weights by bin."""
    non_finite_policy: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data config, checked.

    Attributes have weaver-core's names, so that network files written for it can read them.
    """

    source: str
    """Where it was read from; opens every error about it."""
    options: Options
    """The parsed YAML."""
    treename: str | None
    selection: str | None
    test_time_selection: str | None
    preprocess: Preprocess
    preprocess_params: dict[str, Parameters]
    """Input variable -> its parameters; center is "auto" until it has been derived."""
    input_names: tuple[str, ...]
    input_dicts: dict[str, list[str]]
    """Group -> its variables."""
    input_shapes: dict[str, tuple[int, ...]]
    """Group -> (-1, C, P) for sequences, (-1, C) for one value a jet, (-1,) for one such variable.
    """
    order_by: dict[str, tuple[OrderKey, ...]]
    """Group -> by what its particles are sorted before the cut to the length; only for groups that
    are sorted.
    """
    label_type: str
    label_value: Any
    label_names: tuple[str, ...]
    observer_names: tuple[str, ...]
    monitor_variables: tuple[str, ...]
    weight_name: str | None
    weight_use: str | None
    """With weights: "sampling" or "loss"."""
    reweighting: Reweighting | None
    reweight_hists: Histograms | None
    """Class -> float32 weights by bin.

    None until they have been made of the training set, and without reweighting.
    """
    non_finite: str
    """Policy for NaN and infinity in inputs, one of NON_FINITE."""
    functions: dict[str, Expression]
    """New variables, labels and the weight by name."""
    selections: dict[str, Expression | None]
    """"train" and "test"; with `with_extra_selection` also "derived": the selection of the file, by
    which `preprocess: auto` derives its numbers.
    """
    declared: Options
    """The meaning of the file in a canonical form; what `digest` hashes."""
    warnings: tuple[str, ...] = ()
    """A line for each key that has no effect."""

    @classmethod
    def load(cls, uri: str) -> DataConfig:
        """Read and check a data config.

        Keys that weaver-core passes over, too, are named in a warning on stderr. Raises InputError
        naming file, section and key for whatever is wrong in it.
        """
        config = cls.from_options(yaml_text.load(storage.read_text(uri), uri), uri)
        for line in config.warnings:
            _warn(line)
        return config

    @classmethod
    def from_options(cls, options: object, source: str = "data config") -> DataConfig:
        """The same from an already parsed mapping."""
        document = Document(source, options)
        for name, text in document.mapping("new_variables").items():
            document.define(name, text, "new_variables")
        preprocess, non_finite = parse_preprocess(document)
        groups = parse_inputs(document, preprocess["method"])
        params = parse_params(document, groups, preprocess)
        label_type, label_names = parse_labels(document)
        weights = parse_weights(document)

        selection = document.text("selection")
        test_selection = document.text("test_time_selection")
        selections = {"train": _condition(document, "selection", selection)}
        selections["test"] = (
            _condition(document, "test_time_selection", test_selection) or selections["train"]
        )

        input_shapes: dict[str, tuple[int, ...]] = {}
        for name, group in groups.items():
            channels = len(group.names)
            length = next(iter(group.variables.values()))["length"]
            flat = (-1, channels) if channels > 1 else (-1,)
            input_shapes[name] = flat if length is None else (-1, channels, length)

        config = cls(
            source=source,
            options=document.options,
            treename=document.text("treename"),
            selection=selection,
            test_time_selection=test_selection or selection,
            preprocess=preprocess,
            preprocess_params=params,
            input_names=tuple(groups),
            input_dicts={name: list(group.names) for name, group in groups.items()},
            input_shapes=input_shapes,
            order_by={name: group.order_by for name, group in groups.items() if group.order_by},
            label_type=label_type,
            label_value=document.options["labels"]["value"],
            label_names=label_names,
            observer_names=document.names("observers"),
            monitor_variables=document.names("monitor_variables"),
            weight_name=weights.name,
            weight_use=weights.use,
            reweighting=weights.reweighting,
            reweight_hists=weights.hists,
            non_finite=non_finite,
            functions=document.functions,
            selections=selections,
            declared={},
        )
        _check_together(document, config)
        warnings = document.warnings
        if document.options.get("bucketing") is not None:
            warnings = (*warnings, f"{source}: bucketing: {NO_BUCKETS}")
        return dataclasses.replace(config, declared=_declared(config), warnings=warnings)

    @property
    def labels(self) -> Options:
        """The section `labels` as written."""
        return self.options["labels"]

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of all branches that training, validation or test may read, sorted."""
        branches = {*self.plan(True).branches.values(), *self.plan(False).branches.values()}
        return tuple(sorted(branches))

    @property
    def missing_preprocess_params(self) -> tuple[str, ...]:
        """Input variables whose standardisation is still to be derived from the training set."""
        return tuple(
            name for name, params in self.preprocess_params.items() if params["center"] == AUTO
        )

    def digest(self) -> str:
        """SHA-256 of the config's meaning.

        Layout, comments, unused new variables and derived parameters do not change it.
        """
        return hashlib.sha256(json.dumps(self.declared, sort_keys=True).encode()).hexdigest()

    @property
    def missing_reweight_hists(self) -> bool:
        """True if the histograms of the reweighting are still to be made of the training set."""
        return self.reweighting is not None and self.reweight_hists is None

    @property
    def derived(self) -> Derived:
        """What is taken from the training set or set beside the file; see `with_derived`."""
        hists = None
        if self.reweight_hists is not None:
            hists = {label: hist.tolist() for label, hist in self.reweight_hists.items()}
        return {
            "preprocess_params": self.preprocess_params,
            "reweight_hists": hists,
            "non_finite_policy": self.non_finite,
        }

    def with_derived(self, derived: Mapping[str, Any]) -> DataConfig:
        """The same config with what prepared data says about it.

        derived: of another config, or a dataset.json, which holds the same keys.
        """
        config = self.with_preprocess_params(derived["preprocess_params"])
        hists = derived.get("reweight_hists")
        if hists and self.reweighting:
            config = dataclasses.replace(
                config, reweight_hists=histograms_from(hists, self.reweighting, self.source)
            )
        return config.with_non_finite(derived.get("non_finite_policy") or self.non_finite)

    def with_missing_from(self, derived: Mapping[str, Any]) -> DataConfig:
        """The same config with the numbers that it lacks taken from another's `derived`.

        Numbers that stand in this config stay. Raises InputError where `derived` lacks them too.
        """
        stored = derived["preprocess_params"]
        params = dict(self.preprocess_params)
        for name in self.missing_preprocess_params:
            if name not in stored or stored[name]["center"] == AUTO:
                raise InputError(
                    f"{self.source}: no standardisation for {name}; it was derived for another data"
                    " config"
                )
            own = params[name].copy()
            own["center"] = stored[name]["center"]
            own["scale"] = stored[name]["scale"]
            params[name] = own
        return dataclasses.replace(self, preprocess_params=params)

    def with_non_finite(self, policy: str) -> DataConfig:
        """The same config with another policy for NaN and infinity.

        Raises InputError for one that does not exist.
        """
        if policy not in NON_FINITE:
            raise InputError(
                f"{self.source}: preprocess: {unknown('non_finite', policy, NON_FINITE)}"
            )
        return dataclasses.replace(self, non_finite=policy)

    def with_extra_selection(self, extra: str, flag: str, *, for_training: bool) -> DataConfig:
        """The same config with `(selection) & (extra)`, as weaver-core's --extra-selection-train.

        for_training: of training and validation jets, else of the test set's. `preprocess: auto`
        still derives its numbers from all jets of the file's own selection, as in weaver-core.
        flag: where `extra` comes from, for errors. Raises InputError for what is no expression.
        """
        Expression(extra, flag)  # an error then names the flag alone
        role = "train" if for_training else "test"
        own = self.selection if for_training else self.test_time_selection
        text = f"({own}) & ({extra})" if own else extra
        selections = {
            "derived": self.selections["train"],
            **self.selections,
            role: Expression(text, f"{self.source}:selection and {flag}"),
        }
        changed = dataclasses.replace(
            self,
            selections=selections,
            selection=text if for_training else self.selection,
            test_time_selection=self.test_time_selection if for_training else text,
        )
        return dataclasses.replace(changed, declared=_declared(changed))

    def auto_yaml(self) -> str:
        """The config with its derived numbers: a *.auto.yaml file, which weaver-core reads too."""
        options = copy.deepcopy(self.options)
        options["preprocess"] = {
            **(options.get("preprocess") or {}),
            "method": self.preprocess["method"],
            "data_fraction": self.preprocess["data_fraction"],
            "params": self.preprocess_params,
        }
        if self.reweight_hists:
            options["weights"]["reweight_hists"] = self.derived["reweight_hists"]
        # through JSON: without aliases and tuples
        return yaml.safe_dump(json.loads(json.dumps(options)), sort_keys=False)

    def with_preprocess_params(self, params: Mapping[str, Parameters]) -> DataConfig:
        """The same config with the parameters that `prepare` derived from the training set.

        Raises InputError where those of an input variable are missing.
        """
        missing = [name for name in self.preprocess_params if name not in params]
        if missing:
            raise InputError(
                f"{self.source}: no standardisation for {', '.join(missing)}; it was derived for"
                " another data config; prepare the data with this one"
            )
        own = {name: params[name].copy() for name in self.preprocess_params}
        return dataclasses.replace(self, preprocess_params=own)

    def plan(self, for_training: bool, *, without: Iterable[str] = ()) -> Plan:
        """What to read and compute for the training and validation sets, or for the test set.

        `without` names observers to leave out. Raises InputError for new variables that depend on
        themselves.
        """
        left_out = set(without)
        kept = (*self.observer_names, *self.monitor_variables)
        observers = tuple(name for name in kept if name not in left_out)

        columns: list[str] = []
        lengths = []
        for names in self.input_dicts.values():
            columns += names
            lengths.append(self.preprocess_params[names[0]]["length"] or 0)
        columns += [*self.label_names, *observers]
        for keys in self.order_by.values():
            columns += [key.name for key in keys]

        # The test set has no weights, and its jets may belong to no class.
        weight = None
        reweight: tuple[str, ...] = ()
        if for_training and self.reweighting:
            reweight = self.reweighting.columns
            columns += reweight
        elif for_training and self.weight_name:
            weight = self.weight_name
            columns.append(weight)
        if for_training and self.label_type == "simple":
            columns.append("_labelcheck_")

        # A sort may bring any particle to the front, so that all of them count.
        longest = None if self.order_by else max(lengths, default=0) or None
        plan = self.plan_for(columns, for_training=for_training)
        return dataclasses.replace(
            plan,
            labels=self.label_names,
            observers=observers,
            weight=weight,
            reweight=reweight,
            longest=longest,
        )

    def plan_for(self, columns: Iterable[str], *, for_training: bool = True) -> Plan:
        """The plan that yields these columns after the selection, without labels and the like."""
        selection = self.selections["train" if for_training else "test"]
        read_first, first = self._resolve(selection.names if selection else ())
        read, functions = self._resolve(columns)

        branches = {}
        for name in {**read_first, **read}:
            # These columns come from no branch: weaver/read/files.py supplies them.
            if name != TRAINING_FLAG and name not in (self.options.get("file_magic") or {}):
                branches[name] = self._branch(name)

        # What the selection computed is not computed again.
        computed = {name for name, _ in first}
        needed_again = computed & {name for name, _ in functions}
        return Plan(
            branches=branches,
            selection=selection,
            selection_functions=first,
            functions=tuple(item for item in functions if item[0] not in computed),
            kept=frozenset(read) | needed_again,
        )

    def plan_to_derive(self, columns: Iterable[str]) -> Plan:
        """The plan of `preprocess: auto` for these columns: without any extra selection."""
        selection = self.selections.get("derived", self.selections["train"])
        selections = {**self.selections, "train": selection}
        return dataclasses.replace(self, selections=selections).plan_for(columns)

    def dispensable(self, absent: Iterable[str]) -> list[str]:
        """Observers of training files that cannot be made without these columns of branches.

        Only those that nothing else needs; `plan` takes them as `without`.
        """
        branches = set(self.plan(True).branches)
        observers = []
        for name in self.observer_names:
            needed_for_it_alone = branches - set(self.plan(True, without=[name]).branches)
            if needed_for_it_alone & set(absent):
                observers.append(name)
        return observers

    def used_by(self, name: str) -> str:
        """The first expression or section that names a column, as words for an error."""
        for expression in (*self.selections.values(), *self.functions.values()):
            if expression is not None and name in expression.names:
                return expression.where.removeprefix(f"{self.source}:")
        for group, names in self.input_dicts.items():
            if name in names:
                return f"inputs:{group}"
        return "labels" if name in self.label_names else "observers"

    def _branch(self, name: str) -> str:
        """The branch of a column, after `branch_magic`."""
        for text, replacement in (self.options.get("branch_magic") or {}).items():
            name = name.replace(text, replacement)
        return name

    def _resolve(self, names: Iterable[str]) -> tuple[dict[str, None], Functions]:
        """Columns to read for `names` (in order of first use), and the functions to compute."""
        columns: dict[str, None] = {}
        ordered: dict[str, Expression] = {}

        for wanted in names:
            # The variables being resolved, each with what it still needs; a stack of our own,
            # because Python's ends after a thousand.
            path: dict[str, Iterator[str]] = {}
            name: str | None = wanted
            while True:
                if name in path:
                    raise self._circle([*path, name])
                if name is not None and name not in ordered and name not in columns:
                    if name in self.functions:
                        path[name] = iter(self.functions[name].names)
                    else:
                        columns[name] = None
                if not path:
                    break
                last = next(reversed(path))
                name = next(path[last], None)
                if name is None:  # its dependencies come first
                    ordered[last] = self.functions[last]
                    del path[last]
        return columns, tuple(ordered.items())

    def _circle(self, path: list[str]) -> InputError:
        """The refusal of variables that depend on each other; the last one is there twice."""
        names = path[path.index(path[-1]) :]
        if len(names) > SHOWN_NAMES:
            names = [*names[: SHOWN_NAMES - 2], "...", *names[-2:]]
        return InputError(
            f"{self.source}: new variables depend on each other in a circle: {' -> '.join(names)};"
            " give one another name"
        )


@functools.cache
def _warn(line: str) -> None:
    """Show a line on stderr, once in a process and only in the first of several ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _condition(document: Document, key: str, text: str | None) -> Expression | None:
    return Expression(text, f"{document.source}:{key}") if text else None


def _check_together(document: Document, config: DataConfig) -> None:
    """Raise InputError for sections that do not fit each other, and for circles of variables."""
    if config.observer_names and config.monitor_variables:
        raise document.refusal(
            "", "'observers' and 'monitor_variables' cannot be set at the same time"
        )
    document.mapping("branch_magic")
    for variable, values in document.mapping("file_magic").items():
        if not isinstance(values, dict):
            raise document.refusal("file_magic", "expected {variable: {pattern: value}}")
        for pattern in values:
            try:
                re.compile(str(pattern))
            except (re.error, RecursionError, OverflowError) as error:
                raise document.refusal(
                    f"file_magic:{variable}", f"{pattern!r} is no regular expression: {error}"
                ) from None
    if document.options.get("bucketing") is not None:
        document.check_keys("bucketing", document.mapping("bucketing"), {"var", "bins"})
    for for_training in (True, False):
        config.plan(for_training)  # finds circles among new variables


def _declared(config: DataConfig) -> Options:
    """The parts of a config that decide the prepared data, as plain JSON values."""
    functions: dict[str, str] = {}
    for plan in (config.plan(True), config.plan(False)):
        for name, expression in (*plan.selection_functions, *plan.functions):
            functions[name] = expression.canonical()
    selections = {
        name: expression and expression.canonical()
        for name, expression in config.selections.items()
    }
    declared = {
        "treename": config.treename,
        "magic": [config.options.get("branch_magic"), config.options.get("file_magic")],
        "selections": selections,
        "functions": functions,
        "inputs": [[group, names] for group, names in config.input_dicts.items()],
        "params": config.preprocess_params,
        # the fraction means nothing where no number is derived
        "data_fraction": (
            config.preprocess["data_fraction"] if config.missing_preprocess_params else None
        ),
        "labels": [config.label_type, config.label_names],
        "kept": [config.observer_names, config.monitor_variables],
        "weights": config.options.get("weights"),
    }
    # Keys of ours stand in it only where they are used, so that the digest of a config of
    # weaver-core's, and with it the folder of its prepared data, stays what it was before them.
    if config.order_by:
        declared["order_by"] = {
            group: [(key.expression.canonical(), key.falling) for key in keys]
            for group, keys in config.order_by.items()
        }
    if config.non_finite != NON_FINITE[0]:
        declared["non_finite"] = config.non_finite
    return declared
