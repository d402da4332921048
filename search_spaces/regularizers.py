"""Search spaces for regularization methods with a drop rate, such as dropout."""

from dataclasses import replace

from nas_blockout.experiment import Experiment
from search_spaces.trial import Context, Trial

_HIGHEST_RATE = 0.7
_LIGHT = (0.02, 0.3)


def regularizers(trial: Trial, context: Context) -> Experiment:
    """Vary the drop rate of the arm's method.

    Parameters: ``<method>.rate`` in [0, 0.7].

    Raises:
        ValueError: The arm's method has no rate.
    """
    return _varied(trial, context, "regularizers", (0.0, _HIGHEST_RATE), log=False)


def light_regularizers(trial: Trial, context: Context) -> Experiment:
    """Vary the drop rate in a range suitable for methods on feature maps; `regularizers` has the range for nodes.

    Parameters: ``<method>.rate`` in [0.02, 0.3], logarithmic.

    Raises:
        ValueError: The arm's method has no rate.
    """
    return _varied(trial, context, "light_regularizers", _LIGHT, log=True)


def _varied(trial: Trial, context: Context, space: str, limits: tuple[float, float], *, log: bool) -> Experiment:
    method = context.experiment.method
    if not hasattr(method, "rate"):
        raise ValueError(f"the space {space!r} needs a method that drops at a rate, such as dropout")
    name = type(method).__name__.removesuffix("Settings").lower()
    rate = trial.suggest_float(f"{name}.rate", *limits, log=log)
    return replace(context.experiment, method=replace(method, rate=rate))
