"""Network files in Weaver's form.

A network file is a Python file with `get_model(data_config, **options)` and
`get_loss(data_config, **options)`, at a path or an address. Its options are read from its text, so
that a search space can be checked without torch. It is imported when the network is built.
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

REQUIRED_FUNCTIONS = ("get_model", "get_loss")
OWN_LOOPS = ("get_train_fn", "get_evaluate_fn", "init_opt")
"""Functions by which a network file may replace weaver-core's training loop.

They are rejected, because such a loop could not be resumed or distributed here.
"""


_SIBLING_FOLDERS: set[str] = set()
"""Folders of siblings that sys.modules may contain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """A network file: its text and siblings. It is not imported until `module` or `build`."""

    uri: str
    source: str
    address: str = ""
    """Where the file is, if not at `uri`. Messages always name `uri`, which the user gave."""
    siblings: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """The files beside it that it needs: relative path -> content."""

    @classmethod
    def read(cls, uri: str, address: str = "") -> NetworkFile:
        """Read a network file and its siblings. Raises InputError where there is none."""
        source = storage.read_text(address or uri)
        siblings = read_siblings(address or uri, source)
        return cls(uri=uri, source=source, address=address, siblings=siblings)

    def digest(self) -> str:
        """Return SHA-256 of the text and the siblings, in hexadecimal, whatever their address."""
        content = hashlib.sha256(self.source.encode())
        for path, data in self.siblings.items():
            content.update(f"\0{path}\0".encode() + hashlib.sha256(data).digest())
        return content.hexdigest()

    def option_names(self) -> set[str] | None:
        """Return the names of the options that the network takes.

        None where it takes any option (`**options`) or imports get_model from another module.
        Raises InputError as the function `option_names` does.
        """
        return option_names(self.source, self.uri, required=("get_model",))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError, with the nearest names, for an option that does not exist."""
        names = self.option_names()
        if names is None:
            return
        for name in options:
            if name not in names:
                raise InputError(f"{self.uri}: {unknown('network option', name, names)}")

    def build(
        self,
        data_config,
        options: Mapping[str, Any],
        weaver_options: Mapping[str, bool] | None = None,
        *,
        mixed_precision: bool = False,
    ) -> tuple[torch.nn.Module, ModelInfo]:
        """Call get_model; returns (model, model_info).

        weaver_options: the options that weaver-core's flags add (use_amp, compile_model,
        for_inference); they are passed only to a network that has an argument of that name.
        mixed_precision: whether --precision, which weaver-core does not have, asks for it. Then
        use_amp is passed to a network with an argument of that name. Raises InputError for options
        that the network does not have, and where get_model fails or returns anything else.
        """
        self.check_options(options)
        all_options = dict(weaver_options or {})
        names, _ = _signature(ast.parse(self.source), "get_model")
        if mixed_precision and "use_amp" in names:
            all_options["use_amp"] = True
        result = self._call(
            "get_model", data_config, self._options_of("get_model", {**all_options, **options})
        )
        is_pair = isinstance(result, tuple | list) and len(result) >= 2
        if not is_pair or not isinstance(result[1], Mapping):
            parts = result if isinstance(result, tuple | list) else (result,)
            raise InputError(
                f"{self.uri}: get_model returns {', '.join(type(part).__name__ for part in parts)};"
                " expected a model, and a mapping with input_names and output_names"
            )
        return result[0], dict(result[1])

    def loss(
        self,
        data_config,
        options: Mapping[str, Any],
        weaver_options: Mapping[str, bool] | None = None,
        *,
        regression: bool | None = None,
    ):
        """Call get_loss; returns a function of predictions and targets that gives their mean loss.

        regression: by default it follows from the type of the data config's label. Where the file
        has no get_loss, a classification takes the cross entropy, as in weaver-core. Raises
        InputError for a regression without get_loss, and where get_loss fails.
        """
        if hasattr(self.module(), "get_loss"):
            options_of_loss = self._options_of("get_loss", {**(weaver_options or {}), **options})
            return self._call("get_loss", data_config, options_of_loss)
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
        name = self._module_name()
        if name in sys.modules:
            return sys.modules[name]
        loader = _TextLoader(self)
        spec = importlib.machinery.ModuleSpec(name, loader, origin=self.uri)
        module = importlib.util.module_from_spec(spec)
        module.__file__ = self._local_path()
        sys.modules[name] = module  # dataclasses look up their module while it is being imported
        try:
            self._forget_siblings()
            with self._import_path():
                loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a user's file may raise anything
            del sys.modules[name]
            raise self.error("cannot be imported", error, _advice(error)) from error
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def forget_module(self) -> None:
        """Have the file imported again by the next use, without what this import has stored."""
        sys.modules.pop(self._module_name(), None)

    def _module_name(self) -> str:
        meaning = f"{self.uri}\0{self.address}\0{self.digest()}"
        return "_network_" + hashlib.sha256(meaning.encode()).hexdigest()[:16]

    def _call(self, name: str, data_config, options: Mapping[str, Any]):
        function = getattr(self.module(), name, None)
        if not callable(function):
            raise InputError(f"{self.uri}: {name} is not a function; expected {name}(data_config)")
        try:
            with self._import_path():
                return function(data_config, **options)
        except JecError:
            raise
        except (Exception, SystemExit) as error:  # as above
            raise self.error(f"{name} failed", error) from error

    def _local_path(self) -> str:
        """Return the path of the file, with its siblings beside it.

        If they are distant, they are copied.
        """
        address = self.address or self.uri
        if storage.is_local(address) or not self.siblings:
            return address
        from weaver.prepared.node_cache import node_cache

        folder = node_cache() / "networks" / self.digest()[:32]
        copy = folder / storage.name(address)
        if not copy.exists():
            write_siblings(self.siblings, str(folder))
            # last, because other processes take it as the sign that the siblings are complete
            storage.write_text(str(copy), self.source)
        return str(copy)

    @contextlib.contextmanager
    def _import_path(self) -> Iterator[None]:
        """Let `import layers` find the layers.py beside this network file, within the block."""
        if not self.siblings:
            yield
            return
        folder = os.path.dirname(os.path.abspath(self._local_path()))
        writes_bytecode = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # no __pycache__ in a run's folder
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            sys.dont_write_bytecode = writes_bytecode

    def _forget_siblings(self) -> None:
        """Remove siblings of other network files, or of other versions, from sys.modules."""
        names = {path.partition("/")[0].removesuffix(".py") for path in self.siblings}
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            # so that modules of Python and of installed packages stay
            if name.partition(".")[0] in names and os.path.dirname(file) in _SIBLING_FOLDERS:
                del sys.modules[name]
        folder = os.path.dirname(os.path.abspath(self._local_path()))
        for path in self.siblings:
            _SIBLING_FOLDERS.add(os.path.dirname(os.path.join(folder, path)))

    def error(self, what: str, exception: BaseException, advice: str = "") -> InputError:
        """Describe an exception that the user's file raised, with the last of its lines involved.

        what: the failure, such as "get_model failed". advice: a remedy, as the end of a sentence.
        """
        line = None
        trace = exception.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == self.uri:
                line = trace.tb_lineno
            trace = trace.tb_next
        where = f" (line {line})" if line else ""
        reason = " ".join(str(exception).split())
        return InputError(
            f"{self.uri}: {what}: {type(exception).__name__}: {reason}{where}{advice}"
        )

    def _options_of(self, function: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of `options` that get_model or get_loss takes; each gets only its own."""
        names, anything = _signature(ast.parse(self.source), function)
        return {name: value for name, value in options.items() if anything or name in names}


