"""Search space of training: learning rate and weight decay."""

from dataclasses import replace

from nas_blockout.experiment import Experiment
from search_spaces.trial import Context, Trial


def training(trial: Trial, context: Context) -> Experiment:
    """Vary the peak learning rate within a factor of 4 of the arm's, and the weight decay from 1e-5 to 1e-2.

    Parameters: ``optim.lr`` and ``optim.weight_decay``, both logarithmic.
    """
    experiment = context.experiment
    center = experiment.training.learning_rate
    settings = replace(
        experiment.training,
        learning_rate=trial.suggest_float("optim.lr", center / 4, center * 4, log=True),
        weight_decay=trial.suggest_float("optim.weight_decay", 1e-5, 1e-2, log=True),
    )
    return replace(experiment, training=settings)
