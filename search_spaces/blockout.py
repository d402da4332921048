"""How Blockout learns its structure."""

from dataclasses import replace

from nas_blockout.experiment import Experiment
from nas_blockout.methods.blockout import BlockoutSettings
from search_spaces.trial import Context, Trial


def blockout(trial: Trial, context: Context) -> Experiment:
    """Vary the learning rate of the structure, the first layer's initial probability, and the charge for MACs.

    Parameters: ``blockout.structure_lr`` (10 to 100, logarithmic), ``blockout.first_probability`` (.8 to .98),
    ``blockout.charge`` (2 to 16, logarithmic).

    Raises:
        ValueError: The arm's method is not blockout.
    """
    method = context.experiment.method
    if not isinstance(method, BlockoutSettings):
        raise ValueError("the space 'blockout' needs an arm whose method is blockout")
    settings = replace(
        method,
        structure_lr=trial.suggest_float("blockout.structure_lr", 10.0, 100.0, log=True),
        first_probability=trial.suggest_float("blockout.first_probability", 0.8, 0.98),
        charge=trial.suggest_float("blockout.charge", 2.0, 16.0, log=True),
    )
    return replace(context.experiment, method=settings)