class _TextLoader(importlib.abc.InspectLoader):
    """Import a network file from its text, which may come from s3://."""

    def __init__(self, file: NetworkFile) -> None:
        self.file = file

    def get_source(self, fullname: str) -> str:
        return self.file.source

    def get_code(self, fullname: str) -> types.CodeType:
        # tracebacks then name the user's address of the file
        return self.source_to_code(self.file.source, self.file.uri)


def load_network(uri: str) -> NetworkFile:
    """Read a network file.

    Raises InputError where there is none, or the file does not parse, has no get_model, or has a
    training loop of its own.
    """
    network = NetworkFile.read(uri)
    network.option_names()
    return network


def check_is_module(uri: str, model: object) -> None:
    """Raise InputError where get_model returned anything but a torch.nn.Module."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"{uri}: get_model returns {type(model).__name__} as the model; expected a"
            " torch.nn.Module"
        )


def check_loss(uri: str, loss: object) -> None:
    """Raise InputError where get_loss returned an object that cannot be called."""
    if not callable(loss):
        raise InputError(
            f"{uri}: get_loss returns {type(loss).__name__}; expected a function of predictions and"
            " targets"
        )


def num_parameters(model: torch.nn.Module) -> int:
    """Return the number of a network's trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def option_names(
    source: str, where: str, required: Sequence[str] = REQUIRED_FUNCTIONS
) -> set[str] | None:
    """Find the keyword options of get_model and get_loss in a file's text.

    source: the text. where: its address, for errors. Returns None if get_model takes any option or
    is imported from another module. Raises InputError for a text that does not parse, lacks a
    function of `required`, or has a training loop of its own.
    """
    try:
        tree = ast.parse(source)
    except (RecursionError, MemoryError):
        raise InputError(f"{where} is nested too deeply to be read") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{where}, line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)};"
            " correct the line"
        ) from None
    names = set(_defined_names(tree.body))
    for name in required:
        if name not in names:
            raise InputError(
                f"{where} defines no {name}(data_config, **options); a network file in Weaver's"
                " form has it"
            )
    if own := [name for name in OWN_LOOPS if name in names]:
        raise InputError(
            f"{where} defines {own[0]}: loops and optimizers of a network file's own are not run"
            " here; take it out"
        )
    of_model, anything = _signature(tree, "get_model")
    of_loss, _ = _signature(tree, "get_loss")
    return None if anything else of_model | of_loss


