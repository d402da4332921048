"""Search space of BlockDrop: how its policy learns, and what a wrong prediction costs it."""

from dataclasses import replace

from nas_blockout.experiment import Experiment
from nas_blockout.methods.blockdrop import BlockDropSettings
from search_spaces.trial import Context, Trial


def blockdrop(trial: Trial, context: Context) -> Experiment:
    """Vary how fast the policy learns, how many blocks it keeps at first, and what it trades accuracy for blocks at.

    Parameters: ``blockdrop.policy_lr_multiplier`` (1 to 10, logarithmic), ``blockdrop.initial_keep`` (0.6 to 0.95);
    with the estimator ``reinforce`` also ``blockdrop.penalty`` (0.5 to 8, logarithmic) and ``blockdrop.alpha`` (0.7 to
    0.95), with gates ``blockdrop.cost_penalty`` (0.1 to 2, logarithmic).

    Raises:
        ValueError: The arm's method is not blockdrop, or its policy learns nothing.
    """
    method = context.experiment.method
    if not isinstance(method, BlockDropSettings) or not method.learns:
        raise ValueError(
            "the space 'blockdrop' needs an arm whose method is blockdrop, with the policy learned or static"
        )
    settings = replace(
        method,
        policy_lr_multiplier=trial.suggest_float("blockdrop.policy_lr_multiplier", 1.0, 10.0, log=True),
        initial_keep=trial.suggest_float("blockdrop.initial_keep", 0.6, 0.95),
    )
    if method.estimator == "reinforce":
        settings = replace(
            settings,
            penalty=trial.suggest_float("blockdrop.penalty", 0.5, 8.0, log=True),
            alpha=trial.suggest_float("blockdrop.alpha", 0.7, 0.95),
        )
    else:
        settings = replace(settings, cost_penalty=trial.suggest_float("blockdrop.cost_penalty", 0.1, 2.0, log=True))
    return replace(context.experiment, method=settings)
