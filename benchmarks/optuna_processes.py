"""The rival of a study's wall-clock time: plain Optuna processes that train the same experiments for as long.

All processes work on one Optuna study an arm, in one journal file, as its documentation shows for several processes.
They train what the study trained, in its order: Optuna is asked for proposals and told accuracies, but what it proposes
is not trained, since other learning rates and shapes would be other work. They keep the accuracies and nothing else: no
checkpoints, weights, exports, verification, tracking or report.

``python benchmarks/optuna_processes.py TRIALS.json PROCESSES``, with the trials of a study, each with the keys
``arm``, ``phase``, ``params`` and ``experiment``; `overhead.py` writes that file and runs this one.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback

from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.training import evaluate

EVALUATION_BATCH = 512
_SPLITS: dict[DataSettings, Splits] = {}


def accuracy(recorded: Mapping[str, Any]) -> float:
    """Train one experiment; return its accuracy on validation images, or on test images where it is a retraining."""
    experiment = Experiment.from_json(recorded["experiment"])
    if experiment.data not in _SPLITS:
        _SPLITS[experiment.data] = load(experiment.data)
    run = Run(experiment, _SPLITS[experiment.data])
    for _ in run:
        pass
    assert run.outcome is not None, run.failure
    if recorded["phase"] == "retrain":
        return evaluate(run.outcome.model, Loader(_SPLITS[experiment.data].test(), EVALUATION_BATCH)).accuracy
    return float(run.records[-1].validation_accuracy or 0.0)


def propose(trial: optuna.Trial, params: Mapping[str, Any]) -> None:
    """Ask Optuna for as many parameters, of the same types."""
    for name, value in params.items():
        if isinstance(value, float):
            trial.suggest_float(name, min(value, 0.0), max(value, 1.0))
        elif isinstance(value, int) and not isinstance(value, bool):
            trial.suggest_int(name, min(value, 0), max(value, 8))
        else:
            trial.suggest_categorical(name, ["one", "another"])


def work(arms: Mapping[str, Sequence[Mapping[str, Any]]], journal: str) -> None:
    """Train trials of all arms, one arm after the other, until none is left that no other process has begun."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, trials in arms.items():
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(journal)),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )

        def objective(trial: optuna.Trial, trials: Sequence[Mapping[str, Any]] = trials) -> float:
            if trial.number >= len(trials):  # another process has begun the last one
                trial.study.stop()
                raise optuna.TrialPruned
            propose(trial, trials[trial.number]["params"] or {})
            return accuracy(trials[trial.number])

        study.optimize(objective, callbacks=[MaxTrialsCallback(len(trials), states=None)])


def main() -> None:
    """Train the trials of a file in as many processes as asked for; print the accuracies of each arm."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for trial in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        arms.setdefault(trial["arm"], []).append(trial)
    with tempfile.TemporaryDirectory() as folder:
        journal = str(Path(folder) / "journal.log")
        context = get_context("spawn")
        processes = [context.Process(target=work, args=(arms, journal)) for _ in range(int(sys.argv[2]))]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit("a process failed")
        storage = JournalStorage(JournalFileBackend(journal))
        found = {
            name: [trial.value for trial in optuna.load_study(storage=storage, study_name=name).trials][: len(trials)]
            for name, trials in arms.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