def option_rules(source: str) -> dict[str, Rule]:
    """Read a file's literal `OPTIONS` (networks/options.py).

    Empty where the file has none, or one that is not a literal and so is known only once the file
    is imported.
    """
    for node in ast.parse(source).body:
        # with or without an annotation: OPTIONS = {...}, OPTIONS: dict = {...}
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None and "OPTIONS" in _defined_names([node]):
            try:
                rules = ast.literal_eval(value)
            except (ValueError, TypeError, MemoryError, RecursionError):
                return {}
            return rules if isinstance(rules, dict) else {}
    return {}


def _signature(tree: ast.Module, name: str) -> tuple[set[str], bool]:
    """Return the arguments of a function after the first, and whether it may take any others too.

    It takes any with `**options`, and may take any where another module defines it.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            arguments = [*node.args.args[1:], *node.args.kwonlyargs]
            return {argument.arg for argument in arguments}, node.args.kwarg is not None
    return set(), True


def _defined_names(body: Sequence[ast.stmt]) -> list[str]:
    """Return names that a file's top-level statements define, also under an `if` or a `try`."""
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
            names += _defined_names(node.body)
    return names


def _advice(error: BaseException) -> str:
    """Return advice about a missing module of weaver-core, as the end of a sentence."""
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    # the name of the package in the first versions of Weaver
    if missing == "utils" or missing.startswith("utils."):
        return "; write 'from weaver.nn.model.ParticleNet import ...'"
    if missing.startswith("weaver."):
        return (
            f"; this project has no module {missing}; put the classes that the network needs from"
            " it into the network file itself"
        )
    return ""
