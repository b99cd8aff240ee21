"""Weaver's data config: which branches become which input tensors, labels and observers.

It is parsed and checked before any other work starts, section by section
(weaver/config/sections.py and weights_section.py). The YAML grammar is that of weaver-core 0.5.3:

    treename             path of the tree in the file; may be left out where a file holds one tree
    selection            condition on the jets of the training and validation sets
    test_time_selection  condition on the jets of the test set; default: `selection`
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
clipping comes before padding. A variable without `subtract_by` (or with null) is not changed. Under
method auto, subtract_by defaults to the median and multiply_by to the inverse of the larger of the
two distances between the median and the 16th and 84th percentile.

The *.auto.yaml files that weaver-core writes can be read too. Their `preprocess: params` and
`weights: reweight_hists` are used unchanged; weaver-core's training would by default compute the
histograms again. `DataConfig.auto_yaml` writes such a file.

Keys that weaver-core does not have (it ignores them):

    inputs: group: order_by    [expression, ...]: sort the particles of each jet by their values,
                               the first expression first, before they are cut to the length. A
                               leading minus means falling order; ties keep the order of the file,
                               NaN comes last. Without it particles come in the order of the file.
    preprocess: non_finite     how NaN and infinity in inputs are treated: weaver | zero | drop |
                               error (weaver/prepared/transform.py)
    weights: use_as            sampling (as in weaver-core) | loss

Two things differ from weaver-core. A group with `length: null` has the shape (-1, C) in
`input_shapes`, or (-1,) if it holds one variable: the shape that its tensor really has.
`bucketing` has no effect, because batches are drawn from all jets; a warning says so.
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

MOST_NAMES = 10  # variables that the error about a circular definition lists
# a column that weaver-core adds: true for the training set, false for validation and test
TRAINING_FLAG = "aux_training_"

NO_BUCKETS = "the section has no effect: each batch is drawn from all jets, whatever their size"


class DerivedParameters(TypedDict):
    """Numbers of a data config that were computed from the training set, as plain JSON values.

    They are stored with the prepared data and in a trial's derived.json.
    """

    preprocess_params: dict[str, Parameters]
    reweight_hists: dict[str, list] | None
    """Class -> weights by bin."""
    non_finite_policy: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data config that has passed all checks.

    Attributes have weaver-core's names, so that network files written for it can read them.
    """

    source: str
    """Address of its file; every error about the config begins with it."""
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
    """Group -> keys by which its particles are sorted before the cut to the length. Groups without
    `order_by` are absent.
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

    None without reweighting, and before they are computed from the training set.
    """
    non_finite: str
    """Policy for NaN and infinity in inputs, one of NON_FINITE."""
    functions: dict[str, Expression]
    """New variables, labels and the weight by name."""
    selections: dict[str, Expression | None]
    """Selections for "train" and "test". After `with_extra_selection` also "derived": the
    selection of the file, which `preprocess: auto` applies when it derives its numbers.
    """
    canonical_form: Options
    """All settings that decide the prepared data, without layout and comments; `digest` hashes it.
    """
    warnings: tuple[str, ...] = ()
    """A line for each key that has no effect."""

    @classmethod
    def load(cls, uri: str) -> DataConfig:
        """Read and check a data config.

        A warning on stderr lists keys that have no effect. Raises InputError, which names the file,
        the section and the key, for any fault in it.
        """
        config = cls.from_options(yaml_text.load(storage.read_text(uri), uri), uri)
        for line in config.warnings:
            _warn(line)
        return config

    @classmethod
    def from_options(cls, options: object, source: str = "data config") -> DataConfig:
        """Check a data config that is already parsed; `source` names it in errors.

        Raises InputError, as `load` does.
        """
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
            canonical_form={},
        )
        _check_together(document, config)
        warnings = document.warnings
        if document.options.get("bucketing") is not None:
            warnings = (*warnings, f"{source}: bucketing: {NO_BUCKETS}")
        return dataclasses.replace(
            config, canonical_form=_canonical_form(config), warnings=warnings
        )

    @property
    def labels(self) -> Options:
        """The section `labels` as it stands in the file."""
        return self.options["labels"]

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of all branches that training, validation or test may read, sorted."""
        branches = {*self.plan(True).branches.values(), *self.plan(False).branches.values()}
        return tuple(sorted(branches))

    @property
    def missing_preprocess_params(self) -> tuple[str, ...]:
        """Input variables whose standardisation is not yet derived from the training set."""
        return tuple(
            name for name, params in self.preprocess_params.items() if params["center"] == AUTO
        )

    def digest(self) -> str:
        """Return the SHA-256 of all settings that decide the prepared data, in hexadecimal.

        Layout, comments, unused new variables and derived parameters do not change it.
        """
        return hashlib.sha256(json.dumps(self.canonical_form, sort_keys=True).encode()).hexdigest()

    @property
    def missing_reweight_hists(self) -> bool:
        """True if reweighting needs histograms that are not yet computed from the training set."""
        return self.reweighting is not None and self.reweight_hists is None

    @property
    def derived_parameters(self) -> DerivedParameters:
        """The numbers of this config that another one takes over by `with_derived_parameters`."""
        hists = None
        if self.reweight_hists is not None:
            hists = {label: hist.tolist() for label, hist in self.reweight_hists.items()}
        return {
            "preprocess_params": self.preprocess_params,
            "reweight_hists": hists,
            "non_finite_policy": self.non_finite,
        }

    def with_derived_parameters(self, parameters: Mapping[str, Any]) -> DataConfig:
        """Return this config with the derived numbers of another one.

        parameters: `derived_parameters` of another config, or a dataset.json, which has the same
        keys. Raises InputError where the numbers do not fit this config.
        """
        if not isinstance(parameters.get("preprocess_params"), Mapping):
            raise InputError(
                f"{self.source}: the derived numbers lack preprocess_params; prepare the"
                " training data again"
            )
        config = self.with_preprocess_params(parameters["preprocess_params"])
        hists = parameters.get("reweight_hists")
        if hists and self.reweighting:
            config = dataclasses.replace(
                config, reweight_hists=histograms_from(hists, self.reweighting, self.source)
            )
        return config.with_non_finite(parameters.get("non_finite_policy") or self.non_finite)

    def with_missing_parameters(self, parameters: Mapping[str, Any]) -> DataConfig:
        """Return this config with its missing standardisations filled in.

        parameters: `derived_parameters` of another config. Numbers that this config has stay.
        Raises InputError where `parameters` lacks a number too.
        """
        other = parameters.get("preprocess_params")
        if not isinstance(other, Mapping):
            raise InputError(
                f"{self.source}: the derived numbers lack preprocess_params; prepare the"
                " training data again"
            )
        params = dict(self.preprocess_params)
        for name in self.missing_preprocess_params:
            if name not in other or other[name]["center"] == AUTO:
                raise InputError(
                    f"{self.source}: no standardisation for {name}; it was derived for another data"
                    " config"
                )
            own = params[name].copy()
            own["center"] = other[name]["center"]
            own["scale"] = other[name]["scale"]
            params[name] = own
        return dataclasses.replace(self, preprocess_params=params)

    def with_non_finite(self, policy: str) -> DataConfig:
        """Return this config with another policy for NaN and infinity.

        Raises InputError for a policy that is not among NON_FINITE.
        """
        if policy not in NON_FINITE:
            raise InputError(
                f"{self.source}: preprocess: {unknown('non_finite', policy, NON_FINITE)}"
            )
        return dataclasses.replace(self, non_finite=policy)

    def with_extra_selection(self, extra: str, flag: str, *, for_training: bool) -> DataConfig:
        """Return this config with the selection `(selection) & (extra)`.

        It has the effect of weaver-core's --extra-selection-train. `preprocess: auto` still derives
        its numbers from all jets that pass the file's own selection, as in weaver-core.
        extra: an expression. flag: the command-line flag that gave it, for errors. for_training:
        apply it to the training and validation sets, else to the test set. Raises InputError if
        `extra` is not an expression.
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
        config = dataclasses.replace(
            self,
            selections=selections,
            selection=text if for_training else self.selection,
            test_time_selection=self.test_time_selection if for_training else text,
        )
        return dataclasses.replace(config, canonical_form=_canonical_form(config))

    def auto_yaml(self) -> str:
        """Return the text of an *.auto.yaml file: the config with its derived numbers.

        weaver-core can read it too.
        """
        options = copy.deepcopy(self.options)
        options["preprocess"] = {
            **(options.get("preprocess") or {}),
            "method": self.preprocess["method"],
            "data_fraction": self.preprocess["data_fraction"],
            "params": self.preprocess_params,
        }
        if self.reweight_hists:
            options["weights"]["reweight_hists"] = self.derived_parameters["reweight_hists"]
        # through JSON: without aliases and tuples
        return yaml.safe_dump(json.loads(json.dumps(options)), sort_keys=False)

    def with_preprocess_params(self, params: Mapping[str, Parameters]) -> DataConfig:
        """Return this config with the parameters that `prepare` derived from the training set.

        params: input variable -> its parameters. Raises InputError where those of an input
        variable are missing.
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
        """Plan what to read and compute for the training and validation sets, or for the test set.

        without: names of observers to leave out. Raises InputError for new variables that depend
        on themselves.
        """
        excluded_names = set(without)
        candidates = (*self.observer_names, *self.monitor_variables)
        observers = tuple(name for name in candidates if name not in excluded_names)

        columns: list[str] = []
        lengths = []
        for names in self.input_dicts.values():
            columns += names
            lengths.append(self.preprocess_params[names[0]]["length"] or 0)
        columns += [*self.label_names, *observers]
        for keys in self.order_by.values():
            columns += [key.name for key in keys]

        # The test set has no weights, and its jets need not belong to a class.
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

        # Sorting may bring any particle to the front, so that all of them must be read.
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
        """Plan how to get these columns of the selected jets.

        Labels, observers and weights are not added.
        """
        selection = self.selections["train" if for_training else "test"]
        selection_columns, selection_functions = self._resolve(selection.names if selection else ())
        columns_to_read, functions = self._resolve(columns)

        branches = {}
        for name in {**selection_columns, **columns_to_read}:
            # These columns come from no branch; weaver/read/files.py supplies them.
            if name != TRAINING_FLAG and name not in (self.options.get("file_magic") or {}):
                branches[name] = self._branch(name)

        # What the selection computes is not computed a second time.
        names_computed_first = {name for name, _ in selection_functions}
        needed_again = names_computed_first & {name for name, _ in functions}
        return Plan(
            branches=branches,
            selection=selection,
            selection_functions=selection_functions,
            functions=tuple(item for item in functions if item[0] not in names_computed_first),
            columns_after_selection=frozenset(columns_to_read) | needed_again,
        )

    def plan_to_derive(self, columns: Iterable[str]) -> Plan:
        """Plan how `preprocess: auto` gets these columns: without any extra selection."""
        selection = self.selections.get("derived", self.selections["train"])
        selections = {**self.selections, "train": selection}
        return dataclasses.replace(self, selections=selections).plan_for(columns)

    def droppable_observers(self, absent: Iterable[str]) -> list[str]:
        """Return the observers that training files without these branches cannot have.

        absent: columns whose branches are missing. Only columns that nothing but the observer
        needs count. The result goes to `plan` as `without`.
        """
        branches = set(self.plan(True).branches)
        observers = []
        for name in self.observer_names:
            own_branches = branches - set(self.plan(True, without=[name]).branches)
            if own_branches & set(absent):
                observers.append(name)
        return observers

    def used_by(self, name: str) -> str:
        """Name the first expression or section that uses a column, for an error."""
        for expression in (*self.selections.values(), *self.functions.values()):
            if expression is not None and name in expression.names:
                return expression.where.removeprefix(f"{self.source}:")
        for group, names in self.input_dicts.items():
            if name in names:
                return f"inputs:{group}"
        return "labels" if name in self.label_names else "observers"

    def _branch(self, name: str) -> str:
        """Return the branch of a column, after `branch_magic`."""
        for text, replacement in (self.options.get("branch_magic") or {}).items():
            name = name.replace(text, replacement)
        return name

    def _resolve(self, names: Iterable[str]) -> tuple[dict[str, None], Functions]:
        """Find the columns to read for `names`, and the functions to compute, in order.

        Columns come in order of first use, functions after those that they depend on. Raises
        InputError for functions that depend on each other in a circle.
        """
        columns: dict[str, None] = {}
        functions: dict[str, Expression] = {}

        for requested_name in names:
            # The variables being resolved, each with the names that it still needs. This is a
            # stack of our own, because Python's recursion ends after a thousand calls.
            path: dict[str, Iterator[str]] = {}
            name: str | None = requested_name
            while True:
                if name in path:
                    raise self._cycle_error([*path, name])
                if name is not None and name not in functions and name not in columns:
                    if name in self.functions:
                        path[name] = iter(self.functions[name].names)
                    else:
                        columns[name] = None
                if not path:
                    break
                last = next(reversed(path))
                name = next(path[last], None)
                if name is None:  # its dependencies come first
                    functions[last] = self.functions[last]
                    del path[last]
        return columns, tuple(functions.items())

    def _cycle_error(self, path: list[str]) -> InputError:
        """Return the error for variables that depend on each other.

        Its last name is there twice.
        """
        names = path[path.index(path[-1]) :]
        if len(names) > MOST_NAMES:
            names = [*names[: MOST_NAMES - 2], "...", *names[-2:]]
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
    """Check what concerns several sections. Raises InputError, also for circular definitions."""
    if config.observer_names and config.monitor_variables:
        raise document.error(
            "", "'observers' and 'monitor_variables' cannot be set at the same time"
        )
    document.mapping("branch_magic")
    for variable, values in document.mapping("file_magic").items():
        if not isinstance(values, dict):
            raise document.error("file_magic", "expected {variable: {pattern: value}}")
        for pattern in values:
            try:
                re.compile(str(pattern))
            except (re.error, RecursionError, OverflowError) as error:
                raise document.error(
                    f"file_magic:{variable}", f"{pattern!r} is not a regular expression: {error}"
                ) from None
    if document.options.get("bucketing") is not None:
        document.check_keys("bucketing", document.mapping("bucketing"), {"var", "bins"})
    for for_training in (True, False):
        config.plan(for_training)  # raises InputError for a circle of new variables


def _canonical_form(config: DataConfig) -> Options:
    """Return all settings that decide the prepared data, as plain JSON values."""
    functions: dict[str, str] = {}
    for plan in (config.plan(True), config.plan(False)):
        for name, expression in (*plan.selection_functions, *plan.functions):
            functions[name] = expression.canonical()
    selections = {
        name: expression and expression.canonical()
        for name, expression in config.selections.items()
    }
    form = {
        "treename": config.treename,
        "magic": [config.options.get("branch_magic"), config.options.get("file_magic")],
        "selections": selections,
        "functions": functions,
        "inputs": [[group, names] for group, names in config.input_dicts.items()],
        "params": config.preprocess_params,
        # the fraction has no effect where no number is derived
        "data_fraction": (
            config.preprocess["data_fraction"] if config.missing_preprocess_params else None
        ),
        "labels": [config.label_type, config.label_names],
        "kept": [config.observer_names, config.monitor_variables],
        "weights": config.options.get("weights"),
    }
    # Keys that weaver-core does not have appear only where a config uses them. So the digest of
    # other configs, and the folder of their prepared data, did not change when we added these keys.
    if config.order_by:
        form["order_by"] = {
            group: [(key.expression.canonical(), key.falling) for key in keys]
            for group, keys in config.order_by.items()
        }
    if config.non_finite != NON_FINITE[0]:
        form["non_finite"] = config.non_finite
    return form
