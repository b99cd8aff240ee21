"""Calibrate jets with a served model.

    client = Client("http://127.0.0.1:8000", "pfn-1a2b3c4d-raw")
    jets = uproot.open("file.root")["tree"].arrays()
    client.calibrate(jets)["calibrated_pt"]     # GeV

The model has its preprocessing in it, so that the columns of a file are all it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from jec_client import protocol
from jec_client.credentials import Secret
from jec_client.errors import (
    InputError,
    NotServing,
    Refused,
    ServerError,
    Unreachable,
    unknown,
)
from jec_client.http_server import HttpServer
from jec_client.protocol import Body
from jec_client.validity import OTHER, ModelRange, count_invalid, range_of_config

if TYPE_CHECKING:
    import awkward as ak

    from jec_client.model_inputs import Jets, Tensor

BATCH = 1024
"""Jets in a request to a server that does not say how many it takes."""

RAW_SUFFIX = "-raw"
"""Ends the name of a model that takes the columns of files."""

VALID = "valid"
"""The output that says whether a jet is one that the model is meant for."""

SECRET_HEADER = re.compile(r"authorization|cookie|token|secret|password|api-?key", re.IGNORECASE)

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")

KSERVE_BINARY = (0, 14)
"""The first version of kserve's own server that takes tensors as bytes."""


