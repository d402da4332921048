"""Who is next, with how many trials at once, and who makes room: a function of queue and cluster, without effects.

Every owner is entitled to an equal share of the cluster (or to the operator's shares), counted by the resource of which
the owner holds most: places for studies, CPUs or GPUs. The owner who holds least is next; among the own studies
priority decides, then who has waited longest. Where there is no room, owners who hold more than their share make room
at once, and all others after their turn. docs/decisions/shares-of-the-cluster.md says why.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heapify, heappop, heapreplace
from math import floor, inf

from nas_blockout.serialization import count_of
from services.cluster.jobs import Node, lacking_room, resources_text, room
from services.store import QueueSummary, Waiting

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Demand:
    """What a study asks of a cluster.

    Args:
        trials: Trials at once, at most.
        cpus: CPUs of a rank of a trial.
        gpus: GPUs of a trial.
        ranks: Ranks of a trial.
        apart: Whether these may be on several nodes.
    """

    trials: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    ranks: int = 1
    apart: bool = False

    @property
    def trial(self) -> "Use":
        """What one trial takes."""
        return Use(0, self.cpus * self.ranks, self.gpus)


@dataclass(frozen=True, slots=True)
class Use:
    """What is taken of a cluster, or what it has: places for studies, CPUs and GPUs."""

    studies: float = 0.0
    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: "Use") -> "Use":
        return Use(self.studies + other.studies, self.cpus + other.cpus, self.gpus + other.gpus)

    def __mul__(self, number: float) -> "Use":
        return Use(self.studies * number, self.cpus * number, self.gpus * number)

    def __sub__(self, other: "Use") -> "Use":
        return self + other * -1

    def times_in(self, room: "Use") -> float:
        """Return how often this fits into a room, a whole number; infinite if it takes nothing."""
        pairs = ((self.studies, room.studies), (self.cpus, room.cpus), (self.gpus, room.gpus))
        return min((floor(has / takes + _ROUNDING) for takes, has in pairs if takes > 0), default=inf)

    def share_of(self, total: "Use") -> float:
        """Return the largest share of a resource of the total that this is; of what there is not, nothing counts."""
        pairs = ((self.studies, total.studies), (self.cpus, total.cpus), (self.gpus, total.gpus))
        return max((takes / has for takes, has in pairs if has > 0), default=0.0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A study in the queue.

    Args:
        row: The study in the queue.
        demand: What it asks for.
        seconds_left: How long it is expected to run on; None if that is not known.
    """

    row: QueueSummary
    demand: Demand = Demand()
    seconds_left: float | None = None

    @property
    def runs(self) -> bool:
        """Whether it has been started, and is not about to make room."""
        return self.row.state == "running" and self.row.yields is None

    @property
    def width(self) -> int:
        """Trials that it may run at once; before it was given a number, as many as it asks for."""
        return self.row.width or self.demand.trials


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator has set.

    Args:
        studies: Places for studies: how many run at once.
        turn_seconds: How long a study may run before it makes room for an owner who holds less.
        shares: Shares of owners, 1 for those that are not in it.
        trials: Trials that an owner may run at once; None for no limit.
    """

    studies: int = 4
    turn_seconds: float = 600.0
    shares: Mapping[str, float] = field(default_factory=dict)
    trials: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Args:
        starts: Trials that each study to be started may run at once, by study, in order.
        yields: Why each running study has to make room, by study.
        waiting: What is said of all other studies that wait, by study.
    """

    starts: Mapping[str, int]
    yields: Mapping[str, str]
    waiting: Mapping[str, Waiting]


