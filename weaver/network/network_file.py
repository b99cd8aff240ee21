"""Network files in Weaver's form.

A network file is a Python file with `get_model(data_config, **options)` and
`get_loss(data_config, **options)`. It is read from a path or an address. What it takes is
read from its text, so that a search space can be checked without torch; it is imported when the
network is built.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common import storage
from common.errors import InputError, JecError, unknown
from networks.options import ModelInfo, Rule
from weaver.network.siblings import read_siblings, write_siblings

if TYPE_CHECKING:
    import torch

NEEDED = ("get_model", "get_loss")
OWN_LOOPS = ("get_train_fn", "get_evaluate_fn", "init_opt")
"""Functions by which a file for weaver-core may replace the training loop.

Such a loop could not be resumed or distributed here.
"""


_SIBLINGS_IMPORTED: set[str] = set()
"""Folders of siblings that may be in sys.modules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """A network file that was read and parsed, not yet imported."""

    uri: str
    source: str
    place: str = ""
    """Where it lies, if `uri`, which messages name, is only how the user calls it."""
    siblings: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """The files beside it that it needs: relative path -> content."""

    @classmethod
    def read(cls, uri: str, place: str = "") -> NetworkFile:
        """Read a network file and its siblings. Raises InputError where there is none."""
        source = storage.read_text(place or uri)
        siblings = read_siblings(place or uri, source)
        return cls(uri=uri, source=source, place=place, siblings=siblings)

    def digest(self) -> str:
        """SHA-256 of the text and the siblings: where they lie makes no difference."""
        content = hashlib.sha256(self.source.encode())
        for path, data in self.siblings.items():
            content.update(f"\0{path}\0".encode() + hashlib.sha256(data).digest())
        return content.hexdigest()

    def option_names(self) -> set[str] | None:
        """Names of the options that the network takes.

        None where it takes any (`**options`) or imports its functions from elsewhere.
        """
        return option_names(self.source, self.uri, needed=("get_model",))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError for an option that the network does not have, with the nearest names."""
        known = self.option_names()
        if known is None:
            return
        for name in options:
            if name not in known:
                raise InputError(f"{self.uri}: {unknown('network option', name, known)}")

    def build(
        self,
        data_config,
        options: Mapping[str, Any],
        of_weaver: Mapping[str, bool] | None = None,
        *,
        mixed_precision: bool = False,
    ) -> tuple[torch.nn.Module, ModelInfo]:
        """Call get_model: (model, model_info).

        of_weaver: the options that weaver-core adds where they are asked for (use_amp,
        compile_model, for_inference); a network that takes none of that name does without.
        mixed_precision: by --precision, which weaver-core does not have, so that only a network
        with an argument `use_amp` is told of it. Raises InputError for options that the network
        does not have or refuses.
        """
        self.check_options(options)
        added = dict(of_weaver or {})
        names, _ = _signature(ast.parse(self.source), "get_model")
        if mixed_precision and "use_amp" in names:
            added["use_amp"] = True
        returned = self._call(
            "get_model", data_config, self._taken_by("get_model", {**added, **options})
        )
        is_pair = isinstance(returned, tuple | list) and len(returned) >= 2
        if not is_pair or not isinstance(returned[1], Mapping):
            parts = returned if isinstance(returned, tuple | list) else (returned,)
            raise InputError(
                f"{self.uri}: get_model returns {', '.join(type(part).__name__ for part in parts)};"
                " expected a model, and a mapping with input_names and output_names"
            )
        return returned[0], dict(returned[1])

    def loss(
        self,
        data_config,
        options: Mapping[str, Any],
        of_weaver: Mapping[str, bool] | None = None,
        *,
        regression: bool | None = None,
    ):
        """Call get_loss: with predictions and targets, what it returns gives their mean loss.

        regression: by default that of the data config's labels. Where the file has no get_loss, a
        classification takes the cross entropy, as in weaver-core; for a regression InputError is
        raised.
        """
        if hasattr(self.module(), "get_loss"):
            taken = self._taken_by("get_loss", {**(of_weaver or {}), **options})
            return self._call("get_loss", data_config, taken)
        if regression is None:
            regression = data_config.label_type != "simple"
        if regression:
            raise InputError(
                f"{self.uri} defines no get_loss(data_config, **options), and there is no usual"
                " loss for a regression"
            )
        import torch

        return torch.nn.CrossEntropyLoss()

    def module(self) -> types.ModuleType:
        """Import the file.

        Raises InputError where it cannot be imported, with the reason and the line.
        """
        meaning = f"{self.uri}\0{self.place}\0{self.digest()}"
        name = "_network_" + hashlib.sha256(meaning.encode()).hexdigest()[:16]
        if name in sys.modules:
            return sys.modules[name]
        loader = _TextLoader(self)
        spec = importlib.machinery.ModuleSpec(name, loader, origin=self.uri)
        module = importlib.util.module_from_spec(spec)
        module.__file__ = self._local_place()
        sys.modules[name] = module  # dataclasses look their own module up while it is being made
        try:
            self._forget_siblings()
            with self._beside():
                loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a user's file may raise anything
            del sys.modules[name]
            raise self.refusal("cannot be imported", error, _advice(error)) from error
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def _call(self, name: str, data_config, options: Mapping[str, Any]):
        function = getattr(self.module(), name, None)
        if not callable(function):
            raise InputError(f"{self.uri}: {name} is no function; expected {name}(data_config)")
        try:
            with self._beside():
                return function(data_config, **options)
        except JecError:
            raise
        except (Exception, SystemExit) as error:  # as above
            raise self.refusal(f"{name} failed", error) from error

    def _local_place(self) -> str:
        """The file on this machine, with its siblings beside it where it has any."""
        place = self.place or self.uri
        if storage.is_local(place) or not self.siblings:
            return place
        from weaver.prepared.node_cache import node_cache

        folder = node_cache() / "networks" / self.digest()[:32]
        copy = folder / storage.name(place)
        if not copy.exists():
            write_siblings(self.siblings, str(folder))
            # last, so that who finds it finds the others
            storage.write_text(str(copy), self.source)
        return str(copy)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """Within the block, `import layers` finds the layers.py beside this network file."""
        if not self.siblings:
            yield
            return
        folder = os.path.dirname(os.path.abspath(self._local_place()))
        writes_bytecode = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # a run's folder holds no __pycache__
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            sys.dont_write_bytecode = writes_bytecode

    def _forget_siblings(self) -> None:
        """Take out of sys.modules what another network file, or another version, left there."""
        names = {path.partition("/")[0].removesuffix(".py") for path in self.siblings}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            # siblings lie in no package folder of Python's own
            if name.partition(".")[0] in names and os.path.dirname(file) in _SIBLINGS_IMPORTED:
                del sys.modules[name]
        folder = os.path.dirname(os.path.abspath(self._local_place()))
        for path in self.siblings:
            _SIBLINGS_IMPORTED.add(os.path.dirname(os.path.join(folder, path)))

    def refusal(self, what: str, error: BaseException, advice: str = "") -> InputError:
        """Describe an error in the user's file, with the last of its lines on the way there."""
        line = None
        trace = error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == self.uri:
                line = trace.tb_lineno
            trace = trace.tb_next
        where = f" (line {line})" if line else ""
        reason = " ".join(str(error).split())
        return InputError(f"{self.uri}: {what}: {type(error).__name__}: {reason}{where}{advice}")

    def _taken_by(self, function: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that one of the two functions takes; the other's are not passed to it."""
        names, anything = _signature(ast.parse(self.source), function)
        return {name: value for name, value in options.items() if anything or name in names}


class _TextLoader(importlib.abc.InspectLoader):
    """Imports a network file from its text, which may have come from s3://."""

    def __init__(self, file: NetworkFile) -> None:
        self.file = file

    def get_source(self, fullname: str) -> str:
        return self.file.source

    def get_code(self, fullname: str) -> types.CodeType:
        # with the file's address, which messages name together with a line
        return self.source_to_code(self.file.source, self.file.uri)


def load_network(uri: str) -> NetworkFile:
    """Read a network file.

    Raises InputError where there is none, or it does not parse, has no get_model, or has a training
    loop of its own.
    """
    network = NetworkFile.read(uri)
    network.option_names()
    return network


def check_model(uri: str, model: object) -> None:
    """Raise InputError where what a network file returned as its model is none."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"{uri}: get_model returns {type(model).__name__} as the model; expected a"
            " torch.nn.Module"
        )


def check_loss(uri: str, loss: object) -> None:
    """Raise InputError where what a network file returned as its loss cannot be called."""
    if not callable(loss):
        raise InputError(
            f"{uri}: get_loss returns {type(loss).__name__}; expected a function of predictions and"
            " targets"
        )


def num_parameters(model: torch.nn.Module) -> int:
    """How many numbers of a network training adjusts."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def option_names(source: str, where: str, needed: Sequence[str] = NEEDED) -> set[str] | None:
    """Find the keyword options of get_model and get_loss in a file's text.

    None if get_model takes any or comes from elsewhere. Raises InputError for a text that is no
    Python, lacks one of `needed`, or brings a training loop of its own.
    """
    try:
        tree = ast.parse(source)
    except (RecursionError, MemoryError):
        raise InputError(f"{where} is nested too deeply to be read") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{where}, line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)}"
        ) from None
    defined = set(_defined(tree.body))
    for name in needed:
        if name not in defined:
            raise InputError(
                f"{where} defines no {name}(data_config, **options); a network file in Weaver's"
                " form has it"
            )
    if own := [name for name in OWN_LOOPS if name in defined]:
        raise InputError(
            f"{where} defines {own[0]}: loops and optimizers of a network file's own are not run"
            " here; take it out"
        )
    of_model, anything = _signature(tree, "get_model")
    of_loss, _ = _signature(tree, "get_loss")
    return None if anything else of_model | of_loss