class Server(Protocol):
    """A model server, over HTTP or gRPC.

    Every method may raise ServerError or one of its subclasses. ends: the time (time.monotonic)
    until which a request that fails for a temporary reason is repeated.
    """

    binary: bool
    """Whether tensors are sent as bytes."""

    def ready(self, model: str) -> None:
        """Raise NotServing unless the server serves the model."""

    def description(self, *, ends: float | None = None) -> Body:
        """Return the server's metadata: its name, version and extensions."""

    def models(self) -> list[str]:
        """Return the names of the models that the server serves."""

    def metadata(self, model: str, *, ends: float | None = None) -> Body:
        """Return the names, types and shapes of the model's inputs and outputs."""

    def config(self, model: str, *, ends: float | None = None) -> Body:
        """Return the model's configuration (Triton's config.pbtxt as JSON)."""

    def infer(self, model: str, body: Body) -> Body:
        """Send a request in the protocol's JSON form and return the answer in that form."""

    def ask(
        self, model: str, inputs: Mapping[str, np.ndarray], *, ends: float | None = None
    ) -> dict[str, np.ndarray]:
        """Send arrays, input name -> (N, ...), and return the answers, output name -> (N, ...)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What a server says about one of its models."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    max_batch_size: int
    limits: ModelRange | None
    """The jets that it is meant for, where it says so."""


class Client:
    """Send jets to one model of one server.

    Several threads may share a client. A pickled client contains no secrets: another process reads
    them again from the file or variable.

    Args:
        url: http://host:port or https://host; with the extra `grpc` also grpc:// or grpcs://.
        model: The model's name on the server.
        timeout: Seconds for one request.
        headers: Headers of every request, such as the Host of an ingress.
        token: Credentials for a gateway: the path of a file with a token, or '$NAME' for an
            environment variable.
        cookies: The same for cookies.
        verify: False accepts any certificate; a path names a file or folder of certificate
            authorities.

    Raises:
        InputError: If an argument is invalid.
    """

    unreachable: ClassVar[type[ServerError]] = Unreachable
    not_serving: ClassVar[type[ServerError]] = NotServing
    model_error: ClassVar[type[ServerError]] = ServerError
    """The exceptions that the methods raise; a subclass may set its own."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
        token: str | os.PathLike[str] | None = None,
        cookies: str | os.PathLike[str] | None = None,
        verify: bool | str | os.PathLike[str] = True,
    ) -> None:
        """Check the arguments; the class describes them.

        Raises InputError for an argument that cannot be used. Nothing is sent.
        """
        if headers is not None and not isinstance(headers, Mapping):
            raise InputError(
                f"headers= takes a dict of texts, such as {{'X-Request-Id': '1'}}, not"
                f" {_kind_of(headers)}"
            )
        if not isinstance(model, str):
            raise InputError(
                "model= takes the model's name on the server, such as 'jec-pfn', not"
                f" {_kind_of(model)}"
            )
        for name, value in (headers or {}).items():
            if SECRET_HEADER.search(name):
                raise InputError(
                    f"headers= may not have '{name}', which holds a secret; give token= or cookies="
                )
            if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(str(value)):
                raise InputError(
                    f"headers= holds {name!r}, which no header can be: a name is one word, a value"
                    " one line, of ASCII"
                )
        self._set(
            url=str(url).rstrip("/"),
            model=model,
            timeout=_seconds("timeout", timeout),
            headers={name: str(value) for name, value in (headers or {}).items()},
            token=None if token is None else Secret.at("token", token),
            cookies=None if cookies is None else Secret.at("cookies", cookies),
            verify=verify if isinstance(verify, bool) else _certificates(verify),
        )

    def _set(self, **settings: Any) -> None:
        self._settings = settings
        self.url: str = settings["url"]
        self.model: str = settings["model"]
        self.timeout: float = settings["timeout"]
        self.headers: dict[str, str] = settings["headers"]
        parts = _parts(self.url)
        if not parts.hostname or parts.scheme not in ("http", "https", "grpc", "grpcs"):
            raise InputError(
                f"'{self.url}' is not the address of a server; write http://host:port,"
                " https://host or grpc://host:port"
            )
        if "@" in parts.netloc:
            raise InputError("the address holds a login; give it without, and token= or cookies=")
        if parts.query or parts.fragment:
            alone = parts._replace(query="", fragment="").geturl()
            raise InputError(f"the address goes on after {alone} with '?' or '#'; give that alone")
        if not self.model or not _is_text(self.model):
            raise InputError(
                f"the model {self.model!r} has no name that can be sent; give the one it has on the"
                " server"
            )
        if not 0 < self.timeout <= threading.TIMEOUT_MAX:
            raise InputError(f"timeout={self.timeout:g} is not a number of seconds above 0")
        server = {key: value for key, value in settings.items() if key not in ("url", "model")}
        timeout = server.pop("timeout")
        self._server: Server = _server_class(parts.scheme)(self.url, timeout, **server)
        self._model: Model | None = None

    def __repr__(self) -> str:
        """Show the address and the model, and no secret."""
        return f"{type(self).__name__}({self.url!r}, {self.model!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments, so that a copy in another process opens connections of its own."""
        return self._settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the arguments of the client that was pickled."""
        self._set(**state)

    # ------------------------------------------------------------ columns of jets

    def calibrate(self, jets: Any, *, deadline: float | None = None) -> ak.Array:
        """Calibrate jets.

        The jets are sent in several requests, each as large as the server allows. A request that
        fails for a temporary reason is repeated.

        Args:
            jets: Columns with the names of the model's inputs, of any numeric type: a record array
                of awkward or NumPy, a dict of columns (awkward, NumPy, lists), or a frame of
                pandas, polars or pyarrow. Columns of particles are lists of any length; their
                counter may be left out. With the extra `files`, `jets` may be the path of a ROOT or
                parquet file, and name the tree: jets.root:AK4jets/jetTree.
            deadline: Seconds for all requests together; None for no limit.

        Returns:
            The model's outputs: a record array with one entry for each jet, in the same order. If
            the entries are events with lists of jets, the outputs are lists too. Its
            `attrs["invalid"]` is a dict: reason -> number of jets that are not valid.

        Raises:
            InputError: Before anything is sent, for missing or unknown columns and for values that
                the types of the model cannot represent.
            JecError: As `infer`.
        """
        import awkward as ak

        seconds = math.inf if deadline is None else _seconds("deadline", deadline)
        ends = time.monotonic() + seconds
        model = self._get_model(ends)
        parts: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in model.outputs}
        invalid: Counter[str] = Counter()
        jets_of_events = None
        for ready in self._prepare(jets, model):
            jets_of_events = ready.jets_of_events
            start = 0
            while start < ready.count:
                stop = ready.stop(start, model.max_batch_size)
                inputs = ready.arrays(start, stop)
                answers = self._answers(model, inputs, stop - start, ends)
                for name, values in answers.items():
                    parts[name].append(values)
                invalid.update(_invalid(inputs, answers, model.limits))
                start = stop
        outputs = {}
        for tensor in model.outputs:
            empty = np.zeros((0, *(max(1, size) for size in tensor.shape[1:])), tensor.dtype)
            values = np.concatenate(parts[tensor.name] or [empty])
            outputs[tensor.name] = values[:, 0] if values.shape[1:] == (1,) else values
        result = ak.zip(outputs, depth_limit=1)
        if jets_of_events is not None:
            result = ak.unflatten(result, jets_of_events)
        result.attrs["invalid"] = dict(invalid)
        return result

    def _get_model(self, ends: float) -> Model:
        """Return the server's description of the model; it is requested once."""
        if self._model is None:
            with self._translate_errors():
                self._model = self._describe(ends)
        return self._model

    def _describe(self, ends: float) -> Model:
        metadata = self._server.metadata(self.model, ends=ends)
        config = self._server.config(self.model, ends=ends)
        with contextlib.suppress(NotServing, Refused):
            self._server.binary = _takes_bytes(self._server.description(ends=ends))
        try:
            inputs = [_tensor(entry) for entry in metadata["inputs"]]
            outputs = [_tensor(entry) for entry in metadata["outputs"]]
            if not inputs or not outputs:
                raise ValueError("it has no inputs or no outputs")
            most = int(config.get("max_batch_size", BATCH)) or BATCH
            # a model without batching may take one number of jets only
            most = min([most, *(tensor.shape[0] for tensor in inputs if tensor.shape[0] > 0)])
            limits = range_of_config(config)
            if limits is not None:
                limits.check_inputs([tensor.name for tensor in inputs])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ServerError(
                f"what {self.url} says about model {self.model} has not the form of the Open"
                f" Inference Protocol v2: {error!r}"
            ) from None
        return Model(inputs=inputs, outputs=outputs, max_batch_size=most, limits=limits)

    def _prepare(self, jets: Any, model: Model) -> Iterator[Jets]:
        """Yield the model's inputs of the jets; those of a file come in pieces."""
        from jec_client.columns import table_of
        from jec_client.files import tables
        from jec_client.model_inputs import prepare

        names = [tensor.name for tensor in model.inputs]
        counters = model.limits.counters if model.limits else None
        try:
            is_path = isinstance(jets, (str, os.PathLike))
            for table in tables(jets, names) if is_path else [table_of(jets, names)]:
                yield prepare(table, model.inputs, counters)
        except InputError as error:
            raw_model = f"{self.model}{RAW_SUFFIX}"
            if raw_model in self.models():
                raise InputError(
                    f"model {self.model}: {error}; the model {raw_model} takes the columns of files"
                ) from None
            raise InputError(f"model {self.model}: {error}") from None

    def _answers(
        self, model: Model, inputs: Mapping[str, np.ndarray], count: int, ends: float
    ) -> dict[str, np.ndarray]:
        """Return the outputs for the jets of one request, (count, ...) each."""
        with self._translate_errors():
            try:
                answers = self._server.ask(self.model, inputs, ends=ends)
            except ServerError:
                self._model = None  # it may be another one now
                raise
            outputs = {}
            for tensor in model.outputs:
                values = _in_shape(answers.get(tensor.name), tensor, count)
                if values is None:
                    raise ServerError(
                        f"{self.url} answered {count} jets without '{tensor.name}' for each of"
                        f" them, in the type and shape that it says: {tensor.dtype} {tensor.shape}"
                    )
                outputs[tensor.name] = values
        return outputs

    # ------------------------------------------------------------ requests of the protocol's form

    def ready(self) -> bool:
        """Return True if the server says that the model can take requests now."""
        try:
            self._server.ready(self.model)
        except ServerError:
            return False
        return True

    def server_name(self) -> str:
        """Return what the server calls itself; empty if it does not answer."""
        try:
            return str(self._server.description().get("name", ""))
        except ServerError:
            return ""

    def models(self) -> list[str]:
        """Return the names of the server's models; empty if it does not list them."""
        try:
            return self._server.models()
        except (ServerError, KeyError, TypeError):
            return []

    def metadata(self) -> Body:
        """Return names, datatypes and shapes of the model's inputs and outputs.

        Raises as `infer`.
        """
        with self._translate_errors():
            return self._server.metadata(self.model)

    def config(self) -> Body:
        """Return the model's configuration (config.pbtxt) as JSON.

        Empty if the server does not return it.

        Raises as `infer`.
        """
        with self._translate_errors():
            return self._server.config(self.model)

    def infer(self, body: Body) -> Body:
        """Send a request body (see jec_client.protocol) and return the server's answer.

        Raises the class's `unreachable` if no server answers, `not_serving` if the server does not
        serve the model now, and `model_error` if the model failed or the answer is not JSON. Raises
        InputError for an unknown model (the text names the known ones), and for a request that the
        server refuses (the text is the server's).
        """
        with self._translate_errors():
            return self._server.infer(self.model, body)

    def ask(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's outputs for arrays with the jets in the first axis, in one request.

        The arrays have the types and shapes of the model. They are sent and received as bytes (the
        protocol's binary extension), several times faster than JSON for more than a few jets.
        Raises as `infer`.
        """
        with self._translate_errors():
            return self._server.ask(self.model, inputs)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn the server's errors into those that this class raises."""
        try:
            yield
        except Refused as refusal:
            raise self._refusal(refusal) from None
        except NotServing as error:
            raise self.not_serving(f"{self.url} cannot serve model {self.model} {error}") from None
        except Unreachable as error:
            raise self.unreachable(str(error)) from None
        except ServerError as error:
            raise self.model_error(str(error)) from None

    def _refusal(self, refusal: Refused) -> Exception:
        model_names = self.models()
        if model_names and self.model not in model_names:
            return InputError(f"{self.url}: {unknown('model', self.model, model_names)}")
        if refusal.code >= 500:
            return self.model_error(
                f"model {self.model} at {self.url} failed ({refusal.code}): {refusal}"
            )
        if refusal.code == 404 and not model_names and not self.server_name():
            return InputError(
                f"{self.url} does not speak the Open Inference Protocol v2, or is too old for it"
                f" (404 at /v2): {refusal}; give the address of a Triton or KServe server"
            )
        return InputError(
            f"{self.url} refused the request for model {self.model} ({refusal.code}): {refusal};"
            " compare the jets with the model's inputs (Client.metadata)"
        )


def _server_class(scheme: str) -> Callable[..., Server]:
    """Return the class for an address. Raises InputError where gRPC is not installed."""
    if not scheme.startswith("grpc"):
        return HttpServer
    try:
        from jec_client.grpc_server import GrpcServer
    except ImportError as error:
        raise InputError(
            f"gRPC needs {error.name}, which is not installed; pip install 'jec-client[grpc]'"
        ) from None
    return GrpcServer


def _seconds(option: str, value: float) -> float:
    """Return a number of seconds. Raises InputError for anything else."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if math.isnan(seconds):
        raise InputError(f"{option}={value!r} is not a number of seconds; give one, as 30.0")
    return seconds


def _certificates(value: Any) -> str:
    """Return the path of certificates. Raises InputError for a value that is no path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise InputError(
            "verify= takes True, False, or the path of a file or a folder of certificates, not"
            f" {_kind_of(value)}"
        )
    return text


def _kind_of(value: Any) -> str:
    """Return what a value is, for errors; not its text, which may be a secret."""
    if value is None or value == "":
        return "None" if value is None else "an empty text"
    return f"an object of the type {type(value).__name__}"


def _is_text(name: str) -> bool:
    """Return whether a name can be encoded as UTF-8; unpaired surrogates cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parts(url: str) -> urllib.parse.SplitResult:
    """Return the parts of an address. Raises InputError for an invalid address."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")  # as the socket does it
        if re.search(r"[\s\x00-\x1f\x7f]", url):
            raise ValueError("it holds a blank or a control character")
    except ValueError as error:
        raise InputError(
            f"'{url}' is not the address of a server: {error}; write http://HOST:PORT"
        ) from None
    return parts


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    from jec_client.model_inputs import Tensor

    datatype = entry["datatype"]
    if not isinstance(entry["name"], str):
        raise ValueError(f"{entry['name']!r} is not a name")
    if datatype not in protocol.DTYPES:
        raise ValueError(f"'{entry['name']}' is {datatype}, and no numbers")
    shape = tuple(int(size) for size in entry["shape"])
    return Tensor(name=entry["name"], dtype=np.dtype(protocol.DTYPES[datatype]), shape=shape)


def _in_shape(values: np.ndarray | None, tensor: Tensor, count: int) -> np.ndarray | None:
    """Return an answer in the tensor's type and shape; None where it does not fit them."""
    if values is None or values.shape[:1] != (count,):
        return None
    if not np.can_cast(values.dtype, tensor.dtype, "same_kind"):
        return None
    its = tensor.shape[1:]
    if -1 in its:
        return values.astype(tensor.dtype, copy=False) if values.ndim == 1 + len(its) else None
    if values.size != count * math.prod(its):
        return None
    return values.astype(tensor.dtype, copy=False).reshape(count, *its)


def _takes_bytes(server: Body) -> bool:
    """Return whether a server accepts tensors as bytes, by the extensions that it lists."""
    extensions = server.get("extensions")
    if server.get("name") == "kserve":
        version = tuple(int(n) for n in re.findall(r"\d+", str(server.get("version")))[:2])
        return version >= KSERVE_BINARY
    # Of a server that lists no extensions, most take bytes.
    return not extensions or "binary_tensor_data" in extensions


def _invalid(
    inputs: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray], limits: ModelRange | None
) -> dict[str, int]:
    """Return how many jets of a request are not valid, by reason."""
    if VALID not in answers:
        return {}
    if limits is None:
        count = int(np.count_nonzero(~answers[VALID].astype(bool)))
        return {OTHER: count} if count else {}
    return count_invalid(
        inputs, limits, valid=answers[VALID], reference_pt=answers.get("calibrated_pt")
    )
