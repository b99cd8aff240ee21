"""Compare preparing data from S3, XRootD and https, at several latencies, with disk and uproot.

    python -m benchmarks.remote [--rounds 3] [--copies 16] [--delays 0,20] [--cores apart]
        [--sources s3,xrootd,https] [--contenders 'ours,uproot decodes,plain uproot']

Real servers run on this machine (benchmarks/servers.py), each behind a proxy that delays and counts
(benchmarks/proxy.py), so that a request and its answer take so many milliseconds longer. Each
source at each delay is a section of the result, in which everything runs once a round, in processes
of its own, from the disk and from the source in turn:

ours             weaver.prepare, from the list of files to the prepared folder
uproot decodes   the same, with uproot in place of our decoder
plain uproot     uproot alone, which only reads and decodes the needed branches, with the source
                 class and the number of files at a time that a scan finds best

A real server is another machine. So the first half of this machine's cores belongs to the client,
also where it reads from the disk, and the other half to server and proxy. As long as these do not
fill theirs (their busy share is shown), the ratio to the disk's rate is the client's own. With
`--cores shared` all of them share all cores. Keep the machine free of other work. On two cores it
takes about twelve minutes; `--sources s3 --delays 20` measures one section anew. (A kernel with
netem could delay without a proxy, but only for root.)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import servers
from benchmarks.measure import Report, Spread, alternate, ratio, with_allocator
from benchmarks.proxy import ProxyProcess
from common.cli import run_main
from common.errors import InputError, JecError
from common.project import ROOT

# of the sample's files, which makes 320,000 jets: opening the files (some round trips) then weighs
# as little as in a real preparation
COPIES = 16
BUCKET = "jets"
OURS, DECODED, PLAIN = CONTENDERS = ("ours", "uproot decodes", "plain uproot")
SCAN_FILES = 4  # files that a scan reads
DISK = "disk"
DISTANT = ("s3", "xrootd", "https")
GOAL_OF_DISK = 0.7  # at 20 ms
GOAL_OF_BYTES = 1.15
GOAL_OF_DECODER = 1.5
MOST_BUSY = 0.9  # of the servers' cores; beyond it they may bound the rate
APART, SHARED = CORES = ("apart", "shared")
FILES_AT_A_TIME = (1, 4)  # of plain uproot, the better of which is measured
UPROOT_FILES = 4  # at a time where uproot decodes for prepare
UPROOT_SOURCES = {
    DISK: ("file.MemmapSource", "file.MultithreadedFileSource", "fsspec.FSSpecSource"),
    "s3": ("fsspec.FSSpecSource",),
    "xrootd": (
        "xrootd.XRootDSource",
        "xrootd.MultithreadedXRootDSource",
        "fsspec.FSSpecSource",
    ),
    "https": ("http.HTTPSource", "http.MultithreadedHTTPSource", "fsspec.FSSpecSource"),
}
"""Source -> the classes of uproot.source that read from it."""


# ----------------------------------------------------------------- what the measured processes do


def prepare(order: dict[str, Any]) -> dict[str, Any]:
    """Ours: prepare into an empty storage. The files are listed before."""
    from weaver.config.data_config import DataConfig
    from weaver.prepared.prepare import prepare
    from weaver.read import files

    if order["decoder"] == "uproot":
        _let_uproot_decode()
    config = DataConfig.load(order["config"])
    entries = files.find(order["pattern"])
    with tempfile.TemporaryDirectory(dir=order["scratch"]) as storage:
        watch = _Watch()
        reference = prepare(entries, config, storage, for_training=True, report=lambda line: None)
        return {"jets": reference.num_read, **watch.read()}


def _let_uproot_decode() -> None:
    """Have uproot decode all files, several at a time, each as one job.

    So one is opened, which takes uproot several round trips, while another is decoded.
    """
    from weaver.prepared.decoding import Decoding, Pace
    from weaver.read import files

    def loads(
        file: Any, config: Any, plan: Any, *, readers: Any, **options: Any
    ) -> Iterator[files.Load]:
        yield files.Load(functools.partial(files.read, file, config, plan, **options))

    files._simple_tree = lambda *_: None
    files.loads = loads
    together = Pace(threads=UPROOT_FILES, share=1.0)
    Decoding.pace = property(lambda _: together)  # type: ignore[assignment]


def plain_uproot(order: dict[str, Any]) -> dict[str, Any]:
    """The needed branches as uproot's arrays, file by file; the first file is opened before."""
    import uproot
    import uproot.source.fsspec
    import uproot.source.http
    import uproot.source.xrootd

    module, _, name = order["source"].rpartition(".")
    options: dict[str, Any] = {
        "handler": getattr(getattr(uproot.source, module), name),
    }
    if module != "fsspec":  # whose file systems take other options
        options["timeout"] = 60
    if order["where"] == "s3":
        options["endpoint_url"] = os.environ["AWS_ENDPOINT_URL"]
    decompressors = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def decode(uri: str) -> int:
        with uproot.open({uri: None}, **options) as file:
            tree = file[order["tree"]]
            arrays = tree.arrays(
                order["branches"], library="ak", how=dict, decompression_executor=decompressors
            )
            return len(next(iter(arrays.values())))

    uproot.open({order["files"][0]: None}, **options).close()
    watch = _Watch()
    with decompressors, ThreadPoolExecutor(order["files_at_a_time"]) as pool:
        jets = sum(pool.map(decode, order["files"][: order["most_files"]]))
    return {"jets": jets, **watch.read()}


