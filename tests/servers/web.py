"""A real HTTP server in a process of its own, with or without byte ranges.

    python -m tests.servers.web FOLDER PORT_FILE

Paths below /plain/ know no ranges; below the others they do. See `Handler` for the faulty ones.
"""

from __future__ import annotations

import dataclasses
import http.server
import os
import re
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import ClassVar

SECONDS = 20
LOGIN = b"<!DOCTYPE html><html><body>Sign in</body></html>"


@dataclasses.dataclass
class Server:
    """A running server: what lies in `data` is at `uri`/NAME and `uri`/plain/NAME."""

    process: subprocess.Popen
    port: int
    data: Path

    @property
    def uri(self) -> str:
        return f"http://localhost:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)


def start(folder: Path) -> Server:
    """Start a server on a folder."""
    port_file = folder.with_name(f"{folder.name}.port")
    port_file.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.web", str(folder), str(port_file)],
        cwd=Path(__file__).parents[2],
    )
    deadline = time.monotonic() + SECONDS
    while not port_file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return Server(process=process, port=int(port_file.read_text()), data=folder)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, and these faults by the first part of the path.

    /cut/N/NAME: the first N bodies break off in the middle. /status/CODE/NAME: that status.
    /busy/N/NAME: the first N answers are 503. /login/NAME: a page with status 200, /disguised/NAME:
    the same called data. /away/PORT/NAME: a redirect to that port. /plain/NAME: no ranges.
    """

    protocol_version = "HTTP/1.1"
    counts: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        path = self.path
        kind, _, rest = path.lstrip("/").partition("/")
        number, _, name = rest.partition("/")
        if kind == "status":
            self.send_error(int(number))
        elif kind == "busy" and self._first(path, int(number)):
            self.send_error(503)
        elif kind in ("login", "disguised"):
            form = "text/html" if kind == "login" else "application/octet-stream"
            self._send(200, LOGIN, {"Content-Type": form})
        elif kind == "away":
            self._send(302, b"", {"Location": f"http://127.0.0.1:{number}/{name}"})
        elif kind == "cut":
            self._file(name, is_cut=self._first(path + self.headers["Range"], int(number)))
        elif kind == "busy":
            self._file(name)
        elif kind == "plain":
            self._file(rest, ranges=False)
        elif path.endswith("/") or Path(self.translate_path(path)).is_dir():
            super().do_GET()
        else:
            self._file(path.lstrip("/"))

    def _first(self, key: str, number: int) -> bool:
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key] <= number

    def _file(self, name: str, *, ranges: bool = True, is_cut: bool = False) -> None:
        path = Path(self.directory, urllib.parse.unquote(name))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        headers = {"Last-Modified": self.date_time_string(path.stat().st_mtime)}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop, status = 0, size, 200
        if ranges and match:
            start, stop, status = int(match[1]), min(int(match[2]) + 1, size), 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        with path.open("rb") as file:
            file.seek(start)
            self._send(status, file.read(stop - start), headers, is_cut=is_cut)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, is_cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    folder, port_file = sys.argv[1:]

    class InFolder(Handler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=folder)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), InFolder)
    temporary = Path(f"{port_file}.new")
    temporary.write_text(str(server.server_port))
    os.replace(temporary, port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
