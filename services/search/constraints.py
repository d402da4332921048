"""What a study's constraints allow: checked on the network before it is trained, as far as it is known by then.

What is only known once something is learned (branches that are distilled or come from confusions, paths for every
image) is checked afterwards: such a trial has cost what it cost, but cannot win.
"""

from collections.abc import Mapping

from nas_blockout.experiment import Experiment, known_costs, known_network
from services.search.trial_state import Entry
from services.study_config.search_options import Constraints

Exceeded = Mapping[str, tuple[float, float]]


def exceeded_before(
    experiment: Experiment, constraints: Constraints, *, shape: tuple[int, int, int], classes: int
) -> Exceeded:
    """Return what an untrained network exceeds: by quantity what it has and what it may have.

    The latency is measured here and now; everything else is counted.

    Args:
        experiment: What is proposed.
        constraints: Of its arm.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """
    limits = constraints.limits
    if not limits:
        return {}
    found: dict[str, float] = dict(known_costs(experiment, shape=shape, classes=classes))
    if "latency_ms" in limits and (network := known_network(experiment, shape=shape, classes=classes)) is not None:
        from nas_blockout.export import measure_latency  # only who measures needs it

        found["latency_ms"] = measure_latency(network, shape, batches=(1,))[1]
    return constraints.exceeded(found)


def exceeded_after(entry: Entry, constraints: Constraints) -> Exceeded:
    """Return what the network that a complete trial ended in exceeds.

    A latency that was checked before is not checked again: measured twice it differs.
    """
    names = [name for name in constraints.limits if name != "latency_ms" or entry.experiment.derivation is not None]
    return constraints.exceeded({name: entry.measured(name) for name in names})


def in_words(exceeded: Exceeded) -> str:
    """Return what is exceeded as a person says it."""
    return ", ".join(f"{name} {found:,.6g} exceeds {limit:,.6g}" for name, (found, limit) in exceeded.items())