def plan(
    entries: Sequence[Entry],
    nodes: Sequence[Node],
    policy: Policy,
    *,
    now: datetime,
    held_back: Mapping[str, str] | None = None,
) -> Plan:
    """Return which studies start, which make room, and what is said of those that wait.

    Args:
        entries: All studies that wait or run.
        nodes: The machines of the cluster.
        policy: What the operator has set.
        now: Time of the store's clock.
        held_back: By study, why it may not start, whatever room there is.
    """
    held_back = held_back or {}
    waiting: dict[str, Waiting] = {}
    in_line: list[Entry] = []
    for entry in entries:
        if entry.row.state != "queued":
            continue
        if reason := held_back.get(entry.row.study):
            waiting[entry.row.study] = Waiting(None, reason)
        elif not _fits(entry.demand, nodes):
            reason = f"set aside: {_lacking(entry, nodes)}"
            waiting[entry.row.study] = Waiting(None, reason, set_aside_at=entry.row.set_aside_at or now)
        else:
            in_line.append(entry)
    state = _Round([entry for entry in entries if entry.row.state == "running"], in_line, nodes, policy, now)
    stay = [entry for entry in state.order(in_line) if not state.start(entry)]
    for position, entry in enumerate(stay, 1):
        waiting[entry.row.study] = Waiting(position, state.reason(entry), state.expected(entry, position))
    if not stay:
        state.widen()
    return Plan(state.starts, state.yields, waiting)


