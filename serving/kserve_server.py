"""kserve's own model server over a Triton repository, for machines where Triton cannot run.

    python -m serving.kserve_server --repository runs/x/model --name pfn-1a2b3c4d --http-port 8000

It has the same protocol and the same config.pbtxt (tensors, max_batch_size, graph level,
parameters), but no dynamic batching and no statistics.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from common.cli import Parser, run_main


def main(argv: list[str] | None = None) -> int:
    """Serve as the command line says and return the exit code."""
    summary = (__doc__ or "").splitlines()[0]
    parser = Parser(prog="python -m serving.kserve_server", description=summary)
    parser.add_argument(
        "--repository", required=True, metavar="DIR", help="folder of a Triton model repository"
    )
    parser.add_argument(
        "--name",
        required=True,
        metavar="NAME",
        help="a model that the repository must have; its other models are served too",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at (default: %(default)s)",
    )
    parser.add_argument(
        "--http-port", type=int, required=True, metavar="PORT", help="port to listen at"
    )
    parser.add_argument(
        "--id",
        default="kserve",
        metavar="NAME",
        help="name of the server at /v2 (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    sys.argv = sys.argv[:1]  # kserve parses it while it is imported
    return run_main(
        lambda: serve(
            Path(options.repository),
            options.name,
            host=options.host,
            port=options.http_port,
            identity=options.id,
        )
    )


def serve(repository: Path, name: str, *, host: str, port: int, identity: str) -> None:
    """Load the models of a repository and serve them until SIGTERM.

    Args:
        repository: The model repository.
        name: The model that must be there.
        host: Address to listen at.
        port: Port to listen at.
        identity: Name of the server at /v2.

    Raises:
        InputError: If a config.pbtxt does not match its file.
    """
    import kserve.model_server

    from serving.kserve_model import OnnxModel, RESTServer

    # There is no option for the address: the server takes the class from its module.
    RESTServer.host = host
    kserve.model_server.RESTServer = RESTServer
    others = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    names = list(dict.fromkeys([name, *others]))
    models = [OnnxModel(repository, model) for model in names]
    server = kserve.model_server.ModelServer(
        http_port=port, enable_grpc=False, workers=1, access_log_format=None
    )
    # These loggers, which the constructor sets up, write several lines per request.
    for logger in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    server.dataplane._server_name = identity  # pinned version; there is no public way to set it
    print(
        f"serving {', '.join(names)} with kserve's model server on http://{host}:{port} (no"
        " Triton, no dynamic batching)",
        flush=True,
    )
    server.start(models)


if __name__ == "__main__":
    sys.exit(main())
