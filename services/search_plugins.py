"""Search algorithms and early stopping by name: what is built in, and what a plug-in of either kind is.

Nothing here imports Optuna: a study is read, checked and listed without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nas_blockout.plugins.choices import Choices, require_settings
from nas_blockout.plugins.installed import Origin

# By name: the settings that it has. The order is that of the documentation.
SEARCHERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "random": (),
        "qmc": ("sequence",),
        "grid": ("grid_points",),
        "tpe": ("n_startup_trials", "multivariate"),
        "gp": ("n_startup_trials",),
        "cmaes": ("n_startup_trials", "population_size", "margin"),
        "nsga2": ("population_size", "mutation_probability"),
        "nsga3": ("population_size", "mutation_probability"),
        "evolution": ("population_size", "tournament_size"),
    }
)
ONE_OBJECTIVE = ("cmaes", "evolution")  # they compare trials by one number
# By name: the settings that it has.
PRUNERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "asha": ("rungs", "reduction_factor"),
        "hyperband": ("reduction_factor", "min_epochs"),
        "median": ("n_startup_trials", "warmup_epochs", "interval_epochs", "min_trials"),
        "patient": ("patience", "min_delta", "wraps"),
    }
)
SAME_PRUNER: Mapping[str, str] = MappingProxyType({"successive_halving": "asha"})


@dataclass(frozen=True, slots=True)
class SearchAlgorithm:
    """A search algorithm of a plug-in, made of a sampler of Optuna.

    The sampler is made anew for every proposal, and asked once: what it knows of the search it reads from the trials of
    the study that Optuna passes to it, in the order of their numbers. So a search that is resumed proposes what an
    uninterrupted one would have proposed. All randomness comes from the seed.

    Args:
        settings: Frozen dataclass of its settings, each with a default and a sentence under ``Args:``.
        sampler: Returns an ``optuna.samplers.BaseSampler``: ``sampler(settings, seed)``, with a seed in ``[0, 2**31)``
            that depends on the seed of the study, the number of the trial and how often it was asked for before.
        summary: What it proposes, in one line.
        several_objectives: Whether it can search for several objectives; else an arm that has some is refused.
        constraints: Whether an arm may have constraints. Proposals that exceed one are told as pruned trials without a
            value; it is asked again, with another seed, and random draws take over after 16 of them.
        conditional_spaces: Whether it can search spaces whose parameters, or their ranges, depend on others.
        all_trials: Whether it is told all trials of its arm; else at most 250 of them, the best and the latest.
    """

    settings: type
    sampler: Callable[[Any, int], Any]
    summary: str = ""
    several_objectives: bool = False
    constraints: bool = True
    conditional_spaces: bool = True
    all_trials: bool = False


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Early stopping of a plug-in.

    Args:
        settings: Frozen dataclass of its settings, each with a default and a sentence under ``Args:``; none of them may
            be called ``max_epochs``.
        rule: Returns what decides, a `services.search.early_stopping.EarlyStopping`: ``rule(settings, epochs)``, with
            the epochs of a whole trial. It decides by the recorded curves alone.
        summary: Which trials it stops, in one line.
    """

    settings: type
    rule: Callable[[Any, int], Any]
    summary: str = ""


def _read_algorithm(found: Any, origin: Origin) -> SearchAlgorithm:
    """Return the search algorithm that a plug-in stands for.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(found, SearchAlgorithm):
        raise ValueError(
            "it must be a services.search_plugins.SearchAlgorithm, with its settings and how its sampler is made, "
            f"got {found!r}"
        )
    require_settings(found.settings)
    return found


def _read_rule(found: Any, origin: Origin) -> StoppingRule:
    """Return the early stopping that a plug-in stands for.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(found, StoppingRule):
        raise ValueError(
            f"it must be a services.search_plugins.StoppingRule, with its settings and what decides, got {found!r}"
        )
    require_settings(found.settings)
    if "max_epochs" in found.settings.__dataclass_fields__:  # type: ignore[attr-defined]  # it is a dataclass
        raise ValueError(
            f"no setting of {found.settings.__name__} may be called max_epochs: the rule is given the epochs of a trial"
        )
    return found


SEARCHER_CHOICES: Choices[SearchAlgorithm | tuple[str, ...]] = Choices(
    "searcher", SEARCHERS, _read_algorithm, key="searcher"
)
PRUNER_CHOICES: Choices[StoppingRule | tuple[str, ...]] = Choices(
    "pruner",
    {**PRUNERS, **{name: PRUNERS[other] for name, other in SAME_PRUNER.items()}},
    _read_rule,
    key="pruner",
)


def algorithm_named(name: str) -> SearchAlgorithm | None:
    """Return the search algorithm of a plug-in, which is imported; None for one that is built in.

    Args:
        name: As in a study file.

    Raises:
        Conflict: There is none of that name, or it cannot be used.
    """
    found = SEARCHER_CHOICES.named(name)
    return found if isinstance(found, SearchAlgorithm) else None


def rule_named(name: str) -> StoppingRule | None:
    """Return the early stopping of a plug-in, which is imported; None for one that is built in.

    Args:
        name: As in a study file.

    Raises:
        Conflict: There is none of that name, or it cannot be used.
    """
    found = PRUNER_CHOICES.named(name)
    return found if isinstance(found, StoppingRule) else None
