"""Who is next and who makes room, on a clock and a cluster that exist only here."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cluster.jobs import Node
from services.dispatch.fair_share import Demand, Entry, Plan, Policy, plan
from services.store import QueueRow

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TURN = 600.0
FOUR = (Node(4.0, 0.0),)


class Service:
    """A queue and a cluster: what a plan says is done, and who makes room waits again a round later."""

    def __init__(self, nodes: tuple[Node, ...] = FOUR, policy: Policy | None = None) -> None:
        self.nodes, self.policy = nodes, policy or Policy(turn_seconds=TURN)
        self.entries: dict[str, Entry] = {}
        self.now = BEGAN
        self.yields = 0
        self.last = Plan({}, {}, {})

    def submit(self, owner: str, *names: str, priority: int = 0, demand: Demand | None = None) -> None:
        for name in names:
            row = QueueRow(
                id=len(self.entries) + 1,
                study=name,
                owner=owner,
                state="queued",
                config_hash="cafe",
                worker=None,
                lease_until=None,
                job=None,
                attempt=0,
                first_attempt=0,
                message="",
                created_at=self.now,
                updated_at=self.now,
                document={},
                priority=priority,
            )
            self.entries[name] = Entry(row, demand or Demand())

    def change(self, name: str, **changes: object) -> None:
        entry = self.entries[name]
        self.entries[name] = replace(entry, row=replace(entry.row, **changes))  # type: ignore[arg-type]

    def end(self, *names: str) -> None:
        for name in names:
            del self.entries[name]

    def round(self, seconds: float = 1.0, **held_back: str) -> Plan:
        """Pass some time, let those wait again that were asked to, decide, and do what was decided."""
        self.now += timedelta(seconds=seconds)
        for name, entry in self.entries.items():
            if entry.row.yields is not None:
                self.change(name, state="queued", yields=None, width=None, started_at=None)
        self.last = plan(list(self.entries.values()), self.nodes, self.policy, now=self.now, held_back=held_back)
        for name, reason in self.last.yields.items():
            self.change(name, yields=reason)
        for name, width in self.last.starts.items():
            self.change(name, state="running", width=width, started_at=self.now)
        self.yields += len(self.last.yields)
        return self.last

    def running(self) -> dict[str, int]:
        return {name: entry.width for name, entry in self.entries.items() if entry.runs}

    def in_line(self) -> list[str]:
        places = {name: said.position for name, said in self.last.waiting.items() if said.position is not None}
        return sorted(places, key=lambda name: places[name])


def names(prefix: str, number: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{index}" for index in range(number))


@pytest.mark.parametrize("wide", [1, 2, 64])
def test_of_twenty_endless_studies_enough_make_room_for_the_small_one_of_another_owner_at_once(wide: int) -> None:
    service = Service()
    service.submit("ann", *names("endless-", 20), demand=Demand(wide))
    for _ in range(5):
        service.round()
    assert sum(service.running().values()) == 4
    service.submit("bob", "small")
    assert list(service.round().starts) == ["small"]
    assert len(service.last.yields) == 1
    for _ in range(20):
        service.round()
    assert service.running()["small"] == 1
    assert service.yields == 1  # nobody is stopped again and again
    assert sum(service.running().values()) == 4
    assert sorted(service.running()) == [*names("endless-", 2 + (wide == 1)), "small"]  # those that were first


def test_a_study_of_all_processors_makes_room_and_goes_on_with_its_share() -> None:
    service = Service()
    service.submit("ann", "wide", demand=Demand(64))
    service.round()
    assert service.running() == {"wide": 4}
    service.submit("bob", "other", demand=Demand(64))
    service.round()
    service.round()
    assert service.running() == {"wide": 2, "other": 2}
    service.end("other")
    for _ in range(3):
        service.round()
    assert service.running() == {"wide": 2}  # it is not stopped for every change
    service.round(TURN)
    service.round()
    assert service.running() == {"wide": 4}


def test_an_impossible_study_is_set_aside_and_said_and_blocks_nobody() -> None:
    service = Service()
    service.submit("ann", "impossible", demand=Demand(cpus=256))
    service.submit("bob", "small")
    service.round()
    said = service.last.waiting["impossible"]
    assert (said.position, said.expected_at, said.set_aside_at) == (None, None, service.now)
    assert said.message == (
        "set aside: one trial of study 'impossible' needs 256 CPUs and 0 GPUs on one node, the cluster has 1 node of "
        "4 CPUs and 0 GPUs; lower workers.cpus or workers.gpus of the study, or add a node"
    )
    assert list(service.running()) == ["small"]
    service.nodes += (Node(256.0, 0.0),)
    assert list(service.round().starts) == ["impossible"]


def test_priority_orders_the_studies_of_an_owner_and_gives_nothing_over_others() -> None:
    service = Service(policy=Policy(studies=1, turn_seconds=TURN))
    service.submit("ann", "first")
    service.round()
    service.submit("ann", "low", "high", priority=0)
    service.change("high", priority=5)
    service.submit("bob", "late", priority=-7)
    service.round()
    assert service.in_line() == ["late", "high", "low"]


def test_a_resumed_study_waits_behind_those_that_wait() -> None:
    service = Service(policy=Policy(studies=1, turn_seconds=TURN))
    service.submit("ann", "running", "old", "new")
    service.round()
    service.change("old", queued_at=service.now + timedelta(seconds=1))
    service.round(5)
    assert service.in_line() == ["new", "old"]


def test_owners_with_little_go_first_whatever_the_others_have_queued_before() -> None:
    service = Service(policy=Policy(studies=3, turn_seconds=TURN))
    service.submit("ann", *names("a", 9))
    service.submit("bob", *names("b", 2))
    service.submit("cid", "c0")
    service.round()
    assert list(service.running()) == ["a0", "b0", "c0"]
    assert service.in_line()[:3] == ["a1", "b1", "a2"]


def test_shares_of_the_operator_decide_how_much_an_owner_has() -> None:
    service = Service((Node(6.0, 0.0),), Policy(studies=6, turn_seconds=TURN, shares={"ann": 2.0}))
    service.submit("ann", *names("a", 9))
    service.submit("bob", *names("b", 9))
    service.round()
    assert sorted(service.running()) == ["a0", "a1", "a2", "a3", "b0", "b1"]


def test_an_owner_runs_so_many_trials_at_once() -> None:
    service = Service((Node(64.0, 0.0),), Policy(studies=8, turn_seconds=TURN, trials=5))
    service.submit("ann", *names("a", 3), demand=Demand(3))
    service.submit("bob", "b0", demand=Demand(3))
    service.round()
    assert service.running() == {"a0": 3, "a1": 2, "b0": 3}
    assert service.last.waiting["a2"].message == (
        "waits for its owner's other studies, which run the 5 trials at once that an owner may have"
    )


def test_what_is_held_back_waits_with_its_reason() -> None:
    service = Service()
    service.submit("ann", "a0", "a1")
    assert list(service.round(a0="waits: of all things").starts) == ["a1"]
    assert (service.last.waiting["a0"].message, service.last.waiting["a0"].position) == ("waits: of all things", None)


def test_on_a_cluster_for_one_owners_take_turns() -> None:
    service = Service((Node(1.0, 0.0),))
    service.submit("ann", *names("endless-", 20))
    service.round()
    service.submit("bob", "small")
    service.round()
    assert list(service.running()) == ["endless-0"]
    assert service.last.waiting["small"].position == 1
    expected = service.last.waiting["small"].expected_at
    assert expected == BEGAN + timedelta(seconds=1 + TURN)
    service.round(TURN)
    assert list(service.running()) == ["small"]
    service.round(TURN / 2)
    assert list(service.running()) == ["small"]
    service.round(TURN / 2)
    assert list(service.running()) == ["endless-0"]  # it had waited longest


def test_small_studies_do_not_pass_by_a_large_one_for_ever() -> None:
    service = Service()
    service.submit("ann", "a0", "a1")
    service.round()
    service.submit("bob", "large", demand=Demand(cpus=4))
    service.submit("cid", *names("c", 30))
    for number in range(30):
        if number % 3 == 0:
            for name in [name for name in service.running() if name.startswith("c")]:
                service.end(name)
        service.round(TURN / 10)
        if "large" in service.running():
            break
    assert service.running() == {"large": 1}


def test_a_study_waits_for_gpus_and_says_so() -> None:
    service = Service((Node(64.0, 2.0),), Policy(studies=8, turn_seconds=TURN))
    service.submit("ann", "a0", "a1", demand=Demand(2, gpus=1.0))
    service.submit("ann", "cpu", demand=Demand(2))
    service.round()
    assert service.running() == {"a0": 2, "cpu": 2}
    assert service.last.waiting["a1"].message == (
        "waits for room: a trial takes 1 CPU and 1 GPU, and 60 CPUs and 0 GPUs are not in use"
    )


def test_the_estimate_is_when_so_many_of_those_that_run_have_ended() -> None:
    service = Service(policy=Policy(studies=2, turn_seconds=TURN))
    service.submit("ann", *names("a", 5))
    service.round()
    service.entries["a0"] = replace(service.entries["a0"], seconds_left=90.0)
    service.round()
    assert service.last.waiting["a2"].expected_at == service.now + timedelta(seconds=90)
    assert service.last.waiting["a3"].expected_at is None  # nothing is known of the other
    assert service.last.waiting["a2"].message == "waits for a place: 2 studies run, which is the most"


DEMANDS = st.builds(
    Demand, trials=st.integers(1, 8), cpus=st.sampled_from([1, 2, 4, 9]), gpus=st.sampled_from([0.0, 0.5, 1.0, 3.0])
)
SUBMITTED = st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), DEMANDS, st.integers(-2, 2)), max_size=12)


@given(SUBMITTED, st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 5))
def test_room_is_kept_nobody_starves_and_nobody_is_stopped_without_end(
    submitted: list[tuple[str, Demand, int]], sizes: list[int], studies: int
) -> None:
    nodes = tuple(Node(float(size % 8 + 1), float(size % 3)) for size in sizes)
    service = Service(nodes, Policy(studies=studies, turn_seconds=TURN))
    for number, (owner, demand, priority) in enumerate(submitted):
        service.submit(owner, f"s{number}", demand=demand, priority=priority)
    started: set[str] = set()
    for _ in range(40 * len(submitted) + 1):
        planned = service.round(TURN / 4)
        started |= set(planned.starts)
        taken = [entry for entry in service.entries.values() if entry.runs]
        assert len(taken) <= studies
        assert sum(entry.width * entry.demand.cpus for entry in taken) <= sum(node.cpus for node in nodes)
        assert sum(entry.width * entry.demand.gpus for entry in taken) <= sum(node.gpus for node in nodes) + 1e-6
        waits = {name for name, entry in service.entries.items() if entry.row.state == "queued"}
        assert set(planned.waiting) == waits
        assert all(said.message for said in planned.waiting.values())
    aside = {name for name, said in service.last.waiting.items() if said.position is None}
    # Endless studies of one owner need not make room for the next of the same owner.
    owners = {entry.row.owner for name, entry in service.entries.items() if name not in aside}
    assert owners == {service.entries[name].row.owner for name in started}
    assert service.yields <= 45 * len(submitted)