def option_rules(source: str) -> dict[str, Rule]:
    """Read a file's literal `OPTIONS` (networks/options.py).

    Empty where the file has none, or one that is made by a program and known only once the network
    is built.
    """
    for node in ast.parse(source).body:
        # with or without an annotation: OPTIONS = {...}, OPTIONS: dict = {...}
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None and "OPTIONS" in _defined([node]):
            try:
                rules = ast.literal_eval(value)
            except (ValueError, TypeError, MemoryError, RecursionError):
                return {}
            return rules if isinstance(rules, dict) else {}
    return {}


def _signature(tree: ast.Module, name: str) -> tuple[set[str], bool]:
    """Arguments of a function after the first, and whether it takes any others too.

    It does with `**options`, and it may where it is defined elsewhere.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            arguments = [*node.args.args[1:], *node.args.kwonlyargs]
            return {argument.arg for argument in arguments}, node.args.kwarg is not None
    return set(), True


def _defined(body: Sequence[ast.stmt]) -> list[str]:
    """Names that the top-level statements of a file define, also under an `if` or a `try`."""
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.If | ast.Try):
            names += _defined(node.body)
    return names


def _advice(error: BaseException) -> str:
    """Advice about a module of weaver-core that does not exist here, as the end of a sentence."""
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    # as the first versions of Weaver called them
    if missing == "utils" or missing.startswith("utils."):
        return "; write 'from weaver.nn.model.ParticleNet import ...'"
    if missing.startswith("weaver."):
        return (
            f"; this project has no module {missing}; put the classes that the network needs from"
            " it into the network file itself"
        )
    return ""
