"""What strangers, slow clients and huge studies cost the service: memory, processor time, and the answers of others.

``python benchmarks/service_bounds.py checks`` checks huge studies and hostile documents in fresh processes;
``python benchmarks/service_bounds.py downloads`` lets 8 clients read a model file of 300 MB slowly;
``python benchmarks/service_bounds.py siege`` lets 200 clients list and follow studies while 1,000 connections idle,
half of them in the middle of a request, and hostile bodies arrive all the time;
``python benchmarks/service_bounds.py all`` does all of it. ``--against FOLDER`` measures another checkout as well.
``python benchmarks/service_bounds.py limiters`` compares our limits by client with the library ``limits``, which must
be installed for that.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import resource
import runpy
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import httpx
import psutil

from services.api.requests.rate_limit import Buckets
from services.store import Store

ROOT = Path(__file__).parents[1]
SERVICE = runpy.run_path(str(Path(__file__).with_name("service.py")))
CLIENTS, IDLE, READERS, MEGABYTES = 200, 1000, 8, 300
PREAMBLE = """
import json, resource, sys, time
import yaml
from nas_blockout.data import DataSettings, load
from services.api import studies
from services.api.requests import request_body
from services.settings import Settings
from services.study_config.resolution import resolve_document
from services.study_config.validation import check_against_data

SETTINGS = Settings.from_environment({"NAS_BLOCKOUT_API_TOKEN": "q7Rz_0vLw2-Xb9TnYd4K"})
STUDY = {"schema_version": 2, "name": "huge", "data": {"name": "digits", "train_samples": 50},
         "backbone": {"name": "convnet", "channels": [4], "hidden": [8]}, "training": {"epochs": 2, "batch_size": 16},
         "budget": {"trainings": 4}, "retrain": {"seeds": [0, 1]}, "arms": {"dense": {}}}

def driver(**backbone):
    study = resolve_document({**STUDY, "backbone": {"name": "convnet", **backbone}}, source="x")
    check_against_data(study, SPLITS, source="x")

def api(text, kind="application/yaml"):
    studies.checked(request_body.document(text.encode(), kind), SETTINGS)

SPLITS = load(DataSettings(name="digits", train_samples=50), root=None)
resolve_document(STUDY, source="x")
driver(channels=[4])
"""
REPORT = """
TEXT = GIVEN
before, began, told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), "accepted"
try:
    CALL
except (Exception, MemoryError) as error:
    told = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
