"""A TCP proxy on localhost that delays and counts the traffic, to imitate a distant server.

    python -m benchmarks.proxy --to 9000 --delay-ms 10

prints its port and serves until its standard input ends; it answers each line on the input with its
counters as JSON. Each byte is forwarded `delay` after it arrived, in either direction, so that a
request and its answer take 2 * delay longer. The proxy imitates latency only: it does not limit the
rate, and has no slow start, loss or congestion.

The proxy shares its cores with the measured program, so it must take little CPU time: the bytes
stay in the kernel, which moves them from socket to pipe to socket (splice of Linux).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from common.project import ROOT

PIECE = 2**20  # bytes read at a time
MAX_BUFFERED = 2**28  # bytes on their way in one direction; beyond it nothing more is read
PIPES = 200  # at most, each with a piece on its way; further pieces are copied
PIPE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
START_SECONDS = 20  # a process that does not say its port within this time has failed


@dataclasses.dataclass(kw_only=True)
class Counts:
    """What has passed since the last reset."""

    received: int = 0
    """Bytes from the server to the client."""
    sent: int = 0
    """Bytes from the client to the server."""
    connections: int = 0
    requests: int = 0
    """Times that a client spoke after the server did (or first): requests, unless pipelined."""


class Proxy:
    """Passes connections on to a port of this machine, in a thread of its own.

    port: where it listens. delay: seconds that each direction takes.
    """

    def __init__(self, to_port: int, delay: float = 0.0) -> None:
        """Listen on a free port; `delay` (s) applies in each direction."""
        self.delay = delay
        self.counts = Counts()
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ends: set[_End] = set()
        self._empty_pipes: list[_Pipe] = []
        self._pipes: list[_Pipe] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close all connections."""
        self.close()

    def reset(self) -> None:
        """Count from zero."""
        self.counts = Counts()

    def close(self) -> None:
        """Cut all connections and stop listening."""
        self._stop.set()
        self._thread.join()
        for end in list(self._ends):
            self._close_end(end)
        self._selector.close()
        self._listener.close()
        while self._pipes:
            self._pipes.pop().close()

    # ------------------------------------------------------------------------------ in the thread

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, events in self._selector.select(self._seconds_to_next()):
                if key.data is None:
                    self._accept()
                    continue
                if events & selectors.EVENT_READ:
                    self._read(key.data)
                if events & selectors.EVENT_WRITE:
                    self._write(key.data)
            now = time.monotonic()
            for end in list(self._ends):
                if end.outgoing and end.outgoing[0][0] <= now:
                    self._write(end)

    def _seconds_to_next(self) -> float:
        """Return the seconds until the next delayed bytes must be sent, at most 0.05.

        Bytes for a socket whose buffer is full are left out: the selector reports when it has room.
        """
        due = [end.outgoing[0][0] for end in self._ends if end.outgoing and not end.waits_for_room]
        return max(0.0, min([0.05, *(moment - time.monotonic() for moment in due)]))

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._to_port))
            except OSError:
                client.close()
                return
            self.counts.connections += 1
            ends = _End(client, is_client=True), _End(server, is_client=False)
            ends[0].peer, ends[1].peer = ends[1], ends[0]
            for end in ends:
                end.socket.setblocking(False)
                end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(end.socket, selectors.EVENT_READ, end)
                self._ends.add(end)

    def _read(self, end: _End) -> None:
        """Take what has come at one end, to be written at the other."""
        if end.is_closed or end.has_ended:
            return
        piece = self._empty_piece()
        try:
            size = piece.take(end.socket)
        except OSError as error:
            self._give_back(piece)
            if not isinstance(error, BlockingIOError):  # reset by the other side
                self._close_end(end)
            return
        peer = end.peer
        peer.outgoing.append((time.monotonic() + self.delay, piece))
        peer.buffered_bytes += size
        if not size:  # end of the stream, which is forwarded with the same delay
            end.has_ended = True
        elif end.is_client:
            self.counts.sent += size
            self.counts.requests += not end.spoke_last
        else:
            self.counts.received += size
        if size:
            end.spoke_last, peer.spoke_last = True, False
        self._watch(end)

    def _empty_piece(self) -> _Pipe | _Copy:
        """Return a buffer for the next bytes: a pipe, or memory if all pipes are in use."""
        if not self._empty_pipes:
            if len(self._pipes) == PIPES:
                return _Copy()
            self._pipes.append(_Pipe())
            return self._pipes[-1]
        return self._empty_pipes.pop()

    def _give_back(self, piece: _Pipe | _Copy) -> None:
        """Return an empty pipe to those that can be used again."""
        if isinstance(piece, _Pipe):
            self._empty_pipes.append(piece)

    def _write(self, end: _End) -> None:
        """Send what is due at this end, as far as there is room for it."""
        now = time.monotonic()
        end.waits_for_room = False
        while not end.is_closed and end.outgoing and end.outgoing[0][0] <= now:
            piece = end.outgoing[0][1]
            if not piece.size:
                end.outgoing.popleft()
                self._give_back(piece)
                end.is_finished = True
                if end.peer.is_finished:
                    self._close_end(end)
                else:
                    with contextlib.suppress(OSError):
                        end.socket.shutdown(socket.SHUT_WR)
                continue
            try:
                count = piece.send(end.socket)
            except BlockingIOError:
                count = 0
            except OSError:
                self._close_end(end)
                return
            end.buffered_bytes -= count
            if piece.size:
                end.waits_for_room = True
                break
            end.outgoing.popleft()
            self._give_back(piece)
        if not end.is_closed:
            self._watch(end)
            self._watch(end.peer)

    def _watch(self, end: _End) -> None:
        """Have the selector report what this end is to do next."""
        if end.is_closed:
            return
        events = 0
        if not end.has_ended and end.peer.buffered_bytes < MAX_BUFFERED:
            events |= selectors.EVENT_READ
        if end.waits_for_room:
            events |= selectors.EVENT_WRITE
        if events == end.events:
            return
        if end.events and events:
            self._selector.modify(end.socket, events, end)
        elif events:
            self._selector.register(end.socket, events, end)
        else:
            self._selector.unregister(end.socket)
        end.events = events

    def _close_end(self, end: _End) -> None:
        """Close both ends of a connection."""
        for side in (end, end.peer):
            if not side.is_closed:
                side.is_closed = True
                self._ends.discard(side)
                if side.events:
                    self._selector.unregister(side.socket)
                side.socket.close()
                for _, piece in side.outgoing:
                    piece.drop()
                    self._give_back(piece)
                side.outgoing.clear()


