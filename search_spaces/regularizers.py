"""How strongly a network is regularised: the rate of whichever dropping method the arm uses."""

from dataclasses import replace

from nas_blockout.experiment import Experiment
from search_spaces.trial import Context, Trial

_HIGHEST_RATE = 0.7


def regularizers(trial: Trial, context: Context) -> Experiment:
    """Vary the rate of dropping.

    Parameters: ``<method>.rate`` in 0 to 0.7.

    Raises:
        ValueError: The arm's method has no rate.
    """
    method = context.experiment.method
    if not hasattr(method, "rate"):
        raise ValueError("the space 'regularizers' needs a method that drops at a rate, such as dropout")
    name = type(method).__name__.removesuffix("Settings").lower()
    rate = trial.suggest_float(f"{name}.rate", 0.0, _HIGHEST_RATE)
    return replace(context.experiment, method=replace(method, rate=rate))
