"""Weaver's data config: which branches become which input tensors, labels and observers. Parsed and
checked before work starts.

The YAML grammar is weaver-core's (0.5.3), section by section:

    treename             path of the tree in the file; may be left out where a file holds one tree
        only
    selection            condition on jets (training and validation)
    test_time_selection  condition for the test set; without it `selection` applies there too
    new_variables        name: expression (weaver/config/expressions.py); may use branches and other
        new
        variables, in any order
    preprocess           method: manual | auto; data_fraction of the training files from which auto
        derives its numbers; params
    inputs               group: {length, pad_mode: constant | wrap, order_by, vars}; length: null
        means one value a jet
                         vars: name, or [name, subtract_by, multiply_by, clip_min, clip_max,
                             pad_value]
    labels               type: simple, value: [0-1 branches] -> `_label_`, the number of the class;
        or
                         type: custom, value: {name: expression}
    observers            columns kept beside the test jets; for training files they are optional
    monitor_variables    columns kept beside all jets; not together with observers
    weights              use_precomputed_weights: true, weight_branches: [...] multiplies columns
        into the weight of a jet; or
                         false, reweight_method: flat | ref, reweight_vars: {two variables: edges of
                             bins}, reweight_classes,
                         class_weights, reweight_threshold, reweight_basewgt,
                             reweight_discard_under_overflow, reweight_hists
                         (their meaning: weaver/config/weights.py)
    branch_magic         {text: replacement} in branch names; file_magic: {variable: {pattern of the
        file's address: value}}

A variable with `subtract_by` becomes clip((x - subtract_by) * multiply_by, clip_min, clip_max);
clipping comes before padding. Without it (or with null) it is taken as it is. Under method auto,
subtract_by defaults to the median and multiply_by to the inverse of the larger of the two distances
between the median and the 16th and 84th percentile.

The *.auto.yaml files that weaver-core writes are read too: their `preprocess: params` and `weights:
reweight_hists` are taken as they are, where weaver-core's training makes the histograms anew unless
told not to. `DataConfig.auto_yaml` writes such a file.

Keys that weaver-core does not have (it passes over them):

    inputs: group: order_by    [expression, ...]: sort the particles of each jet by their values,
        the first one first, before they are
                               cut to the length. A leading minus means falling order; ties keep the
                                   order of the file, NaN comes
                               last. Without it particles come in the order of the file.
    preprocess: non_finite     what becomes of NaN and infinity in inputs: weaver | zero | drop |
        error (weaver/prepared/transform.py)
    weights: use_as            sampling (as weaver-core) | loss

One thing differs from weaver-core: a group with `length: null` has the shape (-1, C) in
`input_shapes`, or (-1,) if it holds one variable: the shape its tensor really has. Bucketing is
parsed; preparing training data with it is refused for the time being.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from common import storage
from common.errors import InputError, unknown
from weaver.config.expressions import Expression
from weaver.config.weights import METHODS, USES, Reweighting, histograms_from

AUTO = "auto"
# a column that weaver-core adds: true for the training set, false for validation and test
TRAINING_FLAG = "aux_training_"
KEYS = frozenset(
    {
        "treename",
        "branch_magic",
        "file_magic",
        "selection",
        "test_time_selection",
        "preprocess",
        "new_variables",
        "inputs",
        "labels",
    }
    | {"observers", "monitor_variables", "weights", "bucketing"}
)
PARAMETERS = ("center", "scale", "min", "max", "pad_value")
# weaver-core's, in the order in which they follow the name in `vars`
DEFAULTS = (None, 1, -5, 5, 0)
WEIGHT_KEYS = frozenset(
    {
        "use_precomputed_weights",
        "weight_branches",
        "reweight_method",
        "reweight_basewgt",
        "reweight_vars",
        "reweight_classes",
    }
    | {
        "class_weights",
        "reweight_threshold",
        "reweight_discard_under_overflow",
        "reweight_hists",
        "use_as",
    }
)
NON_FINITE = ("weaver", "zero", "drop", "error")
BASE_WEIGHT = "_basewgt_"


@dataclasses.dataclass(frozen=True)
class OrderKey:
    """One key of an `order_by`: the particles of a jet sorted by the values of an expression."""

    expression: Expression
    """Without the minus that asks for falling order."""
    falling: bool

    @classmethod
    def parse(cls, text: str, where: str) -> OrderKey:
        expression = Expression(text, where)
        falling = isinstance(expression.tree, ast.UnaryOp) and isinstance(
            expression.tree.op, ast.USub
        )
        return cls(
            Expression(ast.unparse(expression.tree.operand), where) if falling else expression,
            falling,
        )

    @property
    def name(self) -> str:
        """The column that holds the values of the expression."""
        return f"_order_by_({self.expression.canonical()})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one decoding of files takes: columns to read, what to compute from them in order, and
    what to keep.
    """

    branches: dict[str, str]
    """Column name -> branch name in the file (they differ by `branch_magic` only)."""
    selection: Expression | None
    selection_functions: tuple[tuple[str, Expression], ...]
    """New variables that the selection needs, each after those it depends on."""
    functions: tuple[tuple[str, Expression], ...]
    """All other new variables, labels and the weight, computed for selected jets."""
    kept: frozenset[str]
    """Columns that are still needed once the selection is applied."""
    labels: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    weight: str | None = None
    reweight: tuple[str, ...] = ()
    """Columns that the histograms and the weights of a reweighting are made of."""
    longest: int | None = None
    """The greatest length of an input; particles behind it are in no input.

    None where they count all the same (`order_by`).
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data config, checked.

    Attributes have weaver-core's names, so that network files written for it can read them.
    """

    source: str
    """Where it was read from; opens every error about it."""
    options: dict[str, Any]
    """The parsed YAML."""
    treename: str | None
    selection: str | None
    test_time_selection: str | None
    preprocess: dict[str, Any]
    preprocess_params: dict[str, dict[str, Any]]
    """Variable -> length, pad_mode, center, scale, min, max, pad_value; center is "auto" until it
    has been derived.
    """
    input_names: tuple[str, ...]
    input_dicts: dict[str, list[str]]
    input_shapes: dict[str, tuple[int, ...]]
    """Group -> (-1, C, P) for sequences, (-1, C) for one value a jet ((-1,) for one
    such variable).
    """
    order_by: dict[str, tuple[OrderKey, ...]]
    """Group -> by what its particles are sorted, before the cut to the length; groups in the file's
    order are not in it.
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
    reweight_hists: dict[str, Any] | None
    """Class -> float32 weights by bin;

    None until they have been made of the training set, and without reweighting.
    """
    non_finite: str
    """Policy for NaN and infinity in inputs, one of NON_FINITE."""
    functions: dict[str, Expression]
    """New variables, labels and the weight by name."""
    selections: dict[str, Expression | None]
    """"train" and "test"."""
    declared: dict[str, Any]
    """The meaning of the file in a canonical form; what `digest` hashes."""

    @classmethod
    def load(cls, uri: str) -> DataConfig:
        """Read and check a data config.

        Raises InputError naming file, section and key for whatever is wrong in it.
        """
        try:
            options = yaml.safe_load(storage.read_text(uri))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{uri} is not YAML: {' '.join(str(error).split())}") from None
        return cls.from_options(options, uri)

    @classmethod
    def from_options(cls, options: Any, source: str = "data config") -> DataConfig:
        """The same from an already parsed mapping."""
        return _Parser(source, options).parse()

    @property
    def tree_name(self) -> str | None:
        return self.treename

    @property
    def labels(self) -> dict[str, Any]:
        return self.options["labels"]

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of all branches that training, validation or test may read, sorted."""
        return tuple(
            sorted({*self.plan(True).branches.values(), *self.plan(False).branches.values()})
        )

    @property
    def missing_preprocess_params(self) -> tuple[str, ...]:
        """Input variables whose standardisation is still to be derived from the training set."""
        return tuple(
            name for name, params in self.preprocess_params.items() if params["center"] == AUTO
        )

    def digest(self) -> str:
        """SHA-256 of the config's meaning: layout, comments and unused new variables do not change
        it; nor do derived parameters.
        """
        return hashlib.sha256(json.dumps(self.declared, sort_keys=True).encode()).hexdigest()

    @property
    def missing_reweight_hists(self) -> bool:
        """True if the histograms of the reweighting are still to be made of the training set."""
        return self.reweighting is not None and self.reweight_hists is None

    @property
    def derived(self) -> dict[str, Any]:
        """Everything that is taken from the training set or set beside the file, as plain JSON
        values; see `with_derived`.
        """
        hists = self.reweight_hists and {
            label: hist.tolist() for label, hist in self.reweight_hists.items()
        }
        return {
            "preprocess_params": self.preprocess_params,
            "reweight_hists": hists,
            "non_finite_policy": self.non_finite,
        }

    def with_derived(self, derived: Mapping[str, Any]) -> DataConfig:
        """The same config with what prepared data say about it (`derived`, or a dataset.json, which
        holds the same keys).
        """
        config = self.with_preprocess_params(derived["preprocess_params"])
        hists = derived.get("reweight_hists")
        if hists and self.reweighting:
            config = dataclasses.replace(
                config, reweight_hists=histograms_from(hists, self.reweighting, self.source)
            )
        return config.with_non_finite(derived.get("non_finite_policy") or self.non_finite)

    def with_non_finite(self, policy: str) -> DataConfig:
        """The same config with another policy for NaN and infinity.

        Raises InputError for one that does not exist.
        """
        if policy not in NON_FINITE:
            raise InputError(
                f"{self.source}: preprocess: {unknown('non_finite', policy, NON_FINITE)}"
            )
        return dataclasses.replace(self, non_finite=policy)

    def auto_yaml(self) -> str:
        """The config with its derived numbers, as weaver-core writes its *.auto.yaml files; it
        reads this one as well.
        """
        options = copy.deepcopy(self.options)
        options["preprocess"] = {
            **(options.get("preprocess") or {}),
            **{key: self.preprocess[key] for key in ("method", "data_fraction")},
        }
        options["preprocess"]["params"] = self.preprocess_params
        if self.reweight_hists:
            options["weights"]["reweight_hists"] = self.derived["reweight_hists"]
        # through JSON: without aliases and tuples
        return yaml.safe_dump(json.loads(json.dumps(options)), sort_keys=False)

    def with_preprocess_params(self, params: Mapping[str, Mapping[str, Any]]) -> DataConfig:
        """The same config with the parameters that were derived from the training set (as `prepare`
        stores them).
        """
        missing = [name for name in self.preprocess_params if name not in params]
        if missing:
            raise InputError(
                f"{self.source}: no standardisation for {', '.join(missing)}; it was derived for"
                " another data config"
            )
        return dataclasses.replace(
            self, preprocess_params={name: dict(params[name]) for name in self.preprocess_params}
        )

    def plan(self, for_training: bool, *, without: Iterable[str] = ()) -> Plan:
        """What to read and compute for the training and validation sets, or for the test set.

        `without` names observers to leave out. Raises InputError for new variables that depend on
        themselves.
        """
        observers = tuple(
            name
            for name in (*self.observer_names, *self.monitor_variables)
            if name not in set(without)
        )
        wanted = [
            *(name for names in self.input_dicts.values() for name in names),
            *self.label_names,
            *observers,
        ]
        wanted += [key.name for keys in self.order_by.values() for key in keys]
        weight = self.weight_name if for_training and not self.reweighting else None
        reweight = self.reweighting.columns if for_training and self.reweighting else ()
        wanted += [*reweight, *([weight] if weight else [])]
        if for_training and self.label_type == "simple":
            wanted.append("_labelcheck_")
        lengths = [
            self.preprocess_params[names[0]]["length"] or 0 for names in self.input_dicts.values()
        ]
        return self.plan_for(
            wanted,
            for_training=for_training,
            labels=self.label_names,
            observers=observers,
            weight=weight,
            reweight=reweight,
            longest=None if self.order_by else max(lengths, default=0) or None,
        )

    def plan_for(self, wanted: Iterable[str], *, for_training: bool = True, **outputs: Any) -> Plan:
        """The plan that yields the wanted columns after the selection;

        `outputs` are the other fields of Plan.
        """
        selection = self.selections["train" if for_training else "test"]
        first_columns, first = self._resolve(selection.names if selection else ())
        columns, functions = self._resolve(wanted)
        computed = {name for name, _ in first}
        return Plan(
            branches={
                name: self._branch(name)
                for name in {**first_columns, **columns}
                if not self._is_supplied(name)
            },
            selection=selection,
            selection_functions=first,
            functions=tuple(item for item in functions if item[0] not in computed),
            kept=frozenset(columns) | (computed & {name for name, _ in functions}),
            **outputs,
        )

    def check_supported(self, for_training: bool) -> None:
        """Raise InputError for what is parsed but cannot be prepared yet."""
        if for_training and self.options.get("bucketing") is not None:
            raise InputError(f"{self.source}: bucketing is not supported yet; leave it out")

    def used_by(self, name: str) -> str:
        """Where a column is asked for, as words for an error: the first expression or section that
        names it.
        """
        places = [e for e in (*self.selections.values(), *self.functions.values()) if e is not None]
        found = next(
            (e.where.removeprefix(f"{self.source}:") for e in places if name in e.names), None
        )
        groups = [f"inputs:{group}" for group, names in self.input_dicts.items() if name in names]
        return found or next(iter(groups), "labels" if name in self.label_names else "observers")

    def _branch(self, name: str) -> str:
        for text, replacement in (self.options.get("branch_magic") or {}).items():
            name = name.replace(text, replacement)
        return name

    def _is_supplied(self, name: str) -> bool:
        """Columns that come from no branch."""
        return name == TRAINING_FLAG or name in (self.options.get("file_magic") or {})

    def _resolve(
        self, names: Iterable[str]
    ) -> tuple[dict[str, None], tuple[tuple[str, Expression], ...]]:
        """Columns to read for `names` (in order of first use), and the functions to compute,
        dependencies first.
        """
        columns: dict[str, None] = {}
        ordered: dict[str, Expression] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                circle = " -> ".join((*path[path.index(name) :], name))
                raise InputError(
                    f"{self.source}: new variables depend on each other in a circle: {circle}; give"
                    " one another name"
                )
            if name in ordered or name in columns:
                return
            if name not in self.functions:
                columns[name] = None
                return
            for needed in self.functions[name].names:
                visit(needed, (*path, name))
            ordered[name] = self.functions[name]

        for name in names:
            visit(name, ())
        return columns, tuple(ordered.items())