class _Pipe:
    """Bytes on their way, in a pipe of the kernel."""

    def __init__(self) -> None:
        self.size = 0
        self._exit, self._entrance = os.pipe2(os.O_NONBLOCK)
        # More than the usual 64 KiB; of an unprivileged user's pipes only the first get it.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._entrance, fcntl.F_SETPIPE_SZ, PIECE)

    def take(self, source: socket.socket) -> int:
        """Fill the empty pipe with what has come; returns the number of bytes, 0 at the end."""
        self.size = os.splice(source.fileno(), self._entrance, PIECE, flags=PIPE_FLAGS)
        return self.size

    def send(self, target: socket.socket) -> int:
        """Send what there is room for; returns the number of bytes."""
        count = os.splice(self._exit, target.fileno(), self.size, flags=PIPE_FLAGS)
        self.size -= count
        return count

    def drop(self) -> None:
        """Forget the bytes."""
        while self.size:
            self.size -= len(os.read(self._exit, self.size))

    def close(self) -> None:
        os.close(self._exit)
        os.close(self._entrance)


class _Copy:
    """Bytes on their way, in this process."""

    def __init__(self) -> None:
        self._data = memoryview(b"")

    @property
    def size(self) -> int:
        return len(self._data)

    def take(self, source: socket.socket) -> int:
        """Take what has come; returns the number of bytes, 0 at the end."""
        self._data = memoryview(source.recv(PIECE))
        return self.size

    def send(self, target: socket.socket) -> int:
        """Send what there is room for; returns the number of bytes."""
        count = target.send(self._data)
        self._data = self._data[count:]
        return count

    def drop(self) -> None:
        """Forget the bytes."""
        self._data = memoryview(b"")


class _End:
    """One of the two sockets of a connection, and what is to be written to it."""

    peer: _End

    def __init__(self, of: socket.socket, *, is_client: bool) -> None:
        self.socket = of
        self.is_client = is_client
        self.outgoing: collections.deque[tuple[float, _Pipe | _Copy]] = collections.deque()
        self.buffered_bytes = 0  # bytes in it
        self.events = selectors.EVENT_READ
        self.waits_for_room = False
        self.has_ended = False  # nothing more comes from it
        self.is_finished = False  # nothing more is written to it
        self.is_closed = False
        self.spoke_last = False


class ProxyProcess:
    """A proxy in a process of its own, so that it does not share the interpreter's lock."""

    def __init__(self, to_port: int, delay: float) -> None:
        """Start the proxy in a process of its own; `delay` is in seconds."""
        command = [sys.executable, "-m", "benchmarks.proxy", "--to", str(to_port)]
        self._process = subprocess.Popen(
            [*command, "--delay-ms", str(1000 * delay)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process = self._process.pid
        self.port = int(self._answer())

    def __enter__(self) -> ProxyProcess:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=START_SECONDS)
        self._process.stdout.close()

    def take_counts(self) -> Counts:
        """What has passed since the last call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Counts(**json.loads(self._answer()))

    def _answer(self) -> str:
        """The process's next line. Raises RuntimeError where none comes in time."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(START_SECONDS) else ""
        if not line:
            self._process.kill()
            raise RuntimeError("the delaying proxy did not answer")
        return line


def _requests_on_stdin() -> Iterator[str]:
    """The lines of standard input; os.read, which a closed pipe ends at once."""
    while line := os.read(sys.stdin.fileno(), 100):
        yield line.decode()


def main(argv: list[str] | None = None) -> int:
    """Run a proxy until stdin closes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proxy", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--to", type=int, required=True, help="port of the server")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="in each direction")
    arguments = parser.parse_args(argv)
    with Proxy(arguments.to, arguments.delay_ms / 1000) as proxy:
        print(proxy.port, flush=True)
        for _ in _requests_on_stdin():
            counts = proxy.counts
            proxy.reset()
            print(json.dumps(dataclasses.asdict(counts)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
