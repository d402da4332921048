"""A search space: a function from a trial and a context to an experiment."""

from dataclasses import replace

from example_plugin.uniform_noise import UniformNoiseSettings
from nas_blockout.experiment import Experiment
from search_spaces import Context, Trial


def noise_amplitude(trial: Trial, context: Context) -> Experiment:
    """Vary the amplitude of the noise.

    Parameters: ``uniform_noise.amplitude`` in [0.05, 0.8].

    Raises:
        ValueError: The arm's method is another one.
    """
    method = context.experiment.method
    if not isinstance(method, UniformNoiseSettings):
        raise ValueError("the space 'noise_amplitude' needs an arm whose method is uniform_noise")
    changed = replace(method, amplitude=trial.suggest_float("uniform_noise.amplitude", 0.05, 0.8))
    return replace(context.experiment, method=changed)
