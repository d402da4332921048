"""The trial: the one value that the store, the scheduler, the driver, the comparison, the report and the replay share.

The counterpart of Optuna's ``FrozenTrial``. It never changes; a new state is a new value, made with
`dataclasses.replace`. `Params` is what is stored under ``params``: nothing else knows the keys of that document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas_blockout.experiment import Experiment

Json = Mapping[str, Any]
TrialKey = tuple[str, str, int]

SEARCH, RETRAIN = "search", "retrain"
TERMINAL = frozenset({"complete", "failed", "pruned"})
NOT_STORED = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Infeasible:
    """A proposal that exceeded a constraint and was not trained.

    Args:
        values: Parameters by name.
        distributions: What each was drawn from, as Optuna's JSON text.
        exceeded: By quantity its value and the limit.
    """

    values: Json
    distributions: Mapping[str, str]
    exceeded: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Params:
    """What the search chose for a trial.

    Args:
        values: Parameters by name.
        distributions: What each was drawn from, as Optuna's JSON text.
        infeasible: Proposals that exceeded a constraint before this one was found.
        sampler: What the sampler must find again with the trial, such as its generation.
        enqueued: Whether the study file has named these values, and no searcher.
        search_exhausted: Why no proposal is left to train, or None. Such a trial has no values: it fails at once and
            stands in the store for the end of its search.
    """

    values: Json = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)
    infeasible: tuple[Infeasible, ...] = ()
    sampler: Json = field(default_factory=dict)
    enqueued: bool = False
    search_exhausted: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the document that the store keeps."""
        document: dict[str, Any] = {}
        if self.search_exhausted is None:
            document |= {"values": dict(self.values), "distributions": dict(self.distributions)}
        if self.infeasible:
            document["infeasible"] = [
                {
                    "values": dict(proposal.values),
                    "distributions": dict(proposal.distributions),
                    "exceeded": {name: list(pair) for name, pair in proposal.exceeded.items()},
                }
                for proposal in self.infeasible
            ]
        if self.sampler:
            document["sampler"] = dict(self.sampler)
        if self.enqueued:
            document["enqueued"] = True
        if self.search_exhausted is not None:
            document["search_exhausted"] = self.search_exhausted
        return document


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a study: a configuration that was proposed or retrained, what it cost and what it gave.

    Args:
        arm: Name of the arm.
        phase: ``search`` or ``retrain``.
        number: Position among the trials of the arm and phase, from 0.
        seed: Seed of its experiment.
        state: ``queued``, ``running``, ``complete``, ``failed`` or ``pruned``.
        sample_passes: Sample passes that it has cost so far.
        planned: Sample passes that it is meant to cost; 0 where the search was exhausted.
        seconds: Measured training time so far.
        suggest_seconds: Time that the optimizer took to propose it.
        score: Metric of its study on validation images, in [0, 1], of a complete trial, or None.
        experiment: What is run, as plain JSON types; `config` has it typed.
        params: What the search chose, as plain JSON types; empty for retrained trials.
        result: What it ended in, as plain JSON types, or None. Of a complete trial ``validation_accuracy``,
            ``parameters``, ``macs``, ``architecture`` (its JSON form), ``architecture_hash``, ``structure`` (how far it
            branches), ``overhead_seconds``, ``gap``, ``probabilities`` (P by layer, nodes x clusters),
            ``membership_ends`` (to which end P came, by layer) and, of a retrained one, ``test_accuracy``,
            ``confusion`` (true x predicted) and ``predictions`` (the class given to each test image); of a
            pruned trial ``validation_accuracy`` or ``validation_balanced_accuracy``, and ``stopped_after``.
        architecture_hash: Canonical hash of the architecture that was proposed, or None.
        replicate_of: Number of the search trial of the same arm that had the same architecture, or None.
        reason: Why it failed or was pruned, or None.
        curve: The same metric after every epoch so far; kept only where trials may be stopped early.
        id: Identity in the store, -1 until it is there.
        study: Name of the study, empty until it is in the store.
        created_at: When it was put into the store; `NOT_STORED` until it is there.
        started_at: When its first attempt began, or None.
        finished_at: When it ended, or None.
    """

    arm: str
    phase: str
    number: int
    seed: int
    state: str
    sample_passes: int = 0
    planned: int = 0
    seconds: float = 0.0
    suggest_seconds: float = 0.0
    score: float | None = None
    experiment: Json = field(default_factory=dict, repr=False)
    params: Json = field(default_factory=dict, repr=False)
    result: Json | None = field(default=None, repr=False)
    architecture_hash: str | None = None
    replicate_of: int | None = None
    reason: str | None = None
    curve: tuple[float, ...] = ()
    id: int = -1
    study: str = ""
    created_at: datetime = NOT_STORED
    started_at: datetime | None = None
    finished_at: datetime | None = None
    # Parsed on first use. `replace` starts it anew, so that it cannot belong to another `experiment`.
    _config: "Experiment | None" = field(default=None, init=False, repr=False, compare=False)

    @property
    def key(self) -> TrialKey:
        """Arm, phase and number: identifies the trial in its study, whether or not it is in the store."""
        return self.arm, self.phase, self.number

    @property
    def ended(self) -> bool:
        """Whether it is complete, failed or pruned."""
        return self.state in TERMINAL

    @property
    def is_model(self) -> bool:
        """Whether it is a retrained model."""
        return self.phase == RETRAIN and self.state == "complete"

    @property
    def fold(self) -> int | None:
        """The fold that is held out of its training, or None without folds."""
        fold: int | None = self.experiment.get("data", {}).get("fold")
        return fold

    def known_as(self, config: "Experiment") -> "Trial":
        """Return itself with its experiment, which the caller has and which need not be parsed again."""
        object.__setattr__(self, "_config", config)
        return self

    @property
    def config(self) -> "Experiment":
        """The experiment.

        Raises:
            ValueError: The document is no experiment; the message names the key.
        """
        if self._config is None:
            from nas_blockout.experiment import Experiment  # imports torch, which readers of the store do without

            object.__setattr__(self, "_config", Experiment.from_json(self.experiment))
            assert self._config is not None
        return self._config

    def trimmed(self) -> "Trial":
        """Return itself with the numbers and texts of its result alone.

        Lists, such as probabilities, may take megabytes, and whoever keeps all trials of a study needs none of them.
        """
        if self.result is None:
            return self
        return replace(self, result={key: value for key, value in self.result.items() if not _is_nested(value)})

    def light(self) -> "Trial":
        """Return itself without its experiment and without its lists: enough to count it and what it cost."""
        return replace(self.trimmed(), experiment={})

    # -- what the search chose

    @property
    def is_suggested(self) -> bool:
        """Whether a searcher chose its parameters: neither a retrained trial nor the end of an exhausted search."""
        return "values" in self.params

    @property
    def values(self) -> Json:
        """Parameters by name."""
        values: Json = self.params.get("values", {})
        return values

    @property
    def distributions(self) -> Mapping[str, str]:
        """What each parameter was drawn from, as Optuna's JSON text."""
        distributions: Mapping[str, str] = self.params.get("distributions", {})
        return distributions

    @property
    def sampler(self) -> Json:
        """What its sampler noted with it, such as its generation."""
        noted: Json = self.params.get("sampler", {})
        return noted

    @property
    def infeasible(self) -> tuple[Infeasible, ...]:
        """Proposals that exceeded a constraint before this one was found."""
        return tuple(Infeasible(**proposal) for proposal in self.params.get("infeasible", ()))

    @property
    def proposals(self) -> int:
        """How many proposals it stands for: its own, unless the search was exhausted, and the infeasible ones."""
        return len(self.params.get("infeasible", ())) + (self.search_exhausted is None)

    @property
    def search_exhausted(self) -> str | None:
        """Why no proposal was left to train, or None."""
        reason: str | None = self.params.get("search_exhausted")
        return reason

    # -- what it ended in

    @property
    def outcome(self) -> Json:
        """The result; empty where there is none."""
        return self.result or {}

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates an image of the network that it ended in, if known."""
        macs: int | None = self.outcome.get("macs")
        return macs

    def measured(self, quantity: str) -> float | None:
        """Return ``accuracy``, ``parameters``, ``macs`` or ``latency_ms`` of what the trial ended in, if known."""
        value: float | None = self.score if quantity == "accuracy" else self.outcome.get(quantity)
        return value

    @property
    def stopped_at(self) -> tuple[int, float] | None:
        """Of a pruned trial the epochs after which it was stopped and its validation accuracy there, else None."""
        if self.state != "pruned" or not self.result:
            return None
        metrics = ("validation_accuracy", "validation_balanced_accuracy")  # it has that which its study goes by
        return self.result["stopped_after"], next(self.result[name] for name in metrics if name in self.result)

    @property
    def usage(self) -> Json:
        """What a complete trial took of its device, see `nas_blockout.devices.Usage`; empty if it was not measured."""
        return self.outcome.get("usage") or {}

    @property
    def images_per_second(self) -> float | None:
        """Sample passes over the seconds of training and validation; None before there are any."""
        return self.sample_passes / self.seconds if self.seconds > 0 else None

    # -- what its arm is charged with

    @property
    def charged_passes(self) -> int:
        """Sample passes that are spent or committed: what an ended trial has cost, what any other may cost."""
        return self.sample_passes if self.ended else self.planned

    @property
    def charged_seconds(self) -> float:
        """Measured seconds: proposing, training, and the derivation of the network between its two stages."""
        return self.seconds + self.suggest_seconds + float(self.outcome.get("overhead_seconds") or 0.0)


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping)
