"""Latency of the service with many studies in the store, and with many clients while a study trains.

``python benchmarks/service.py studies`` fills a store with 10,000 studies and 100,000 trials and times list and show
over HTTP; ``python benchmarks/service.py clients`` lets 200 clients of 20 owners list once a second and follow a study
each for a minute, while one of them trains; ``python benchmarks/service.py costs --against FOLDER`` measures how much
processor time a request takes of the service, here and in another checkout, in turns.

Service, clients and study are sessions of their own, between which Linux divides the processors; what trains has an
eighth of the weight of the others, as docker-compose.yml gives it. ``--url
postgresql+psycopg://user@host/empty-database`` takes another database than SQLite in a folder that is removed
afterwards.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import runpy
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from pathlib import Path

import httpx
import psutil
import sqlalchemy as sa
import yaml

from services.store import Store, tables
from services.study_config.resolution import parse, resolve
from services.study_config.resolved_study import Study

CALL = "import sys; from services.cli.main import main; main(sys.argv[1:])"
STORE = runpy.run_path(str(Path(__file__).with_name("store.py")))
ROOT = Path(__file__).parents[1]
OWNERS, STUDIES = 20, 20
ARRIVAL_SECONDS = 5
COST_REQUESTS, COST_SECONDS = 100, 5.0
STUDY = {
    "schema_version": 2,
    "name": "trained",
    "question": "How does the service answer while this trains?",
    "data": {"name": "digits", "train_samples": 150},
    "training": {"epochs": 32, "batch_size": 16},
    "budget": {"sample_passes": 2_000_000},
    "retrain": {"seeds": [0]},
    "arms": {"dense": {"space": ["training"]}, "dropout": {"method": {"name": "dropout"}, "space": ["training"]}},
}
Samples = dict[str, list[float]]


def study(name: str = "trained") -> Study:
    return resolve(parse({**STUDY, "name": name}, source="example"), source="example")


@contextlib.contextmanager
def serving(home: Path, url: str, checkout: Path = ROOT) -> Iterator[tuple[str, dict[str, str], psutil.Process]]:
    """Run the service; yield its address, the environment of its processes, and the server process."""
    variables = {"HOME": str(home), "STORE_URL": url, "TRACKING_URI": "none", "API_TOKEN": secrets.token_hex(32)}
    environment = {
        **os.environ,
        **{f"NAS_BLOCKOUT_{name}": value for name, value in (variables | {"API_RATE": "1000"}).items()},
    }
    environment["PYTHONPATH"] = str(checkout)
    command = [sys.executable, "-c", CALL, "serve", "api", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, cwd=checkout, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        match = re.match(r"(http://\S+)/ serves", server.stderr.readline())
        try:
            yield match[1], environment, psutil.Process(server.pid)
        finally:
            server.terminate()


def queued(store: Store, studies: int) -> None:
    """Make one owner the owner of all studies, directly in the database."""
    document = study().to_json()
    now = STORE["NOW"]
    values = {"owner": "ann", "state": "complete", "config_hash": "cafe", "first_hash": "cafe", "message": ""}
    values |= {"attempt": 0, "first_attempt": 0, "created_at": now, "updated_at": now, "document": document}
    with store._database.writing() as connection:
        for start in range(1, studies + 1, 500):
            numbers = range(start, min(start + 500, studies + 1))
            rows = [{**values, "id": number, "study": f"study-{number:06d}"} for number in numbers]
            connection.execute(sa.insert(tables.queue), rows)
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("ANALYZE"))


def time_studies(home: Path, url: str, studies: int, repeats: int) -> None:
    with Store.open(url) as store:
        STORE["fill"](store, studies, 10, 10)
        queued(store, studies)
        token = store.create_token("", owner="ann", scope="read")[1]
    with serving(home, url) as (address, _, _), httpx.Client(base_url=address, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        middle = client.get("/v1/studies?limit=100").json()["next"]
        asked = {
            "list, the newest 50": lambda _: "/v1/studies",
            "list, 100 after the first page": lambda _: f"/v1/studies?limit=100&cursor={middle}",
            "list, 50 by state": lambda _: "/v1/studies?state=complete",
            "list, 50 by prefix": lambda index: f"/v1/studies?prefix=study-00{index % 10}",
            "show": lambda index: f"/v1/studies/study-{index * 7919 % studies + 1:06d}",
            "trials as CSV": lambda index: f"/v1/studies/study-{index * 7919 % studies + 1:06d}/trials",
        }
        print(f"{url.partition(':')[0]}, {studies} studies, {10 * studies} trials\n")
        print("| request | median, ms | 99th percentile, ms |\n|---|---|---|")
        for name, path in asked.items():
            rows = []
            for index in range(repeats + 3):
                began = time.perf_counter()
                assert client.get(path(index)).status_code == 200
                rows.append(1000 * (time.perf_counter() - began))
            print(f"| {name} | {statistics.median(rows[3:]):.1f} | {percentile(rows[3:], 99):.1f} |", flush=True)


class Client:
    """A client that takes little CPU time: it sends fixed requests and reads no more of a response than it needs.

    200 of httpx took 2.1 ms of processor time a list, as much as the service, and waited for each other in one loop.
    """

    def __init__(self, address: str, token: str) -> None:
        self._host, _, self._port = address.removeprefix("http://").partition(":")
        self._token = token

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))

    async def ask(self, path: str) -> str:
        """Send a request; return the status of the response, whose body is not read yet."""
        text = f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        self._writer.write(text.encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        self._length = int(head.partition("content-length:")[2].partition("\r")[0] or 0)
        return head.split()[1]

    async def body(self) -> bytes:
        return await self._reader.readexactly(self._length)

    async def line(self) -> str:
        return (await self._reader.readline()).decode()

    def close(self) -> None:
        self._writer.close()


async def listing(client: Client, ends: float, samples: Samples) -> None:
    """List once per second; later lists are counted separately, since all clients start in the first second."""
    await client.open()
    opened = time.perf_counter()
    while time.monotonic() < ends:
        began = time.perf_counter()
        status = await client.ask("/v1/studies?limit=20")
        body = await client.body()
        waited = 1000 * (time.perf_counter() - began)
        samples[f"list, {status}"].append(waited)
        if began - opened >= ARRIVAL_SECONDS:
            samples[f"list, {status}, after a client's first {ARRIVAL_SECONDS} s"].append(waited)
        assert len(json.loads(body)["studies"]) == STUDIES, body
        await asyncio.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
    client.close()


async def following(client: Client, name: str, samples: Samples) -> None:
    """Follow a study; the time until the stream begins is measured."""
    await client.open()
    began = time.perf_counter()
    try:
        status = await client.ask(f"/v1/studies/{name}/events")
        while line := await client.line():
            if line.startswith("retry"):
                samples[f"start of a stream, {status}"].append(1000 * (time.perf_counter() - began))
            elif line.startswith("event"):
                samples["events"].append(0.0)
    finally:
        client.close()


async def visit(address: str, tokens: list[str], clients: int, seconds: float) -> Samples:
    """Let clients list and follow studies; return their waiting times in milliseconds, by kind of request."""
    samples: Samples = defaultdict(list)
    ends = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            owner = number % len(tokens)
            await asyncio.sleep(1.0 / clients)  # clients do not all begin in the same moment
            group.create_task(listing(Client(address, tokens[owner]), ends, samples))
            group.create_task(until(ends, following(Client(address, tokens[owner]), f"trained-{owner}", samples)))
    return samples


async def until(ends: float, task: Coroutine[None, None, None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, ends - time.monotonic())):
            await task


def owned(url: str) -> list[str]:
    """Fill a store with studies of many owners; return one token per owner."""
    tokens = []
    with Store.open(url) as store:
        for owner in range(OWNERS):
            tokens.append(store.create_token("", owner=f"owner-{owner}", scope="read")[1])
            for number in range(STUDIES):
                name = f"trained-{owner}" if number == 0 else f"owner-{owner}-{number}"
                each = study(name)
                store.enqueue(name, document=each.to_json(), config_hash=each.hash, owner=f"owner-{owner}")
    return tokens


async def weigh(addresses: list[str], servers: list[psutil.Process], tokens: list[str], rounds: int) -> list[Samples]:
    """Return the CPU time per request and per stream of several services, in milliseconds; they take turns."""
    results: list[Samples] = [defaultdict(list) for _ in servers]
    paths = {"list": "/v1/studies?limit=20", "show": "/v1/studies/trained-0", "no route": "/healthz"}
    for turn in range(rounds + 1):
        for samples, address, server in zip(results, addresses, servers, strict=True):
            for name, path in paths.items():
                clients = [Client(address, token) for token in (tokens if name == "list" else tokens[:1])]
                for client in clients:  # anew: the service closes what is idle
                    await client.open()
                before = busy(server)
                for number in range(COST_REQUESTS):
                    assert await clients[number % len(clients)].ask(path) == "200"
                    await clients[number % len(clients)].body()
                if turn:  # the first warms up
                    samples[name].append(1000 * (busy(server) - before) / COST_REQUESTS)
                for client in clients:
                    client.close()
    for samples, address, server in zip(results, addresses, servers, strict=True):
        followers = [
            following(Client(address, tokens[n % OWNERS]), f"trained-{n % OWNERS}", defaultdict(list))
            for n in range(200)
        ]
        tasks = [asyncio.create_task(each) for each in followers]
        await asyncio.sleep(COST_SECONDS)
        before = busy(server)
        await asyncio.sleep(COST_SECONDS)
        samples["stream, per second"].append(1000 * (busy(server) - before) / COST_SECONDS / len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results


def time_costs(home: Path, url: str, rounds: int, against: list[Path]) -> None:
    tokens, checkouts = owned(url), [ROOT, *against]
    with contextlib.ExitStack() as stack:
        ran = [stack.enter_context(serving(home, url, checkout)) for checkout in checkouts]
        costs = asyncio.run(weigh([each[0] for each in ran], [each[2] for each in ran], tokens, rounds))
    print(f"{url.partition(':')[0]}, median of {rounds} rounds of {COST_REQUESTS} requests\n")
    print(f"| CPU time, ms | this checkout | {' | '.join(map(str, against))} |\n|---|{'---|' * len(checkouts)}")
    for name in costs[0]:
        print(f"| {name} | {' | '.join(f'{statistics.median(each[name]):.2f}' for each in costs)} |")


def time_clients(home: Path, url: str, clients: int, seconds: float) -> None:
    tokens = owned(url)
    (home / "study.yaml").write_text(yaml.safe_dump({**STUDY, "name": "trained-0"}), encoding="utf-8")
    with serving(home, url) as (address, environment, server):
        command = [sys.executable, "-c", CALL, "run", str(home / "study.yaml"), "--quiet"]
        with (
            subprocess.Popen(command, env=environment, start_new_session=True) as trained,
            Store.open(url) as store,
        ):
            try:
                while not epochs_of(store):
                    assert trained.poll() is None, "the study did not run"
                    time.sleep(0.5)
                stand_back(trained.pid)
                before = epochs_of(store), busy(server), time.process_time()
                visits = asyncio.run(visit(address, tokens, clients, seconds))
                epochs, served = epochs_of(store) - before[0], busy(server) - before[1]
                client_seconds = time.process_time() - before[2]
            finally:
                trained.terminate()
    print(f"{url.partition(':')[0]}, {clients} clients of {OWNERS} owners, {seconds:.0f} s, {epochs} epochs trained\n")
    print("| request | number | median, ms | 99th percentile, ms | maximum, ms |\n|---|---|---|---|---|")
    for name, times in sorted(visits.items()):
        if name != "events":
            shown = (statistics.median(times), percentile(times, 99), max(times))
            print(f"| {name} | {len(times)} | {' | '.join(f'{each:.0f}' for each in shown)} |")
    shares = f"{100 * served / seconds:.0f}% of a CPU core, the clients {100 * client_seconds / seconds:.0f}%"
    print(f"\n{len(visits['events'])} events were received; the service took {shares}")


def busy(process: psutil.Process) -> float:
    """Return the CPU time of a process so far, in seconds."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def stand_back(driver: int) -> None:
    """Lower the scheduling weight of a driver's child processes to an eighth; no effect without Linux autogroups."""
    for process in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text("10")


def epochs_of(store: Store) -> int:
    with store._database.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(tables.epochs)) or 0


def percentile(values: list[float], share: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["studies", "clients", "costs"])
    parser.add_argument("--url", help="URL of an empty database (default: SQLite in a temporary folder)")
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--against", type=Path, action="append", default=[], help="another checkout to compare with; can be repeated"
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/store.db"
        if options.what == "studies":
            time_studies(Path(folder), url, options.studies, options.repeats)
        elif options.what == "costs":
            time_costs(Path(folder), url, options.rounds, options.against)
        else:
            time_clients(Path(folder), url, options.clients, options.seconds)


if __name__ == "__main__":
    main()