def needed(order: dict[str, Any]) -> dict[str, Any]:
    """What the config needs of the files: the tree, the branches, and their stored bytes."""
    from weaver.config.data_config import DataConfig
    from weaver.read import files

    config = DataConfig.load(order["config"])
    entries = files.find(order["pattern"])
    file_check = files.check(entries, config, for_training=True)
    branches = sorted(set(file_check.plan.branches.values()))
    size = 0
    for file in file_check.files:
        with files.open_file(file.entry.uri) as source:
            tree = source[file.tree]
            size += sum(int(tree[name].compressed_bytes) for name in branches)
    return {
        "tree": file_check.files[0].tree,
        "branches": branches,
        "bytes": size,
        "files": len(entries),
    }


class _Watch:
    """Wall and CPU time of this process from now on."""

    def __init__(self) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._start,
            "cpu": time.process_time() - self._cpu_start,
        }


WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prepare": prepare,
    "plain_uproot": plain_uproot,
    "needed": needed,
}


# ------------------------------------------------------------------------- sources and contenders


@dataclasses.dataclass(frozen=True)
class Cores:
    """The cores that the client may use, and those of server and proxy."""

    client: frozenset[int]
    servers: frozenset[int]

    @classmethod
    def divided(cls, how: str) -> Cores:
        """Give each side half of this process's cores, or both all of them (SHARED).

        Raises InputError where there is only one to divide.
        """
        cores = sorted(os.sched_getaffinity(0))
        if how == SHARED:
            return cls(frozenset(cores), frozenset(cores))
        if len(cores) == 1:
            raise InputError(f"--cores {APART} takes two cores, and there is one; say {SHARED}")
        half = len(cores) // 2
        return cls(frozenset(cores[:half]), frozenset(cores[half:]))

    @contextlib.contextmanager
    def for_servers(self) -> Iterator[None]:
        """Have the processes that start within the block use the servers' cores only."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.servers)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def text(self) -> str:
        """Say who uses which cores."""
        if self.client == self.servers:
            return f"Client, server and proxy share {len(self.client)} cores."
        return (
            f"The client (also from disk) runs on {_list_cores(self.client)}, server and proxy on"
            f" {_list_cores(self.servers)}, as on two machines."
        )


def _list_cores(cores: frozenset[int]) -> str:
    name = "core" if len(cores) == 1 else "cores"
    return f"{name} {', '.join(str(core) for core in sorted(cores))}"


class Place:
    """Where the files are read from: the disk, or a server behind a proxy."""

    def __init__(
        self,
        where: str,
        delay_ms: float,
        base: str,
        names: list[str],
        environment: dict[str, str],
        cores: Cores,
        proxy: ProxyProcess | None = None,
        server: servers.Server | None = None,
    ) -> None:
        """Describe the disk, or a server behind its proxy."""
        self.where = where
        self.delay_ms = delay_ms
        self.pattern = f"{base}/*.root"
        self.files = [f"{base}/{name}" for name in names]
        self.environment = environment
        self.cores = cores
        self.proxy = proxy
        # process -> its number
        self.line: dict[str, int] = {}
        if proxy and server:
            self.line = {"proxy_cpu": proxy.process, "server_cpu": server.process}

    @property
    def name(self) -> str:
        """Name of the place and its delay."""
        return self.where if self.proxy is None else f"{self.where}, {self.delay_ms:g} ms"

    def run(self, work: str, **order: Any) -> dict[str, Any]:
        """The work's answer, with the bytes and requests that passed the proxy."""
        order |= {"pattern": self.pattern, "files": self.files, "where": self.where}
        order |= {"cores": sorted(self.cores.client)}
        if self.proxy is not None:
            self.proxy.take_counts()
        cpu_before = {name: servers.cpu_seconds(process) for name, process in self.line.items()}
        answer = _answer(work, order, self.environment)
        for name, process in self.line.items():
            answer[name] = servers.cpu_seconds(process) - cpu_before[name]
        if self.proxy is not None:
            counts = self.proxy.take_counts()
            answer |= dataclasses.asdict(counts)
        return answer