class _Parser:
    """Turns the parsed YAML of one data config into a DataConfig; every refusal names the file and
    the section.
    """

    def __init__(self, source: str, options: Any) -> None:
        self.source = source
        if not isinstance(options, dict):
            raise InputError(
                f"{source} is no data config: expected a mapping with 'inputs' and 'labels', found"
                f" {_kind(options)}"
            )
        self.check_keys("", options, KEYS)
        self.options: dict[str, Any] = options

    def parse(self) -> DataConfig:
        self.functions: dict[str, Expression] = {}
        for name, text in self.mapping("new_variables").items():
            self.add_function(name, text, "new_variables")
        preprocess = self.preprocess()
        inputs = self.inputs(preprocess)
        params = self.params(inputs, preprocess)
        label_type, label_names = self.labels()
        weight_name, reweighting, hists = self.weights()
        config = DataConfig(
            source=self.source,
            options=self.options,
            treename=self.text("treename"),
            selection=self.text("selection"),
            test_time_selection=self.text("test_time_selection") or self.text("selection"),
            preprocess=preprocess,
            preprocess_params=params,
            input_names=tuple(inputs),
            input_dicts={group: list(given["vars"]) for group, given in inputs.items()},
            input_shapes={
                group: _shape(len(given["vars"]), given["length"])
                for group, given in inputs.items()
            },
            order_by={
                group: given["order_by"] for group, given in inputs.items() if given["order_by"]
            },
            label_type=label_type,
            label_value=self.options["labels"]["value"],
            label_names=label_names,
            observer_names=self.names("observers"),
            monitor_variables=self.names("monitor_variables"),
            weight_name=weight_name,
            weight_use=self.options["weights"].get("use_as") or USES[0] if weight_name else None,
            reweighting=reweighting,
            reweight_hists=hists,
            non_finite=preprocess.pop("non_finite"),
            functions=self.functions,
            selections=self.selections(),
            declared={},
        )
        self.check_together(config)
        return dataclasses.replace(config, declared=_declared(config))

    def check_together(self, config: DataConfig) -> None:
        if config.observer_names and config.monitor_variables:
            raise InputError(
                f"{self.source}: 'observers' and 'monitor_variables' cannot be set at the same time"
            )
        self.mapping("branch_magic")
        if not all(isinstance(values, dict) for values in self.mapping("file_magic").values()):
            raise InputError(
                f"{self.source}: file_magic: expected {{variable: {{pattern: value}}}}"
            )
        if self.options.get("bucketing") is not None:
            self.check_keys("bucketing", self.mapping("bucketing"), {"var", "bins"})
        for for_training in (True, False):
            config.plan(for_training)  # finds circles among new variables

    def selections(self) -> dict[str, Expression | None]:
        texts = {name: self.text(name) for name in ("selection", "test_time_selection")}
        parsed = {
            name: Expression(text, f"{self.source}:{name}") if text else None
            for name, text in texts.items()
        }
        return {
            "train": parsed["selection"],
            "test": parsed["test_time_selection"] or parsed["selection"],
        }

    def preprocess(self) -> dict[str, Any]:
        given = self.mapping("preprocess")
        self.check_keys("preprocess", given, {"method", "data_fraction", "params", "non_finite"})
        method = str(given.get("method") or "manual").lower()
        if not method.startswith((AUTO, "manual")):
            raise InputError(
                f"{self.source}: preprocess: {unknown('method', method, (AUTO, 'manual'))}"
            )
        fraction = given.get("data_fraction")
        fraction = 0.1 if fraction is None else self.number(fraction, "preprocess: data_fraction")
        if not 0 < fraction <= 1:
            raise InputError(
                f"{self.source}: preprocess: data_fraction must be above 0 and at most 1, found"
                f" {fraction}"
            )
        policy = given.get("non_finite") or NON_FINITE[0]
        if policy not in NON_FINITE:
            raise InputError(
                f"{self.source}: preprocess: {unknown('non_finite', str(policy), NON_FINITE)}"
            )
        method = AUTO if method.startswith(AUTO) else "manual"
        return {
            "method": method,
            "data_fraction": fraction,
            "params": given.get("params"),
            "non_finite": policy,
        }

    def inputs(self, preprocess: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Group -> length, pad_mode, order_by and vars:

        {variable: parameters}, in the order of the file.
        """
        given = self.mapping("inputs")
        if not given:
            raise InputError(
                f"{self.source}: no 'inputs'; a network needs at least one group of variables"
            )
        center = AUTO if preprocess["method"] == AUTO else None
        for group in given:
            if not re.fullmatch(r"\w[\w.-]*", str(group)):
                raise InputError(
                    f"{self.source}: inputs: {group!r} cannot be the name of a group; use letters,"
                    " digits and _"
                )
        return {
            str(group): self.group(str(group), content, center) for group, content in given.items()
        }

    def group(self, group: str, content: Any, center: str | None) -> dict[str, Any]:
        place = f"inputs:{group}"
        if not isinstance(content, dict):
            raise InputError(
                f"{self.source}: {place}: expected length and vars, found {_kind(content)}"
            )
        self.check_keys(place, content, {"length", "pad_mode", "order_by", "vars"})
        for key in ("length", "vars"):
            if key not in content:
                hint = " (null for one value a jet)" if key == "length" else ""
                raise InputError(f"{self.source}: {place}: '{key}' is missing{hint}")
        length, mode = content["length"], str(content.get("pad_mode") or "constant").lower()
        if length is not None and (
            not isinstance(length, int) or isinstance(length, bool) or length < 1
        ):
            raise InputError(
                f"{self.source}: {place}: length must be a positive whole number or null, found"
                f" {length!r}"
            )
        if mode not in ("constant", "wrap"):
            raise InputError(
                f"{self.source}: {place}: {unknown('pad_mode', mode, ('constant', 'wrap'))}"
            )
        if group.endswith("_mask") and mode != "constant":
            raise InputError(
                f"{self.source}: {place}: a mask needs pad_mode constant: wrapped particles would"
                " count as real ones"
            )
        order = self.order(place, content.get("order_by"), length)
        return {
            "length": length,
            "pad_mode": mode,
            "order_by": order,
            "vars": self.variables(place, content["vars"], center),
        }

    def order(self, place: str, given: Any, length: int | None) -> tuple[OrderKey, ...]:
        if given is None:
            return ()
        texts = [given] if isinstance(given, str) else given
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            raise InputError(
                f"{self.source}: {place}: order_by is a list of expressions, as in [-PF_pT]; found"
                f" {given!r}"
            )
        if length is None:
            raise InputError(
                f"{self.source}: {place}: order_by sorts particles; a group without length has none"
            )
        keys = tuple(OrderKey.parse(text, f"{self.source}:{place}:order_by") for text in texts)
        self.functions.update({key.name: key.expression for key in keys})
        return keys

    def variables(self, place: str, entries: Any, center: str | None) -> dict[str, dict[str, Any]]:
        if not isinstance(entries, list) or not entries:
            raise InputError(
                f"{self.source}: {place}: vars must be a list of variables, found {_kind(entries)}"
            )
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            name, *values = entry if isinstance(entry, list) and entry else [entry]
            if not isinstance(name, str) or len(values) > len(PARAMETERS):
                form = "a name or [name, subtract_by, multiply_by, clip_min, clip_max, pad_value]"
                raise InputError(f"{self.source}: {place}: each of vars is {form}; found {entry!r}")
            if name in found:
                raise InputError(f"{self.source}: {place}: '{name}' is listed twice")
            defaults = (center, *DEFAULTS[1:])
            values = [
                self.parameter(value, key, f"{place}:{name}")
                for key, value in zip(PARAMETERS, values, strict=False)
            ]
            found[name] = dict(zip(PARAMETERS, (*values, *defaults[len(values) :]), strict=True))
        return found

    def parameter(self, value: Any, key: str, place: str) -> Any:
        if value is None and key in ("center", "min", "max"):
            return None
        if key == "center" and value == AUTO:
            return AUTO
        return self.number(value, f"{place}: {key}")

    def params(
        self, inputs: dict[str, dict[str, Any]], preprocess: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Variable -> parameters; a variable in several groups must have the same in each.

        `preprocess.params` overrides all.
        """
        found: dict[str, dict[str, Any]] = {}
        stored = preprocess["params"]
        for group, given in inputs.items():
            for name, values in given["vars"].items():
                params = {"length": given["length"], "pad_mode": given["pad_mode"], **values}
                if stored is not None:
                    params = self.stored_params(stored, name)
                elif found.setdefault(name, params) != params:
                    raise InputError(
                        f"{self.source}: inputs:{group}: '{name}' is used in another group as"
                        f" {found[name]}, here as {params}"
                    )
                found[name] = params
        return found

    def stored_params(self, stored: Any, name: str) -> dict[str, Any]:
        wanted = ("length", "pad_mode", *PARAMETERS)
        if (
            not isinstance(stored, dict)
            or not isinstance(stored.get(name), dict)
            or set(stored[name]) != set(wanted)
        ):
            raise InputError(
                f"{self.source}: preprocess: params must give {', '.join(wanted)} for the input"
                f" '{name}'"
            )
        return dict(stored[name])

    def labels(self) -> tuple[str, tuple[str, ...]]:
        given = self.mapping("labels")
        self.check_keys("labels", given, {"type", "value", "names"})
        kind, value = given.get("type"), given.get("value")
        if kind not in ("simple", "custom"):
            raise InputError(
                f"{self.source}: labels: type must be simple or custom, found {kind!r}"
            )
        if kind == "custom":
            if not isinstance(value, dict) or not value:
                raise InputError(
                    f"{self.source}: labels: a custom label needs value: {{name: expression}},"
                    f" found {_kind(value)}"
                )
            for name, text in value.items():
                self.add_function(name, text, "labels")
            return kind, tuple(str(name) for name in value)
        if not isinstance(value, list) or not value:
            raise InputError(
                f"{self.source}: labels: a simple label needs value: [branch, ...], found"
                f" {_kind(value)}"
            )
        stacked = f"np.stack([{', '.join(f'ak.to_numpy({item})' for item in value)}], axis=1)"
        self.add_function("_label_", f"np.argmax({stacked}, axis=1)", "labels")
        self.add_function("_labelcheck_", f"np.sum({stacked}, axis=1)", "labels")
        return kind, ("_label_",)

    def weights(self) -> tuple[str | None, Reweighting | None, dict[str, Any] | None]:
        """The name of the weight, and its reweighting and histograms where it has some."""
        if self.options.get("weights") is None:
            return None, None, None
        given = self.mapping("weights")
        self.check_keys("weights", given, WEIGHT_KEYS)
        if not isinstance(given.get("use_precomputed_weights"), bool):
            raise InputError(
                f"{self.source}: weights: use_precomputed_weights must be true or false"
            )
        if given.get("use_as") not in (None, *USES):
            raise InputError(
                f"{self.source}: weights: {unknown('use_as', str(given['use_as']), USES)}"
            )
        if not given["use_precomputed_weights"]:
            chosen = self.reweighting(given)
            hists = given.get("reweight_hists")
            return (
                "_weight_",
                chosen,
                hists and histograms_from(hists, chosen, f"{self.source}: weights"),
            )
        names = given.get("weight_branches")
        if not isinstance(names, list) or not names:
            raise InputError(
                f"{self.source}: weights: use_precomputed_weights needs weight_branches: [branch,"
                " ...]"
            )
        self.add_function("_weight_", "*".join(map(str, names)), "weights")
        return "_weight_", None, None

    def reweighting(self, given: dict[str, Any]) -> Reweighting:
        place = f"{self.source}: weights"
        method, classes, factors = (
            given.get("reweight_method"),
            given.get("reweight_classes"),
            given.get("class_weights"),
        )
        if method not in METHODS:
            raise InputError(f"{place}: {unknown('reweight_method', str(method), METHODS)}")
        if (
            not isinstance(classes, list)
            or not classes
            or not all(isinstance(name, str) for name in classes)
        ):
            raise InputError(
                f"{place}: reweight_classes must be a list of columns that are 1 for the jets of a"
                f" class, found {classes!r}"
            )
        if factors is not None and (not isinstance(factors, list) or len(factors) != len(classes)):
            raise InputError(
                f"{place}: class_weights must be one number for each of {len(classes)}"
                f" reweight_classes, found {factors!r}"
            )
        threshold = self.number(given.get("reweight_threshold", 10), "weights: reweight_threshold")
        if not 0 <= threshold <= 100:
            raise InputError(
                f"{place}: reweight_threshold is a percentile from 0 to 100, found {threshold}"
            )
        if given.get("reweight_basewgt"):
            self.add_function(BASE_WEIGHT, given["reweight_basewgt"], "weights")
        variables, bins = self.reweight_bins(given.get("reweight_vars"))
        return Reweighting(
            method=method,
            variables=variables,
            bins=bins,
            classes=tuple(classes),
            class_weights=factors
            and tuple(self.number(factor, "weights: class_weights") for factor in factors),
            threshold=threshold,
            discard=bool(given.get("reweight_discard_under_overflow", True)),
            base=BASE_WEIGHT if given.get("reweight_basewgt") else None,
        )

    def reweight_bins(
        self, given: Any
    ) -> tuple[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]]:
        if not isinstance(given, dict) or len(given) != 2:
            raise InputError(
                f"{self.source}: weights: reweight_vars must name two variables with the edges of"
                f" their bins, found {given!r}"
            )
        bins = []
        for name, edges in given.items():
            numbers = (
                [self.number(edge, f"weights: reweight_vars: {name}") for edge in edges]
                if isinstance(edges, list)
                else []
            )
            if len(numbers) < 2 or any(low >= high for low, high in itertools.pairwise(numbers)):
                raise InputError(
                    f"{self.source}: weights: reweight_vars: '{name}' needs two or more rising"
                    f" edges of bins, found {edges!r}"
                )
            bins.append(tuple(numbers))
        return tuple(map(str, given)), tuple(bins)

    def add_function(self, name: Any, text: Any, section: str) -> None:
        place = f"{self.source}:{section}:{name}"
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{place}: {name!r} cannot be the name of a variable")
        if not isinstance(text, str | int | float):
            raise InputError(f"{place}: expected an expression, found {_kind(text)}")
        expression = Expression(str(text), place)
        if expression.canonical() != name:  # `x: x` only says that x is a branch
            self.functions[name] = expression

    def mapping(self, key: str) -> dict:
        value = self.options.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise InputError(f"{self.source}: {key}: expected a mapping, found {_kind(value)}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = self.options.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise InputError(
                f"{self.source}: {key}: expected a list of names, found {_kind(value)}"
            )
        return tuple(dict.fromkeys(value))

    def text(self, key: str) -> str | None:
        value = self.options.get(key)
        if value is None or isinstance(value, str):
            return value or None
        raise InputError(f"{self.source}: {key}: expected text, found {_kind(value)}")

    def number(self, value: Any, place: str) -> float:
        """A number; YAML reads 1e-3 (without a point) as text, which is meant as a number all the
        same.
        """
        try:
            if isinstance(value, bool):
                raise ValueError
            return value if isinstance(value, int | float) else float(str(value))
        except ValueError:
            raise InputError(
                f"{self.source}: {place}: expected a number, found {value!r}"
            ) from None

    def check_keys(self, place: str, given: Mapping, known: Iterable[str]) -> None:
        for key in given:
            if key not in known:
                raise InputError(
                    f"{self.source}:"
                    f" {place + ': ' if place else ''}{unknown('key', str(key), known)}"
                )


