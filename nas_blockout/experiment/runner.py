"""A running experiment: one stage, or two with a derivation between them; yields epoch records, ends in an outcome."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.data import AlternatingLoader, Loader, Placement, Splits
from nas_blockout.experiment.branchable import architecture_of
from nas_blockout.experiment.builder import build, expected_macs, plain_state, rebuild
from nas_blockout.experiment.config import Experiment
from nas_blockout.experiment.derivation import EVALUATION_BATCH, STAGE_SEED, Derivation, derive, second_network
from nas_blockout.experiment.knowledge_distillation import StudentWithTeacher
from nas_blockout.graph.macs import count_macs
from nas_blockout.methods.blockdrop import BlockDrop
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.supernet.darts import Darts
from nas_blockout.networks import Network
from nas_blockout.structure.membership_ends import End, ends_of, learned_probabilities, listed
from nas_blockout.structure.two_stages import TwoStageSettings
from nas_blockout.training import ALONE, Checkpoint, EpochRecord, Loaders, Ranks, Saving, TrainingSettings, fit


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an experiment: a plain network in eval mode, its costs, and how it was derived.

    Args:
        model: Gives logits by ``model(x)``, on the device of the run; holds no trace of the method, but for blockdrop,
            which keeps its policy.
        architecture: Of a network built from stages; else None.
        parameters: Trainable parameters.
        macs: Multiply-accumulates an image; with blockdrop their mean over the validation images, the policy counted.
        derivation: How the second stage's network came from the first's, if there were two.
        teacher_passes: Images that passed through the teacher; 0 without one.
        membership_ends: To which end the membership probabilities came, by layer; empty if none were learned.
        probabilities: Membership probabilities that were learned, by layer; empty with a derivation, which has them.
    """

    model: nn.Module
    architecture: Architecture | None
    parameters: int
    macs: int
    derivation: Derivation | None
    teacher_passes: int = 0
    membership_ends: Mapping[str, End] = field(default_factory=dict)
    probabilities: Mapping[str, list[list[float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Continues a run of an experiment, after an epoch or inside one; written whole."""

    stage: str
    checkpoint: Checkpoint
    records: tuple[EpochRecord, ...]
    derivation: Derivation | None

    def to_state(self) -> dict[str, Any]:
        """Return a dictionary that `torch.save` writes and ``torch.load(weights_only=True)`` reads."""
        text = {
            "stage": self.stage,
            "records": [record.to_json() for record in self.records],
            "derivation": self.derivation.to_json() if self.derivation else None,
        }
        return {"checkpoint": self.checkpoint.to_state(), "json": json.dumps(text)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Snapshot":
        """Read a snapshot back from what `torch.load` returned."""
        text = json.loads(state["json"])
        records = tuple(EpochRecord(**record) for record in text["records"])
        derivation = Derivation.from_json(text["derivation"]) if text["derivation"] else None
        return cls(text["stage"], Checkpoint.from_state(state["checkpoint"]), records, derivation)


@dataclass(frozen=True, slots=True)
class SavingRun:
    """Snapshots inside epochs, between two steps of the optimizer.

    Args:
        due: Returns whether to take one now; asked after every step, by several ranks after every few dozen.
        save: Takes one, which holds references, so that it is to be written or copied at once.
    """

    due: Callable[[], bool]
    save: Callable[[Snapshot], None]


class Run(Iterator[EpochRecord]):
    """A running experiment: iterate over it for epoch records, then read its `outcome`.

    Args:
        experiment: What to run.
        splits: Its data; the test images are never read.
        device: Where to train.
        placement: Where the images are; by default on that device, if they fit.
        start: Continue after this snapshot, with the numbers of a run that was never stopped; that of the first rank.
        saving: Takes snapshots inside epochs too; that of the first rank.
        ranks: The processes that run the experiment together. Only the first one has an outcome.
    """

    def __init__(
        self,
        experiment: Experiment,
        splits: Splits,
        *,
        device: str | torch.device = "cpu",
        placement: Placement | None = None,
        start: Snapshot | None = None,
        saving: SavingRun | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.experiment = experiment
        self.splits = splits
        self.device = device
        self.ranks = ranks
        start = _agreed(start, ranks)
        self.outcome: Outcome | None = None
        self.failure: str | None = None
        self.records: list[EpochRecord] = list(start.records) if start else []
        self._start, self._saving = start, saving
        self._stage = start.stage if start else ""
        self._derivation: Derivation | None = start.derivation if start else None
        settings = experiment.training
        self.placement = placement or Placement(device)
        train, validation = splits.trained_on(self.placement)
        self._loading = partial(
            Loader,
            train,
            settings.batch_size,
            augment=experiment.data.augment,
            augment_options=experiment.data.augment_options,
            preprocessing=splits.preprocessing,
            balanced=settings.sampling == "balanced",
        )
        counts = splits.train.labels.bincount(minlength=len(splits.class_names)).tolist()
        self._loaders = Loaders(self._loading(), Loader(validation, EVALUATION_BATCH), tuple(counts))
        self._records = self._run()

    def __next__(self) -> EpochRecord:
        """Train for one epoch and return its record."""
        self._forget()
        try:
            return next(self._records)
        except StopIteration:
            raise
        except Exception as error:
            self.ranks.fail(error)
            raise

    def snapshot(self) -> Snapshot:
        """Return what continues the run after the latest record; holds references, so write it at once."""
        checkpoint = self.records[-1].checkpoint
        assert checkpoint is not None, "a snapshot is taken after an epoch of this run"
        return self._snapshot(checkpoint)

    def _snapshot(self, checkpoint: Checkpoint) -> Snapshot:
        return Snapshot(self._stage, checkpoint, tuple(self.records), self._derivation)

    def _forget(self) -> None:
        """Drop the checkpoint of the latest record, which is valid until the next is asked for."""
        if self.records and self.records[-1].checkpoint is not None:
            self.records[-1] = replace(self.records[-1], checkpoint=None)

    def _run(self) -> Iterator[EpochRecord]:
        experiment = self.experiment
        if experiment.derivation is None:
            model = build(experiment, self.splits)
            first = learned_probabilities(model)
            yield from self._fit("train", model, experiment.training, experiment.seed)
            if self.failure is None and self.ranks.leads:
                last = learned_probabilities(model)
                ends = ends_of(first, last)
                self.outcome = replace(self._finish(model), membership_ends=ends, probabilities=listed(last))
            return
        learning, training = split_epochs(experiment.training, experiment.derivation)
        teacher: nn.Module | None = None
        if self._derivation is None:
            learned = build(experiment, self.splits)
            first = learned_probabilities(learned)
            yield from self._fit("learn", learned, learning, experiment.seed)
            if self.failure is not None:
                return
            self._derivation, branched = self._derive(learned, first)
            teacher = self._plain(learned) if experiment.derivation.soft_target_weight else None
            del learned  # nor is its optimizer left: the second stage has the memory of both
        else:  # resumed in the second stage: its weights, and the teacher's, are in the checkpoint
            branched = second_network(experiment, self._derivation.architecture, self.splits)
        second = self._with_teacher(branched, teacher) if experiment.derivation.soft_target_weight else branched
        yield from self._fit("finetune", second, training, experiment.seed + STAGE_SEED)
        if self.failure is None and self.ranks.leads:
            passes = int(second.passes) if isinstance(second, StudentWithTeacher) else 0
            came = self._derivation.membership_ends
            self.outcome = replace(self._finish(branched), teacher_passes=passes, membership_ends=came)

    def _fit(self, stage: str, model: nn.Module, settings: TrainingSettings, seed: int) -> Iterator[EpochRecord]:
        # A stage counts from zero; the records of a run count on over both stages.
        done = [record for record in self.records if record.stage != stage]
        offset = (len(done), done[-1].sample_passes, done[-1].seconds) if done else (0, 0, 0.0)
        self._stage, within = stage, self._saving
        saving = Saving(within.due, lambda checkpoint: within.save(self._snapshot(checkpoint))) if within else None
        for record in fit(
            *(model, self._loaders_for(model), settings),
            seed=seed,
            device=self.device,
            start=self._taken(),
            saving=saving,
            ranks=self.ranks,
        ):
            shifted = replace(
                record,
                stage=stage,
                epoch=record.epoch + offset[0],
                sample_passes=record.sample_passes + offset[1],
                seconds=record.seconds + offset[2],
            )
            self.records.append(shifted)
            self.failure = record.failure
            yield shifted

    def _loaders_for(self, model: nn.Module) -> Loaders:
        """Return what a model is trained on; a supernet gets the images of its architecture parameters in turn."""
        if not isinstance(model, Darts):
            return self._loaders
        alternating = AlternatingLoader(
            self._loading(),
            lambda rows: self._loading(rows=rows),
            every=model.settings.weight_steps + 1,
            seed=self.experiment.seed,
            accumulation=model.accumulation,
        )
        return replace(self._loaders, train=alternating)

    def _derive(self, learned: nn.Module, first: Mapping[str, Tensor]) -> tuple[Derivation, Network]:
        """Derive the second stage's network on the first rank; the others get its weights when they train it."""
        derived: list[Network] = []

        def on_first() -> str:
            ends = ends_of(first, learned_probabilities(learned))
            derivation, branched = derive(self.experiment, learned, self.splits, device=self.device)
            derivation = replace(derivation, membership_ends=ends)
            derived.append(branched)
            return json.dumps(derivation.to_json())

        derivation = Derivation.from_json(json.loads(self.ranks.agree(on_first)))
        branched = derived or [second_network(self.experiment, derivation.architecture, self.splits)]
        return derivation, branched[0]

    def _taken(self) -> Checkpoint | None:
        """Return what the first stage of this run continues, once: the run holds it no longer."""
        start, self._start = self._start, None
        return start.checkpoint if start is not None else None

    def _with_teacher(self, branched: Network, teacher: nn.Module | None) -> StudentWithTeacher:
        """Return the second stage's network with its teacher, whose weights a resumed run reads from the checkpoint."""
        settings = self.experiment.derivation
        assert settings is not None
        dense = rebuild(self.experiment, None, self.splits) if teacher is None else teacher
        return StudentWithTeacher(branched, dense, weight=settings.soft_target_weight, temperature=settings.temperature)

    def _plain(self, model: nn.Module) -> nn.Module:
        """Return a network that computes what a trained one does in eval mode, without a trace of its method."""
        trained = model.fold() if isinstance(model, Blockout | Darts) else model
        plain = rebuild(self.experiment, architecture_of(trained), self.splits)
        plain.load_state_dict(plain_state(trained.state_dict(), plain.state_dict()))
        return plain.to(self.device).eval()

    def _finish(self, model: nn.Module) -> Outcome:
        plain = self._plain(model)
        parameters = sum(parameter.numel() for parameter in plain.parameters())
        return Outcome(plain, architecture_of(plain), parameters, self._macs(plain), self._derivation)

    def _macs(self, plain: nn.Module) -> int:
        if isinstance(plain, BlockDrop):
            return expected_macs(plain, Loader(self.splits.validation, EVALUATION_BATCH).batches(), device=self.device)
        # A copy: a network may begin with an operation in place, and several processes may share the images.
        return count_macs(plain, self.splits.train.images[:1].clone().to(self.device))


def _agreed(start: Snapshot | None, ranks: Ranks) -> Snapshot | None:
    """Return the snapshot of the first rank on all of them."""
    state = ranks.agree(lambda: start.to_state() if start else None)
    return Snapshot.from_state(state) if state is not None and not ranks.leads else start


def split_epochs(training: TrainingSettings, derivation: TwoStageSettings) -> tuple[TrainingSettings, TrainingSettings]:
    """Return how the networks of the two stages are trained, the one that learns first; each has an epoch or more."""
    learning = min(training.epochs - 1, max(1, round(training.epochs * derivation.learn_fraction)))
    schedule = training.schedule if derivation.learn_schedule == "same" else derivation.learn_schedule
    return (
        replace(training, epochs=learning, schedule=schedule),
        replace(
            training,
            epochs=training.epochs - learning,
            learning_rate=training.learning_rate * derivation.finetune_lr_multiplier,
        ),
    )