@contextlib.contextmanager
def places(
    names: list[str], delays: list[float], sources: list[str], work: Path, cores: Cores
) -> Iterator[tuple[list[Place], str]]:
    """The disk and all servers over the files in work/data, and the name of the S3 server."""
    data = work / "data"
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as starting:
        starting.enter_context(cores.for_servers())
        xrootd = stack.enter_context(servers.xrootd(data, work / "xrootd"))
        s3 = stack.enter_context(servers.s3(work / "s3"))
        addresses = {
            "s3": (s3, s3.ports[0]),
            "xrootd": (xrootd, xrootd.ports[0]),
            "https": (xrootd, xrootd.ports[1]),
        }
        environment = {
            **servers.KEYS,
            "REQUESTS_CA_BUNDLE": str(work / "xrootd" / "ca.pem"),
            "SSL_CERT_FILE": str(work / "xrootd" / "ca.pem"),
        }
        _fill_bucket(data, names, environment, s3.ports[0])
        result = [Place(DISK, 0, str(data), names, environment, cores)]
        for delay in delays:
            for where in sources:
                server, port = addresses[where]
                proxy = stack.enter_context(ProxyProcess(port, delay / 2000))
                base = {
                    "s3": f"s3://{BUCKET}",
                    "xrootd": f"root://127.0.0.1:{proxy.port}/",
                    "https": f"https://localhost:{proxy.port}",
                }[where]
                variables = {**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
                result.append(Place(where, delay, base, names, variables, cores, proxy, server))
        starting.close()
        yield result, s3.name


def _fill_bucket(data: Path, names: list[str], environment: dict[str, str], port: int) -> None:
    """Copy the files to S3."""
    import boto3

    from common import storage

    endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    with mock.patch.dict(os.environ, environment | endpoint):
        storage.forget_client()  # it may be of another endpoint
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        for name in names:
            storage.upload(str(data / name), f"s3://{BUCKET}/{name}")
    storage.forget_client()


def _answer(work: str, order: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """What a process of its own answers."""
    command = [sys.executable, "-m", "benchmarks.remote", "--work", work, json.dumps(order)]
    process = subprocess.run(
        command,
        cwd=ROOT,
        env={**with_allocator(), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if process.returncode:
        raise JecError(f"{work} ended with {process.returncode}: {process.stderr.strip()[-1000:]}")
    answer: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return answer


def _copy_files(arguments: argparse.Namespace, data: Path) -> list[str]:
    """The training files under several names in one folder, readable for all; their names."""
    from common import storage
    from data.generator.sample import ensure_sample

    pattern = arguments.data or ensure_sample(arguments.storage)["train"]
    names = []
    for copy in range(arguments.copies):
        for index, entry in enumerate(storage.glob(pattern)):
            names.append(f"jets_{copy:03d}_{index:03d}.root")
            (data / names[-1]).write_bytes(Path(entry.uri).read_bytes())
    return names


# ---------------------------------------------------------------------------------- the comparison


class Comparison:
    """All contenders at all places, and what their runs gave."""

    def __init__(self, places: list[Place], names: list[str], config: str, scratch: str) -> None:
        """Compare these contenders at these places."""
        self.places = places
        self.names = names  # of the contenders
        self.order = {"config": config, "scratch": scratch, "decoder": "ours"}
        self.needed = places[0].run("needed", **self.order)
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.best: dict[str, dict[str, Any]] = {}

    def scan(self) -> None:
        """Find the fastest source of uproot for each kind of place, at its longest delay.

        Raises JecError if no source reads from a place.
        """
        farthest = {place.where: place for place in self.places}
        for where, place in farthest.items():
            rates = {}
            for source in UPROOT_SOURCES[where]:
                for number in FILES_AT_A_TIME:
                    flags = {"source": source, "files_at_a_time": number}
                    try:
                        answer = self.uproot(place, flags, SCAN_FILES)
                    except JecError as error:  # a source that does not work here
                        print(f"{place.name}: {flags}: {error}", file=sys.stderr)
                        continue
                    rates[json.dumps(flags)] = answer["jets"] / answer["seconds"]
            if not rates:
                raise JecError(f"no source of uproot reads from {place.name}")
            self.best[where] = json.loads(max(rates, key=rates.__getitem__))
            print(f"{place.name}: uproot {rates}", file=sys.stderr)

    def uproot(
        self, place: Place, flags: dict[str, Any], most_files: int | None = None
    ) -> dict[str, Any]:
        """Run plain uproot with these options; return what it measured."""
        return place.run(
            "plain_uproot",
            **self.order,
            **flags,
            most_files=most_files,
            tree=self.needed["tree"],
            branches=self.needed["branches"],
        )

    def contenders(self, places: list[Place]) -> dict[str, Callable[[], float]]:
        """Name -> a function that runs it once at one of the places; it returns jets/s.

        What is measured anew takes the place of earlier runs.
        """
        runs: dict[str, Callable[[], float]] = {}
        for place in places:
            by_uproot = {**self.order, "decoder": "uproot"}
            for name in self.names:
                if name == PLAIN:
                    run = functools.partial(self.uproot, place, self.best[place.where])
                else:
                    order = self.order if name == OURS else by_uproot
                    run = functools.partial(place.run, "prepare", **order)
                key = f"{place.name}: {name}"
                self.answers[key] = []
                runs[key] = functools.partial(self._rate, key, run)
        return runs

    def _rate(self, key: str, run: Callable[[], dict[str, Any]]) -> float:
        answer = run()
        self.answers[key].append(answer)
        rate: float = answer["jets"] / answer["seconds"]
        return rate

    def row(self, place: Place, name: str, runs: dict[str, list[float]]) -> list[str]:
        """Return the row of one contender at one place."""
        key = f"{place.name}: {name}"
        rates, answers = runs[key], self.answers[key]
        ours, disk = runs[f"{place.name}: {OURS}"], runs[f"{DISK}: {name}"]
        cpu = Spread.of(1e6 * answer["cpu"] / answer["jets"] for answer in answers)
        cells = [place.name, name, Spread.of(rates).text()]
        cells.append("" if place.proxy is None else ratio(rates, disk).text(".2f"))
        cells.append("" if name == OURS else ratio(ours, rates).text(".2f", "x"))
        if place.proxy is None:
            cells += ["", ""]
        else:
            byte_ratio = Spread.of(answer["received"] / self.needed["bytes"] for answer in answers)
            requests = Spread.of(answer["requests"] / self.needed["files"] for answer in answers)
            cells += [byte_ratio.text(".3f"), requests.text(".1f")]
        cells.append(cpu.text(".1f"))
        for process in ("server_cpu", "proxy_cpu"):
            spread = Spread.of(1e6 * answer.get(process, 0) / answer["jets"] for answer in answers)
            cells.append(spread.text(".1f") if place.line else "")
        busy = ""
        if place.line:
            busy = Spread.of(busy_share(place, answer) for answer in answers).text(".0%")
        cells.append(busy)
        return cells


def busy_share(place: Place, answer: dict[str, Any]) -> float:
    """The part of their cores' time that server and proxy took during a run."""
    cpu_seconds: float = answer["server_cpu"] + answer["proxy_cpu"]
    return cpu_seconds / answer["seconds"] / len(place.cores.servers)


def measure(report: Report, comparison: Comparison, rounds: int, s3_name: str) -> None:
    """Run everything and add a section for each source and delay to the report."""
    load = os.getloadavg()[0]
    if PLAIN in comparison.names:
        comparison.scan()
    disk, *distant = comparison.places
    for place in distant:
        _section(report, comparison, disk, place, rounds, s3_name, load)


def _section(
    report: Report,
    comparison: Comparison,
    disk: Place,
    place: Place,
    rounds: int,
    s3_name: str,
    load: float,
) -> None:
    """Run all contenders from the disk and from a place in turn, and add their table."""
    runs = alternate(comparison.contenders([disk, place]), rounds)
    columns = [
        "from",
        "contender",
        "jets/s: median (least - most)",
        "of its rate from disk",
        "ours is faster by",
        "bytes moved / needed",
        "requests a file",
        "CPU of the client, us a jet",
        "of the server",
        "of the proxy",
        "cores of server and proxy busy",
    ]
    rows = []
    for where in (disk, place):
        for name in comparison.names:
            rows.append(comparison.row(where, name, runs))
    size = comparison.needed["bytes"]
    jets = comparison.answers[f"{DISK}: {OURS}"][0]["jets"]
    notes = [
        (
            f"{jets:,} jets in {comparison.needed['files']} files; {size / 1e6:,.0f} MB of"
            f" needed baskets ({len(comparison.needed['branches'])} branches); ratios within"
            f" each of {rounds} rounds."
        ),
        (
            "ours and 'uproot decodes' select, transform and write the prepared columns; plain"
            " uproot only makes arrays."
        ),
    ]
    if PLAIN in comparison.names:
        best = []
        for where in (disk, place):
            flags = comparison.best[where.where]
            best.append(
                f"{where.where}: {flags['source']}, {flags['files_at_a_time']} files at a time"
            )
        notes.append(f"Plain uproot's best: {', '.join(best)}.")
    server = s3_name if place.where == "s3" else "xrootd"
    notes += [
        f"The server is {server}. {place.cores.text()}",
        f"The machine's load was {load:.1f} before, on {len(os.sched_getaffinity(0))} cores.",
        _verdict(comparison, place, runs),
    ]
    shared = ", shared cores" if place.cores.client == place.cores.servers else ""
    report.section(
        f"{place.name}{shared}",
        columns=columns,
        rows=rows,
        notes=notes,
        runs=runs,
        answers={key: comparison.answers[key] for key in runs},
        needed=comparison.needed,
        best=comparison.best,
    )


def _verdict(comparison: Comparison, place: Place, runs: dict[str, list[float]]) -> str:
    """Say which goals are met at a place, and whether its server kept up."""
    ours = runs[f"{place.name}: {OURS}"]
    answers = comparison.answers[f"{place.name}: {OURS}"]
    moved_bytes = max(answer["received"] / comparison.needed["bytes"] for answer in answers)
    of_disk = ratio(ours, runs[f"{DISK}: {OURS}"]).median
    goals = [
        f"{of_disk:.2f} of disk ({_meets_or_misses(of_disk >= GOAL_OF_DISK)} {GOAL_OF_DISK})",
        f"{moved_bytes:.3f} of the needed bytes"
        f" ({_meets_or_misses(moved_bytes <= GOAL_OF_BYTES)} {GOAL_OF_BYTES})",
    ]
    for name, goal in ((PLAIN, 1.0), (DECODED, GOAL_OF_DECODER)):
        if name in comparison.names:
            times = ratio(ours, runs[f"{place.name}: {name}"]).median
            goals.append(f"{times:.2f}x '{name}' ({_meets_or_misses(times >= goal)} {goal})")
    busy = max(busy_share(place, answer) for answer in answers)
    limit = "so they bound the rate" if busy > MOST_BUSY else "so they do not bound the rate"
    goals.append(f"server and proxy at most {busy:.0%} busy, {limit}")
    return f"{place.name}: {', '.join(goals)}."


def _meets_or_misses(is_met: bool) -> str:
    return "meets" if is_met else "misses"


def main(argv: list[str] | None = None) -> int:
    """Measure and write the results; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remote", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--data", help="ROOT files (default: the training part of the generated sample)"
    )
    parser.add_argument("--data-config", default=str(ROOT / "data" / "jec_pfn_open.yaml"))
    parser.add_argument(
        "--storage", default="runs", help="where the generated sample lies or will lie"
    )
    parser.add_argument(
        "--copies",
        type=int,
        default=COPIES,
        help="how often the files are used, under different names",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--delays", default="0,20", help="milliseconds that a request and its answer take longer"
    )
    parser.add_argument("--sources", default=",".join(DISTANT), help="of these: %(default)s")
    parser.add_argument(
        "--contenders",
        default=",".join(CONTENDERS),
        help=f"'{OURS}' and which others: %(default)s",
    )
    parser.add_argument(
        "--cores",
        choices=CORES,
        default=APART,
        help=f"{APART}: half of them for the client, half for server and proxy; {SHARED}: all for"
        " all (default: %(default)s)",
    )
    parser.add_argument("--work", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        order = json.loads(arguments.work[1])
        os.sched_setaffinity(0, order["cores"])  # before any thread is started
        print(json.dumps(WORK[arguments.work[0]](order)))
        return 0

    def body() -> int | None:
        sources = arguments.sources.split(",")
        for source in sources:
            if source not in DISTANT:
                raise InputError(f"--sources: there is no '{source}'; choose of {DISTANT}")
        contenders = arguments.contenders.split(",")
        if OURS not in contenders or set(contenders) - set(CONTENDERS):
            raise InputError(f"--contenders: name '{OURS}' and others of {CONTENDERS}")
        delays = [float(delay) for delay in arguments.delays.split(",")]
        cores = Cores.divided(arguments.cores)
        report = Report("remote", "Remote: preparing from distant storage")
        with tempfile.TemporaryDirectory(prefix="bench-remote-") as folder:
            work = Path(folder)
            work.chmod(0o755)  # for the server's user
            (work / "data").mkdir()
            names = _copy_files(arguments, work / "data")
            config = str(Path(arguments.data_config).resolve())
            with places(names, delays, sources, work, cores) as (run_places, s3_name):
                comparison = Comparison(run_places, contenders, config, folder)
                measure(report, comparison, arguments.rounds, s3_name)
        report.save()

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
