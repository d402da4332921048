"""The sampler of a plug-in: what it proposes is checked, and what it raises is told with its name and line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from nas_blockout.plugins.named_code import told
from services.search_plugins import SEARCHER_CHOICES


class PluginSampler(BaseSampler):
    """Passes every question on to the sampler of a plug-in.

    Args:
        name: Of the search algorithm.
        make: Returns its sampler.

    Raises:
        ValueError: The plug-in fails, gives no sampler of Optuna, or proposes what is not in the space.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name = name
        with self._telling():
            made = make()
        if not isinstance(made, BaseSampler):
            raise ValueError(f"the searcher {self._origin} must give an optuna.samplers.BaseSampler, got {made!r}")
        self._made = made

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the sampler that it will be asked."""
        with self._telling():
            self._made.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are proposed together."""
        with self._telling():
            return dict(self._made.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the parameters that are proposed together."""
        with self._telling():
            values = dict(self._made.sample_relative(study, trial, search_space))
        return {
            name: self._within(name, value, search_space[name]) if name in search_space else value
            for name, value in values.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of a parameter that is proposed by itself."""
        with self._telling():
            value = self._made.sample_independent(study, trial, param_name, param_distribution)
        return self._within(param_name, value, param_distribution)

    @property
    def _origin(self) -> object:
        return SEARCHER_CHOICES.origin(self._name)

    def _within(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        try:
            is_within = distribution._contains(distribution.to_internal_repr(value))
        except (TypeError, ValueError):
            is_within = False
        if not is_within:
            raise ValueError(f"the searcher {self._origin} proposed {value!r} for {name}, which is in {distribution}")
        return value

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise ValueError(f"the searcher {self._origin} failed: {told(error)}") from error
