"""Which trial comes next: the scheduler of the arms of a study.

It keeps no state that the store could not give back: counts follow from the trials so far, and a sampler is made anew
each time it is asked, with a seed derived from the number of the trial. So an interrupted search proposes exactly what
an uninterrupted one would have proposed.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from nas_blockout.experiment import Experiment, matched
from nas_blockout.training import sample_passes
from search_spaces import Context, Point, Space, compose, grid, space_named
from services.budget.limits import trials_left
from services.budget.tally import Tally
from services.search.arm_trials import ArmTrials
from services.search.proposals import ProposalSearch
from services.study_config.resolved_study import Arm, Study
from services.trial_record import RETRAIN, SEARCH, Trial, TrialKey


class Scheduler:
    """Holds the trials of a study and decides which one comes next.

    Args:
        study: The resolved study.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Training images.
        images_of_folds: Training images by the fold that is held out; nothing without folds.
        trials: All trials so far.
    """

    def __init__(
        self,
        study: Study,
        *,
        shape: tuple[int, int, int],
        classes: int,
        images: int,
        images_of_folds: Sequence[int] = (),
        trials: Iterable[Trial] = (),
    ) -> None:
        self.study = study
        self.shape = shape
        self.classes = classes
        self.images = images
        self._images_of_folds = images_of_folds
        self._trials = {
            (name, phase): ArmTrials(arm.rules) for name, arm in study.arms.items() for phase in (SEARCH, RETRAIN)
        }
        self._spaces: dict[str, Space] = {
            name: compose([space_named(space) for space in arm.spaces]) for name, arm in study.arms.items()
        }
        self._first: dict[str, Sequence[Point]] = {}  # by arm: the points that are tried before the search
        self._grids: dict[str, Sequence[Point]] = {}  # computed when needed: enumerating a space takes a while
        for trial in trials:
            self.update(trial)

    def update(self, trial: Trial) -> None:
        """Replace a trial by its new state."""
        self._trials[trial.arm, trial.phase].update(trial)

    def trial(self, key: TrialKey) -> Trial:
        """Return a trial by arm, phase and number."""
        arm, phase, number = key
        return self._trials[arm, phase][number]

    def of(self, arm: str, phase: str) -> list[Trial]:
        """Return the trials of an arm and phase in the order of their numbers; takes time in proportion to them."""
        return self._trials[arm, phase].in_order()

    def tally(self, arm: str, phase: str) -> Tally:
        """Return the counts of the trials of an arm and phase."""
        return self._trials[arm, phase].tally

    @property
    def finished(self) -> bool:
        """Whether every trial has ended and no arm will propose another."""
        if not all(trials.tally.all_ended for trials in self._trials.values()):
            return False
        # Nothing runs, so that an arm which waits for another one now either can go on or never will.
        return not any(self._can_search(arm) or self._awaits_retraining(arm) for arm in self.study.arms.values())

    def next(self) -> Trial | None:
        """Return the next trial, queued and not in the store yet, or None while every arm waits or has ended."""
        for arm in self._in_turn():
            if self._can_search(arm) and (target := self._target(arm, None)) is not False:
                return self._propose(arm, target)
            if (trial := self._retraining(arm)) is not None:
                return trial
        return None

    def winner(self, arm: str) -> Trial | None:
        """Return the complete search trial to retrain, or None if there is none within the constraints.

        It has the best validation accuracy (of equals the first), or the least of the study's ``selection`` among those
        that are almost as accurate.
        """
        return self._trials[arm, SEARCH].winner

    def reason_to_stop(self, trial: Trial, *, since: int) -> tuple[int, str] | None:
        """Return the epoch after which a trial is to be stopped early and why, or None if it trains on.

        Args:
            trial: The trial, with its curve so far.
            since: Number of epochs that were recorded before the latest report.
        """
        stopping = self._trials[trial.arm, SEARCH].stopping
        if stopping is None or trial.phase != SEARCH:
            return None
        stopping.update(trial)
        return stopping.reason_to_stop(trial, since=since, metric=self.study.config.metric.replace("_", " "))

    def rungs(self, trial: Trial) -> tuple[int, ...]:
        """Return the epochs after which a trial may be stopped early."""
        stopping = self._trials[trial.arm, SEARCH].stopping
        return stopping.rungs(trial.number) if stopping is not None and trial.phase == SEARCH else ()

    def cost(self, experiment: Experiment) -> int:
        """Return the sample passes of one full training."""
        fold = experiment.data.fold
        images = self.images if fold is None or not self._images_of_folds else self._images_of_folds[fold]
        return sample_passes(experiment.training, images)

    def searches_left(self, arm: Arm) -> int:
        """Return how many more full search trials the arm's budget pays for."""
        left = trials_left(
            self.study.config.budget,
            self.tally(arm.name, SEARCH),
            cost=self.cost(arm.experiment),
            retrainings=len(self.study.config.retrain.seeds),
        )
        return min(left.values())  # the limit that ends first

    def _in_turn(self) -> list[Arm]:
        """Arms that others must match come first, then whichever has spent least, so that the arms take turns."""
        # What an arm spends includes what its running trials will cost: with several workers, arms take turns, too.
        awaited = {arm.match for arm in self.study.arms.values()}

        def spent(arm: Arm) -> int:
            return sum(self.tally(arm.name, phase).charged_passes for phase in (SEARCH, RETRAIN))

        return sorted(self.study.arms.values(), key=lambda arm: (arm.name not in awaited, spent(arm)))

    def _can_search(self, arm: Arm) -> bool:
        # One that waits, as after an interruption, is started before another is proposed.
        if self.tally(arm.name, SEARCH).states["queued"]:
            return False
        return self.searches_left(arm) > 0 and not self._is_exhausted(arm) and not self._is_orphaned(arm)

    def _is_exhausted(self, arm: Arm) -> bool:
        """Whether only failures came, no network within the constraints was found, or the grid has no point left."""
        trials = self._trials[arm.name, SEARCH]
        return trials.exhausted or (arm.searcher == "grid" and trials.tried >= len(self._points(arm)))

    def _is_orphaned(self, arm: Arm) -> bool:
        """Whether the arm whose cost must be matched ended without a winner."""
        return arm.match is not None and self._search_ended(arm.match) and self.winner(arm.match) is None

    def _search_ended(self, name: str) -> bool:
        return self.tally(name, SEARCH).all_ended and not self._can_search(self.study.arms[name])

    def _target(self, arm: Arm, seed: int | None) -> int | Literal[False] | None:
        """Return the MACs to match, None if there is nothing to match, or False while they are not known yet.

        A search matches the winner of the other arm. A retraining matches the other arm's retraining with the same
        seed, since a learned structure has other MACs with every seed; if that one failed, the winner.
        """
        if arm.match is None:
            return None
        if not self._search_ended(arm.match):
            return False
        winner = self.winner(arm.match)
        assert winner is not None, "an orphaned arm proposes nothing"
        if seed is None:
            return winner.macs
        retrained = self.current(self.study.arms[arm.match]).get(seed)
        if retrained is None or not retrained.ended:
            return False
        return retrained.macs or winner.macs

    def _matched(self, experiment: Experiment, target: int | None) -> Experiment:
        """Return the experiment, changed to end in a network of the MACs to match if there are any."""
        return experiment if target is None else matched(experiment, target, shape=self.shape, classes=self.classes)

    def _awaits_retraining(self, arm: Arm) -> bool:
        if self._is_orphaned(arm) or self.winner(arm.name) is None:
            return False
        return self._missing_seed(arm) is not None

    def current(self, arm: Arm) -> dict[int, Trial]:
        """Return by seed the retrainings of the arm's present winner; those of an earlier winner are stale."""
        winner = self.winner(arm.name)
        if winner is None or self._is_orphaned(arm):
            return {}
        latest = {trial.seed: trial for trial in self.of(arm.name, RETRAIN)}
        # Compared as a whole: an extended study may have another winner, or other MACs to match.
        return {seed: trial for seed, trial in latest.items() if trial.config == self._again(arm, winner, seed)}

    def _again(self, arm: Arm, winner: Trial, seed: int) -> Experiment | None:
        """Return the experiment that retrains a winner with a seed, or None while the MACs to match are not known."""
        target = self._target(arm, seed)
        if target is False:
            return None
        data = winner.config.data
        if data.folds is not None:
            data = data.holding_out(self.study.position_of(seed))
        return self._matched(replace(winner.config, seed=seed, data=data), target)

    def _missing_seed(self, arm: Arm) -> int | None:
        current = self.current(arm)
        return next((seed for seed in self.study.config.retrain.seeds if seed not in current), None)

    def _retraining(self, arm: Arm) -> Trial | None:
        if not self._search_ended(arm.name) or not self._awaits_retraining(arm):
            return None
        winner, seed = self.winner(arm.name), self._missing_seed(arm)
        if winner is None or seed is None or (experiment := self._again(arm, winner, seed)) is None:
            return None
        return Trial(
            arm.name,
            RETRAIN,
            number=len(self._trials[arm.name, RETRAIN]),
            seed=seed,
            state="queued",
            planned=self.cost(experiment),
            experiment=experiment.to_json(),
            architecture_hash=winner.architecture_hash,
        )

    def _propose(self, arm: Arm, target: int | None) -> Trial:
        began = time.perf_counter()
        trials = self._trials[arm.name, SEARCH]
        proposal = ProposalSearch(
            arm,
            self._spaces[arm.name],
            Context(arm.experiment, self.shape, self.classes),
            trials,
            self.study.config.seed,
            finish=lambda experiment: self._matched(experiment, target),
            points=self._points(arm),
            first=self._enqueued(arm),
        ).propose()
        name = proposal.architecture_hash
        trial = Trial(
            arm.name,
            SEARCH,
            number=len(trials),
            seed=proposal.experiment.seed,  # the same in every arm: arms differ in what they propose, not in luck
            state="queued",
            planned=0 if proposal.params.search_exhausted else self.cost(proposal.experiment),
            experiment=proposal.experiment.to_json(),
            params=proposal.params.to_json(),
            architecture_hash=name,
            replicate_of=next(iter(trials.same(name)), None),
            suggest_seconds=time.perf_counter() - began,
        )
        return trial.known_as(proposal.experiment)

    def _enqueued(self, arm: Arm) -> Sequence[Point]:
        """Return the points that an arm tries first: those of the study file, then those of an earlier study."""
        if arm.name not in self._first:
            context, beginning = Context(arm.experiment, self.shape, self.classes), arm.rules.beginning
            recalled = beginning.fitting(self._spaces[arm.name], context)[0] if beginning is not None else []
            self._first[arm.name] = (*arm.rules.enqueue, *(each.values for each in recalled))
        return self._first[arm.name]

    def _points(self, arm: Arm) -> Sequence[Point]:
        """Return the grid of an arm, nothing for one that is not searched on a grid."""
        if arm.searcher != "grid":
            return ()
        if arm.name not in self._grids:
            context = Context(arm.experiment, self.shape, self.classes)
            self._grids[arm.name] = grid(self._spaces[arm.name], context, points=arm.rules.grid_points)
        return self._grids[arm.name]