def _kind(value: Any) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        type(None): "nothing",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__) + (
        f" ({value!r})" if isinstance(value, str | int | float) else ""
    )


def _shape(variables: int, length: int | None) -> tuple[int, ...]:
    if length is not None:
        return (-1, variables, length)
    return (-1, variables) if variables > 1 else (-1,)


def _declared(config: DataConfig) -> dict[str, Any]:
    """The parts of a config that decide the prepared data, as plain JSON values."""
    used = {
        name: e
        for plan in map(config.plan, (True, False))
        for name, e in (*plan.selection_functions, *plan.functions)
    }
    added = {"non_finite": config.non_finite} if config.non_finite != NON_FINITE[0] else {}
    order = {
        group: [(key.expression.canonical(), key.falling) for key in keys]
        for group, keys in config.order_by.items()
    }
    return (
        {
            "treename": config.treename,
            "magic": [config.options.get("branch_magic"), config.options.get("file_magic")],
            "selections": {name: e and e.canonical() for name, e in config.selections.items()},
            "functions": {name: e.canonical() for name, e in used.items()},
            "inputs": [[group, names] for group, names in config.input_dicts.items()],
            "params": config.preprocess_params,
            "data_fraction": (
                config.preprocess["data_fraction"] if config.missing_preprocess_params else None
            ),
            "labels": [config.label_type, config.label_names],
            "kept": [config.observer_names, config.monitor_variables],
            "weights": config.options.get("weights"),
        }
        | ({"order_by": order} if order else {})
        | added
    )