class _Round:
    """One decision: who holds what, changed by every start and by everyone who makes room."""

    def __init__(
        self, running: Sequence[Entry], in_line: Sequence[Entry], nodes: Sequence[Node], policy: Policy, now: datetime
    ) -> None:
        self._policy, self._now, self._nodes = policy, now, nodes
        self._total = Use(policy.studies, sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
        self._running = [entry for entry in running if entry.runs]
        # What is left of the room that a study makes for others is its own: no other one of its owner takes it.
        self._leaving = {entry.row.owner for entry in running if not entry.runs}
        self._started: list[tuple[Entry, int]] = []
        owners = {entry.row.owner for entry in (*running, *in_line)}
        self._alone = len(owners) <= 1
        # Divided by their shares, all owners are entitled to the same.
        self._entitled = 1 / sum(self._weight(owner) for owner in owners) if owners else 1.0
        self._kept_free = False
        self._uses: dict[str, Use] = {}  # what owners hold, as long as nobody starts or leaves
        self._unused: Use | None = None
        self.starts: dict[str, int] = {}
        self.yields: dict[str, str] = {}

    def order(self, in_line: Iterable[Entry]) -> list[Entry]:
        """Return who is next, after whom: always the owner who holds least, counting those before it in line."""
        queues: dict[str, list[Entry]] = {}
        for entry in sorted(in_line, key=_own_order):
            queues.setdefault(entry.row.owner, []).append(entry)
        uses = {owner: self._use(owner) for owner in queues}
        own = {owner: deque(waiting) for owner, waiting in queues.items()}
        ordered = []
        heap = [(self._weighed(uses[owner], owner), _age(own[owner][0]), owner) for owner in own]
        heapify(heap)  # thousands may wait, and this is done every second
        while heap:
            _, _, owner = heap[0]
            entry = own[owner].popleft()
            ordered.append(entry)
            uses[owner] += _use(entry.demand, self._cap(entry))
            if own[owner]:
                heapreplace(heap, (self._weighed(uses[owner], owner), _age(own[owner][0]), owner))
            else:
                heappop(heap)
        return ordered

    def start(self, entry: Entry) -> bool:
        """Start a study if there is room for it, or can be made; return whether it starts."""
        if self._kept_free or self._own_trials(entry) < 1 or entry.row.owner in self._leaving:
            return False
        width = self._room(entry)
        if not width and (leaving := self._who_makes_room(entry)):
            for each in leaving:
                self._leave(each, _MADE_ROOM)
            width = self._room(entry)
        if width:
            self.starts[entry.row.study] = width
            self._started.append((entry, width))
            self._forget()
        # Otherwise small studies could pass by a large one for ever.
        elif self._is_entitled(entry) and self._waited(entry) >= self._policy.turn_seconds:
            self._kept_free = True
        return bool(width)

    def widen(self) -> None:
        """Let one study start again with more trials at once if it has room for twice as many, and nobody waits."""
        for entry in list(self._running):
            if self._elapsed(entry) < self._policy.turn_seconds or entry.width >= entry.demand.trials:
                continue
            self._running.remove(entry)
            self._forget()
            width = self._room(entry)
            self._running.append(entry)
            self._forget()
            if width >= 2 * entry.width:
                self._leave(entry, f"goes on with {count_of(width, 'trial')} at once, now that there is room for them")
                return

    def reason(self, entry: Entry) -> str:
        """Return why a study waits, in one sentence."""
        if (most := self._policy.trials) is not None and self._own_trials(entry) < 1:
            trials = count_of(most, "trial")
            return f"waits for its owner's other studies, which run the {trials} at once that an owner may have"
        if entry.row.owner in self._leaving:
            return "waits for another study of its owner, which makes room"
        free, trial = self._free(), entry.demand.trial
        if free.studies < 1:
            places = self._policy.studies
            return f"waits for a place: {places} {'studies run' if places > 1 else 'study runs'}, which is the most"
        if trial.times_in(free) < 1:
            return (
                f"waits for room: a trial takes {resources_text(trial.cpus, trial.gpus)}, and "
                f"{resources_text(max(0.0, free.cpus), max(0.0, free.gpus))} are not in use"
            )
        return "waits for a larger study that has waited longer"

    def expected(self, entry: Entry, position: int) -> datetime | None:
        """Return when a study is expected to start: once so many running ones have ended or made room."""
        mine = self._weighed(self._use(entry.row.owner), entry.row.owner)
        ends = []
        for each in self._running:
            left = inf if each.seconds_left is None else each.seconds_left
            if each.row.owner != entry.row.owner and self._weighed(self._use(each.row.owner), each.row.owner) >= mine:
                left = min(left, max(0.0, self._policy.turn_seconds - self._elapsed(each)))
            ends.append(left)
        ends = sorted(end for end in ends if end < inf)
        return self._now + timedelta(seconds=ends[position - 1]) if position <= len(ends) else None

    def _who_makes_room(self, entry: Entry) -> list[Entry]:
        """Return the running studies that make room for one, as few as possible; none if that would not be enough."""
        owner, leaving = entry.row.owner, list[Entry]()
        holds, entitled = self._weighed(self._use(owner), owner), self._is_entitled(entry)
        others = [each for each in self._running if each.row.owner != owner]
        need = entry.demand.trial + Use(studies=1)
        while need.times_in(self._free() + _sum(leaving)) < 1:
            left = [each for each in others if each not in leaving]
            pool = [each for each in left if entitled and self._has_too_much(each, leaving)]
            # The one that has run least: it loses least. Of those whose turn is over the one that has run longest.
            latest = max(pool, key=lambda each: (self._held(each, leaving), *_started(each)), default=None)
            done = [each for each in left if self._turn_is_over(each, leaving, holds=holds)]
            chosen = latest or max(done, key=self._elapsed, default=None)
            if chosen is None:
                return []
            leaving.append(chosen)
        return leaving

    def _is_entitled(self, entry: Entry) -> bool:
        """Whether the owner of a study would hold no more than a share with one trial of it, or holds nothing yet."""
        held = self._use(entry.row.owner)
        asked = self._weighed(held + _use(entry.demand, 1), entry.row.owner)
        return held == Use() or asked <= self._entitled + _ROUNDING

    def _has_too_much(self, entry: Entry, leaving: Sequence[Entry]) -> bool:
        """Whether the owner of a running study holds more than a share, and not just one trial of one study."""
        own = [each for each in self._running if each.row.owner == entry.row.owner and each not in leaving]
        smallest = len(own) == 1 and entry.width == 1
        return not smallest and self._held(entry, leaving) > self._entitled + _ROUNDING

    def _turn_is_over(self, entry: Entry, leaving: Sequence[Entry], *, holds: float) -> bool:
        return self._elapsed(entry) >= self._policy.turn_seconds and self._held(entry, leaving) >= holds

    def _held(self, entry: Entry, leaving: Sequence[Entry]) -> float:
        """Return what the owner of a running study holds apart from what is leaving."""
        owner = entry.row.owner
        mine = _sum(each for each in leaving if each.row.owner == owner)
        return self._weighed(self._use(owner) - mine, owner)

    def _leave(self, entry: Entry, reason: str) -> None:
        self._running.remove(entry)
        self._leaving.add(entry.row.owner)
        self._forget()
        self.yields[entry.row.study] = reason

    def _room(self, entry: Entry) -> int:
        """Return how many trials of a study fit into what is free and what its owner may have, 0 for no room."""
        free = self._free()
        if free.studies < 1:
            return 0
        fit = entry.demand.trial.times_in(free)
        return int(max(0, min(fit, self._cap(entry), self._own_trials(entry))))

    def _cap(self, entry: Entry) -> int:
        """Return how many trials of a study its owner may run without holding more than a share; at least one."""
        most = min(entry.demand.trials, _fits(entry.demand, self._nodes))
        if self._alone:
            return most
        owner = entry.row.owner
        share = self._total * (self._entitled * self._weight(owner))
        left = share - self._use(owner)
        return int(max(1, min(most, entry.demand.trial.times_in(left))))

    def _own_trials(self, entry: Entry) -> float:
        """Return how many trials more the owner of a study may run at once."""
        if self._policy.trials is None:
            return inf
        owner = entry.row.owner
        running = sum(each.width for each in self._running if each.row.owner == owner)
        return self._policy.trials - running - sum(width for each, width in self._started if each.row.owner == owner)

    def _free(self) -> Use:
        if self._unused is None:
            starting = (_use(entry.demand, width) for entry, width in self._started)
            self._unused = self._total - _sum(self._running) - sum(starting, Use())
        return self._unused

    def _use(self, owner: str) -> Use:
        if owner not in self._uses:
            starting = (_use(entry.demand, width) for entry, width in self._started if entry.row.owner == owner)
            running = _sum(each for each in self._running if each.row.owner == owner)
            self._uses[owner] = running + sum(starting, Use())
        return self._uses[owner]

    def _forget(self) -> None:
        self._uses.clear()
        self._unused = None

    def _weight(self, owner: str) -> float:
        return self._policy.shares.get(owner, 1.0)

    def _weighed(self, use: Use, owner: str) -> float:
        return use.share_of(self._total) / self._weight(owner)

    def _waited(self, entry: Entry) -> float:
        return (self._now - entry.row.waiting_since).total_seconds()

    def _elapsed(self, entry: Entry) -> float:
        return (self._now - _started(entry)[0]).total_seconds()


_MADE_ROOM = "made room for another owner, who holds less of the cluster; it goes on where it stopped"


def _use(demand: Demand, width: int) -> Use:
    return demand.trial * width + Use(studies=1)


def _sum(entries: Iterable[Entry]) -> Use:
    return sum((_use(entry.demand, entry.width) for entry in entries), Use())


def _age(entry: Entry) -> tuple[datetime, int]:
    return (entry.row.waiting_since, entry.row.id)


def _started(entry: Entry) -> tuple[datetime, int]:
    return (entry.row.started_at or entry.row.updated_at, entry.row.id)


def _own_order(entry: Entry) -> tuple[int, datetime, int]:
    return (-entry.row.priority, *_age(entry))


def _fits(demand: Demand, nodes: Sequence[Node]) -> int:
    return room(nodes, cpus=demand.cpus, gpus=demand.gpus, ranks=demand.ranks, apart=demand.apart)


def _lacking(entry: Entry, nodes: Sequence[Node]) -> str:
    demand = entry.demand
    return lacking_room(
        entry.row.study, nodes, cpus=demand.cpus, gpus=demand.gpus, ranks=demand.ranks, apart=demand.apart
    )
