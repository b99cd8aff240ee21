"""An HTTP server on a free port of this machine, with the handler of a test."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def handling(
    handler: type[http.server.BaseHTTPRequestHandler], **state: Any
) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve with the handler; `state` becomes attributes of the server, and `url` its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state, url=f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
