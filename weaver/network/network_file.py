"""Network files in Weaver's form: a Python file with `get_model(data_config, **options)` and
`get_loss(data_config, **options)`.

The file is read from a path or an s3:// address. What it takes is read from its text, so that a
search space can be checked without torch; it is imported when the network is built.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from common import storage
from common.errors import InputError, JecError, unknown

NEEDED = ("get_model", "get_loss")
OWN_LOOPS = ("get_train_fn", "get_evaluate_fn", "init_opt")
"""Functions by which a file for weaver-core may replace the training loop, which could not be
resumed or distributed here.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """A network file that was read and parsed, not yet imported."""

    uri: str
    source: str

    def option_names(self) -> set[str] | None:
        """Options that the network takes;

        None where it takes any (`**options`) or imports its functions from elsewhere.
        """
        return option_names(self.source, self.uri, needed=("get_model",))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError for an option that the network does not have, with the nearest names."""
        known = self.option_names()
        for name in options if known is not None else ():
            if name not in known:
                raise InputError(f"{self.uri}: {unknown('network option', name, known)}")

    def build(self, data_config, options: Mapping[str, Any], **of_weaver: Any):
        """(model, model_info) of get_model. Raises InputError for options that the network has not
        or refuses.

        `of_weaver` are options that weaver-core adds by itself (use_amp, compile_model,
        for_inference): only a network that knows them gets them.
        """
        self.check_options(options)
        model, info, *_ = self._call(
            "get_model", data_config, self._taken_by("get_model", {**of_weaver, **options})
        )
        return model, info

    def loss(self, data_config, options: Mapping[str, Any]):
        """The loss of get_loss: called with predictions and targets it returns their mean loss.

        Where the file has no get_loss, a classification takes the cross entropy, as in weaver-core;
        a regression is refused.
        """
        if hasattr(self.module(), "get_loss"):
            return self._call("get_loss", data_config, self._taken_by("get_loss", options))
        if data_config.label_type != "simple":
            raise InputError(
                f"{self.uri} defines no get_loss(data_config, **options), and there is no usual"
                " loss for a regression"
            )
        import torch

        return torch.nn.CrossEntropyLoss()

    def module(self) -> types.ModuleType:
        """The imported file. Raises InputError where it cannot be imported, with the reason and the
        line.
        """
        name = "_network_" + hashlib.sha256(f"{self.uri}\0{self.source}".encode()).hexdigest()[:16]
        if name in sys.modules:
            return sys.modules[name]
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader(name, loader=None, origin=self.uri)
        )
        module.__file__ = self.uri
        sys.modules[name] = module  # dataclasses look their own module up while it is being made
        try:
            exec(compile(self.source, self.uri, "exec"), module.__dict__)
        except Exception as error:  # a user's file may raise anything
            del sys.modules[name]
            raise self._refusal("cannot be imported", error, _advice(error)) from error
        return module

    def _call(self, name: str, data_config, options: Mapping[str, Any]):
        function = getattr(self.module(), name)
        try:
            return function(data_config, **options)
        except JecError:
            raise
        except Exception as error:
            raise self._refusal(f"{name} failed", error) from error

    def _refusal(self, what: str, error: Exception, advice: str = "") -> InputError:
        """What went wrong in the user's file, with its last line that the error went through."""
        return InputError(
            f"{self.uri}: {what}: {type(error).__name__}: {error}{_line(error, self.uri)}{advice}"
        )

    def _taken_by(self, function: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that one of the two functions takes: an option of the loss is none of the
        network, and the reverse.
        """
        names, anything = _signature(ast.parse(self.source), function)
        return {name: value for name, value in options.items() if anything or name in names}


def load_network(uri: str) -> NetworkFile:
    """Read a network file. Raises InputError where there is none, or it does not parse, has no
    get_model, or a loop of its own.
    """
    network = NetworkFile(uri=uri, source=storage.read_text(uri))
    network.option_names()
    return network


def option_names(source: str, where: str, needed: Sequence[str] = NEEDED) -> set[str] | None:
    """Keyword options of get_model and get_loss in a file's text; None if get_model takes any or
    comes from elsewhere.

    Raises InputError for a text that is no Python, lacks one of `needed`, or brings a training loop
    of its own.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{where}, line {getattr(error, 'lineno', '?')}: {getattr(error, 'msg', error)}"
        ) from None
    defined = {name for node in tree.body for name in _defined(node)}
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
    (of_model, anything), (of_loss, _) = (_signature(tree, name) for name in NEEDED)
    return None if anything else of_model | of_loss


def option_rules(source: str) -> dict[str, dict[str, Any]]:
    """What a file's literal `OPTIONS` says of its options (networks/options.py); empty where it
    says nothing that can be read.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "OPTIONS" for target in node.targets
        ):
            try:
                rules = ast.literal_eval(node.value)
            except ValueError:  # made by a program: known once the network is built
                return {}
            return rules if isinstance(rules, dict) else {}
    return {}


def _signature(tree: ast.Module, name: str) -> tuple[set[str], bool]:
    """Arguments of a function after the first, and whether it takes any others too (`**options`, or
    defined elsewhere).
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return {
                a.arg for a in [*node.args.args[1:], *node.args.kwonlyargs]
            }, node.args.kwarg is not None
    return set(), True


def _defined(node: ast.stmt) -> list[str]:
    """Names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.If | ast.Try):
        return [name for inner in node.body for name in _defined(inner)]
    return []


def _advice(error: Exception) -> str:
    """What to do about a module of weaver-core that is not here, as the end of a sentence."""
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


def _line(error: Exception, uri: str) -> str:
    """The last line of the file itself that an error went through, as words."""
    trace, found = error.__traceback__, None
    while trace:
        found = trace.tb_lineno if trace.tb_frame.f_code.co_filename == uri else found
        trace = trace.tb_next
    return f" (line {found})" if found else ""
