"""Constraints of a study: checked on the network before it is trained, as far as its structure is known by then.

What is only known after learning (branches that are distilled or found by confusions, the blocks that an image skips)
is checked afterwards: such a trial is charged what it cost, but cannot win.
"""

from collections.abc import Mapping

from nas_blockout.experiment import Experiment, known_costs, known_network
from nas_blockout.export import measure_latency
from services.study_config.search_options import Constraints
from services.trial_record import SEARCH, Trial

Exceeded = Mapping[str, tuple[float, float]]  # by quantity its value and the limit


def exceeded_before(
    experiment: Experiment, constraints: Constraints, *, shape: tuple[int, int, int], classes: int
) -> Exceeded:
    """Return what an untrained network exceeds, by quantity its value and the limit.

    Latency is measured on this machine, everything else is counted.

    Args:
        experiment: What is proposed.
        constraints: Of its arm.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """
    limits = constraints.limits
    if not limits:
        return {}
    costs: dict[str, float] = dict(known_costs(experiment, shape=shape, classes=classes))
    if "latency_ms" in limits and (network := known_network(experiment, shape=shape, classes=classes)) is not None:
        costs["latency_ms"] = measure_latency(network, shape, batches=(1,))[1]
    return constraints.exceeded(costs)


def exceeded_after(trial: Trial, constraints: Constraints) -> Exceeded:
    """Return what the network exceeds that a complete trial ended in, by quantity its value and the limit.

    Where the network was known before the training, its latency was checked then and is not checked again: two
    measurements differ, and a trial that was admitted must not be rejected by noise.
    """
    if not constraints.limits:
        return {}
    names = [name for name in constraints.limits if name != "latency_ms" or trial.config.derivation is not None]
    return constraints.exceeded({name: trial.measured(name) for name in names})


def could_win(trial: Trial, constraints: Constraints) -> bool:
    """Return whether a trial may be retrained: it searched, is complete, and ended within the constraints."""
    is_candidate = trial.phase == SEARCH and trial.state == "complete" and trial.score is not None
    return is_candidate and not exceeded_after(trial, constraints)


def describe_exceeded(exceeded: Exceeded) -> str:
    """Return the exceeded constraints as text, such as ``macs 1,200 exceeds 1,000``."""
    return ", ".join(f"{name} {value:,.6g} exceeds {limit:,.6g}" for name, (value, limit) in exceeded.items())