took = time.process_time() - began
print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, took, told]))
"""
# The text that is checked, made before the clock starts, and the check.
CHECKS = {
    "driver, channels 10,000 x 10,000": ("None", "driver(channels=[10_000, 10_000])"),
    "driver, channels a million x a million": ("None", "driver(channels=[1_000_000] * 2)"),
    "driver, 5,000 hidden layers": ("None", "driver(hidden=[8] * 5000)"),
    "API, 9,900 wrong keys as YAML": ('yaml.safe_dump({f"key{n}": n for n in range(9900)})', "api(TEXT)"),
    "API, 9,900 wrong keys as JSON": (
        'json.dumps({f"key{n}": n for n in range(9900)})',
        'api(TEXT, "application/json")',
    ),
    "API, 20,000 keys as JSON, the last one twice": (
        '"{" + ",".join(f\'"{n}":0\' for n in [*range(20_000), 19_999]) + "}"',
        'api(TEXT, "application/json")',
    ),
    "API, 300 arms": (
        'yaml.safe_dump({**STUDY, "arms": {f"arm-{n}": {"extends": "amr"} for n in range(300)}})',
        "api(TEXT)",
    ),
    "API, a million epochs": ('yaml.safe_dump({**STUDY, "training": {"epochs": 10**6}})', "api(TEXT)"),
    "API, an Inception that is to be pruned": (
        'yaml.safe_dump({**STUDY, "backbone": {"name": "inception"}, "arms": {"dense": {"pruning": {}}}})',
        "api(TEXT)",
    ),
    "API, the example": ("yaml.safe_dump(STUDY)", "api(TEXT)"),
}
WRONG_KEYS = json.dumps({f"key{number}": number for number in range(9900)})
HOSTILE = (
    ("application/json", WRONG_KEYS),
    ("application/yaml", "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b]\n"),
    ("application/yaml", "a: " + "[" * 5000),
    ("application/json", json.dumps({**SERVICE["STUDY"], "backbone": {"channels": [10_000, 10_000]}})),
    ("application/json", json.dumps({**SERVICE["STUDY"], "backbone": {"hidden": [8] * 5000}})),
)
Figures = dict[str, list[str]]


def checks(checkouts: list[Path], rounds: int) -> Figures:
    """Memory beyond that of a small study, processor time and outcome of each check, by checkout."""
    rows: Figures = {}
    for name, (text, call) in CHECKS.items():
        rows[name] = []
        found: dict[Path, list[tuple[float, float, str]]] = defaultdict(list)
        for _ in range(rounds):
            for checkout in checkouts:
                code = PREAMBLE + REPORT.replace("GIVEN", text).replace("CALL", call)
                environment = {**os.environ, "PYTHONPATH": str(checkout)}
                ran = subprocess.run(
                    [sys.executable, "-c", code],
                    env=environment,
                    cwd=checkout,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[checkout].append(tuple(json.loads(ran.stdout.splitlines()[-1])))
        for each in found.values():
            memory, took = [row[0] for row in each], [row[1] for row in each]
            spread = f" ({min(took):.2f} to {max(took):.2f})" if rounds > 1 else ""
            rows[name] += [f"{statistics.median(memory):,.0f}", f"{statistics.median(took):.2f}{spread}", each[-1][2]]
        print(f"{name}: {', '.join(rows[name])}", file=sys.stderr, flush=True)
    return rows


@contextlib.contextmanager
def model_file(home: Path, url: str, megabytes: int) -> Iterator[tuple[str, str]]:
    """Make a study with an exported model; yield the address of its file and a token."""
    content = hashlib.sha256()
    folder = home / "runs" / "trained" / "models" / "dense"
    folder.mkdir(parents=True)
    with (folder / "model.onnx").open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(1 << 20)
            content.update(block)
            file.write(block)
    study = SERVICE["study"]()
    with Store.open(url) as store:
        token = store.create_token("", owner="ann", scope="read")[1]
        store.enqueue("trained", document=study.to_json(), config_hash=study.hash, owner="ann")
        store.create_study("trained", config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        trial = store.add_trial("trained", arm="dense", phase="retrain", number=0, seed=0, experiment={}, planned=1).id
        store.start_attempt(trial)
        store.finish_trial(trial, "complete", score=0.5, result={})
        store.add_export(trial, path="x", hashes={"model.onnx": content.hexdigest()}, verified=True)
    yield "/v1/studies/trained/models/dense/model.onnx", token


def downloads(checkouts: list[Path]) -> Figures:
    """Memory that a service takes beyond its own while 8 clients read a file slowly, by checkout."""
    row = []
    for checkout in checkouts:
        with tempfile.TemporaryDirectory() as folder:
            home, url = Path(folder), f"sqlite:///{folder}/store.db"
            with (
                model_file(home, url, MEGABYTES) as (path, token),
                SERVICE["serving"](home, url, checkout) as (address, _, server),
            ):
                before, peak = server.memory_info().rss, 0
                ended = threading.Event()

                def read(address: str = address, path: str = path, token: str = token, ended=ended) -> None:
                    headers = {"Authorization": f"Bearer {token}"}
                    with httpx.stream("GET", address + path, headers=headers, timeout=600) as answer:
                        for _ in answer.iter_raw(1 << 16):
                            if ended.wait(0.1):
                                return

                readers = [threading.Thread(target=read) for _ in range(READERS)]
                for reader in readers:
                    reader.start()
                ends = time.monotonic() + 30
                while time.monotonic() < ends:
                    peak = max(peak, server.memory_info().rss)
                    time.sleep(0.05)
                ended.set()
                for reader in readers:
                    reader.join()
                row += [f"{(peak - before) / 1e6:,.0f}"]
    return {f"{READERS} slow clients of a file of {MEGABYTES} MB": row}


def opened(address: str, number: int) -> list[socket.socket]:
    """Open connections that send nothing, or half of a request."""
    host, _, port = address.removeprefix("http://").partition(":")
    idle = []
    for index in range(number):
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, int(port)), timeout=5)
            if index % 2:
                connection.sendall(b"GET /v1/studies HTTP/1.1\r\nHost: here\r\n")
            idle.append(connection)
    return idle


async def probing(address: str, ends: float, samples: dict[str, list[float]], told: Counter[str]) -> None:
    """Ask for a sign of life on a new connection, as who restarts the service does."""
    while time.monotonic() < ends:
        client, began = SERVICE["Client"](address, "none"), time.perf_counter()
        status = "no answer"
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(5):
                await client.open()
                status = await client.ask("/healthz")
                client.close()
        told[status] += 1
        samples["/healthz"].append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(0.2)


async def attacking(address: str, token: str, ends: float, told: Counter[str]) -> None:
    """Send one hostile body after another."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
        while time.monotonic() < ends:
            for kind, body in HOSTILE:
                with contextlib.suppress(httpx.HTTPError):
                    answer = await client.post("/v1/studies", content=body, headers={"Content-Type": kind})
                    told[str(answer.status_code)] += 1
            await asyncio.sleep(0.5)


def noted(visit: Coroutine[None, None, None], samples: dict[str, list[float]]) -> asyncio.Task[None]:
    """Start a client; note that it was refused or cut off, instead of failing."""

    async def run() -> None:
        try:
            await visit
        except (OSError, EOFError, LookupError, ValueError, AssertionError) as error:
            samples[f"clients that were cut off: {type(error).__name__}"].append(0.0)

    return asyncio.create_task(run())


async def besieged(address: str, tokens: list[str], attacker: str, clients: int, seconds: float) -> Figures:
    samples: dict[str, list[float]] = defaultdict(list)
    alive: Counter[str] = Counter()
    hostile: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    idle = await asyncio.to_thread(opened, address, IDLE)

    async def reopening() -> None:
        nonlocal idle
        while time.monotonic() < ends:  # as an attacker would
            await asyncio.sleep(5)
            for connection in idle:
                connection.close()
            idle = await asyncio.to_thread(opened, address, IDLE)

    tasks = [
        asyncio.create_task(probing(address, ends, samples, alive)),
        asyncio.create_task(attacking(address, attacker, ends, hostile)),
        asyncio.create_task(reopening()),
    ]
    visits = []
    for number in range(clients):
        owner = number % len(tokens)
        client, follower = (SERVICE["Client"](address, tokens[owner]) for _ in range(2))
        await asyncio.sleep(1.0 / clients)
        visits.append(noted(SERVICE["listing"](client, ends, samples), samples))
        following = SERVICE["following"](follower, f"trained-{owner}", samples)
        visits.append(noted(SERVICE["until"](ends, following), samples))
    await asyncio.gather(*visits)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for connection in idle:
        connection.close()
    rows: Figures = {}
    for name, times in sorted(samples.items()):
        if name != "events":
            percentile = SERVICE["percentile"](times, 99)
            rows[name] = [str(len(times)), f"{statistics.median(times):.0f}", f"{percentile:.0f}", f"{max(times):.0f}"]
    rows["/healthz, answers"] = [
        ", ".join(f"{count} x {status}" for status, count in sorted(alive.items())),
        "",
        "",
        "",
    ]
    rows["hostile bodies, answers"] = [
        ", ".join(f"{count} x {status}" for status, count in sorted(hostile.items())), "", "", ""
    ]  # fmt: skip
    return rows


def siege(checkout: Path, clients: int, seconds: float) -> tuple[Figures, str]:
    with tempfile.TemporaryDirectory() as folder:
        home, url = Path(folder), f"sqlite:///{folder}/store.db"
        tokens = SERVICE["owned"](url)
        with Store.open(url) as store:
            attacker = store.create_token("", owner="mallory", scope="write")[1]
        with SERVICE["serving"](home, url, checkout) as (address, _, server):
            before, used = server.memory_info().rss, SERVICE["busy"](server)
            rows = asyncio.run(besieged(address, tokens, attacker, clients, seconds))
            grown, took = (server.memory_info().rss - before) / 1e6, SERVICE["busy"](server) - used
    return rows, f"the service took {100 * took / seconds:.0f}% of a core, and {grown:.0f} MB more than at rest"


def limiters() -> Figures:
    """Processor time of a request that comes 12 ms after the one before, beyond that of waiting, by limiter."""
    from limits import RateLimitItemPerSecond
    from limits.storage import MemoryStorage
    from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

    item = RateLimitItemPerSecond(80, 4)

    def of_library(kind: type) -> Callable[[str], object]:
        limiter = kind(MemoryStorage())
        return lambda client: limiter.hit(item, client)

    kinds: dict[str, Callable[[], Callable[[str], object]]] = {
        "nothing": lambda: lambda client: None,
        "ours": lambda: Buckets(20).wait,
        "limits, moving window": lambda: of_library(MovingWindowRateLimiter),
        "limits, sliding window counter": lambda: of_library(SlidingWindowCounterRateLimiter),
    }
    rows: Figures = {}
    for name, make in kinds.items():
        rows[name] = []
        for clients in (1, 5000):
            hit, costs = make(), []
            for client in range(clients):
                hit(str(client))
            for _ in range(5):
                began = time.process_time()
                for request in range(50):
                    hit(str(request % clients))
                    time.sleep(0.012)
                costs.append(1e6 * (time.process_time() - began) / 50)
            rows[name].append(f"{statistics.median(costs):,.0f} ({min(costs):,.0f} to {max(costs):,.0f})")
    return rows


def shown(title: str, columns: list[str], rows: Figures) -> None:
    print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["checks", "downloads", "siege", "all", "limiters"])
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout; can be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="of the checks")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard > 0 else 8192, hard))
    checkouts = [ROOT, *options.against]
    names = ["this checkout", *map(str, options.against)]
    print(f"{psutil.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start")
    if options.what == "limiters":
        shown("microseconds of a request", ["1 client", "5,000 clients"], limiters())
    if options.what in ("checks", "all"):
        columns = [f"{what}, {name}" for name in names for what in ("MB", "CPU s", "outcome")]
        shown("check", columns, checks(checkouts, options.rounds))
    if options.what in ("downloads", "all"):
        shown("MB more than at rest", names, downloads(checkouts))
    if options.what in ("siege", "all"):
        for name, checkout in zip(names, checkouts, strict=True):
            rows, taken = siege(checkout, options.clients, options.seconds)
            shown(f"{name}, {options.seconds:g} s", ["number", "median, ms", "99%, ms", "longest, ms"], rows)
            print(f"\n{taken}")
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
