"""How far the networks of an arm branch and to which end its P came, over its retrained seeds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import Field

from nas_blockout.methods.memberships.description import collapse_of
from nas_blockout.serialization import count_of
from nas_blockout.structure.branching import Structure, in_short, recorded_structure, summary
from nas_blockout.structure.membership_ends import End
from services.analysis.seed_metrics import Count, Strict
from services.trial_record import Trial


class ArmStructure(Strict):
    """How far the networks of an arm branch: ``exported`` is that of the exported model, the counts are over seeds."""

    exported: Structure
    learned: bool = Field(description="Whether it was learned, rather than searched for, pruned or given.")
    seeds: Count = Field(description="Retrained seeds whose structure is known.")
    branched_seeds: Count = Field(description="Those of them whose network has branches.")
    collapsed: dict[str, dict[str, Count]] = Field(
        default_factory=dict,
        description="By layer and kind of collapse of the learned membership probabilities, the number of seeds, "
        "among those trained before their `memberships` were recorded.",
    )
    summary: str = Field(description="How far it branches, in one line.")

    @property
    def unbranched(self) -> str | None:
        """That what was learned has no branches, or hardly any, and in how many seeds; None if it has some."""
        if not self.learned or (self.exported.is_branched and not self.exported.hardly_branches):
            return None
        told, without = in_short(self.exported, learned=True), self.seeds - self.branched_seeds
        if not self.exported.is_branched:
            return f"{told} ({without} of {count_of(self.seeds, 'seed')})"
        return f"{told} (none at all in {without} of {count_of(self.seeds, 'seed')})" if without else told


class ArmMemberships(Strict):
    """To which end the membership probabilities that an arm learned came, with and without distillation."""

    seeds: Count = Field(description="Retrained seeds of which it is known.")
    layers: dict[str, dict[End, Count]] = Field(description="By layer and end, the number of seeds.")
    summary: str = Field(description="The same in one line.")


_WORDS: Mapping[End, str] = {
    "diverged": "diverged in",
    "stayed": "stayed in",
    "all ones": "went to 1 in",
    "ones from the start": "were at 1 from the start in",
    "all zeros": "went to 0 in",
    "one cluster": "ended in one cluster in",
    "in between": "are in between in",
}
_MOST_LISTED = 8  # layers that a line names one by one


def arm_memberships(models: Iterable[Trial]) -> ArmMemberships | None:
    """Return to which ends the membership probabilities of an arm came, or None if that is not known of any seed.

    Args:
        models: Its retrained trials.
    """
    known = [ends for trial in models if (ends := trial.outcome.get("membership_ends"))]
    if not known:
        return None
    layers: dict[str, Counter[End]] = {}
    for ends in known:
        for layer, end in ends.items():
            layers.setdefault(layer, Counter())[end] += 1
    counts = {layer: dict(found) for layer, found in layers.items()}
    return ArmMemberships(seeds=len(known), layers=counts, summary=_memberships_in_short(counts, len(known)))


def _memberships_in_short(layers: Mapping[str, Mapping[End, int]], seeds: int) -> str:
    """Return the ends by groups of layers: those of the most seeds first, then in the order of the network."""
    groups: dict[tuple[End, int], list[str]] = {}
    for layer, ends in layers.items():
        for end, count in ends.items():
            groups.setdefault((end, count), []).append(layer)
    parts = []
    for (end, count), names in sorted(groups.items(), key=lambda item: -item[0][1]):
        told = ", ".join(names) if len(names) <= _MOST_LISTED else f"{len(names)} of {count_of(len(layers), 'layer')}"
        parts.append(f"{_WORDS[end]} {told} ({count} of {count_of(seeds, 'seed')})")
    return f"membership probabilities {'; '.join(parts)}"


def arm_structure(models: Sequence[Trial], exported: Trial | None, known: Structure | None) -> ArmStructure | None:
    """Return how far the networks of an arm branch, or None if none of them is built from groups of nodes.

    Args:
        models: Its retrained trials.
        exported: The one whose model is exported, or None.
        known: The structure of the exported network with its costs, where the network is at hand; else what the trial
            recorded counts, and for a trial that recorded none what follows from its architecture.
    """
    structures = [found for trial in models if (found := recorded_structure(trial.outcome)) is not None]
    shown = known or (recorded_structure(exported.outcome) if exported is not None else None)
    if shown is None or exported is None:
        return None
    learned = _is_learned(exported)
    collapsed = _collapsed(models) if learned else {}
    branched = sum(structure.is_branched for structure in structures)
    text = summary(shown, learned=learned)
    if learned and structures and shown.is_branched:
        text += f" ({branched} of {count_of(len(structures), 'seed has', 'seeds have')} branches)"
    elif learned and structures:
        text += f" ({len(structures) - branched} of {count_of(len(structures), 'seed')})"
    return ArmStructure(
        exported=shown,
        learned=learned,
        seeds=len(structures),
        branched_seeds=branched,
        collapsed=collapsed,
        summary="; ".join([text, *_collapse_texts(collapsed, len(structures))]),
    )


def _is_learned(trial: Trial) -> bool:
    """Whether a trial learned membership probabilities and distilled them."""
    method = trial.experiment.get("method") or {}
    learns = method.get("name") == "blockout" and method.get("mode") != "hard-fixed"
    # What is folded into the plain network has probabilities as well, but none of them became a branch.
    return learns and bool(trial.outcome.get("probabilities")) and trial.outcome.get("gap") is not None


def _collapsed(models: Sequence[Trial]) -> dict[str, dict[str, int]]:
    collapsed: dict[str, Counter[str]] = {}
    for trial in models:
        if trial.outcome.get("membership_ends"):
            continue  # `arm_memberships` says more
        for layer, rows in (trial.outcome.get("probabilities") or {}).items():
            if (kind := collapse_of(torch.tensor(rows))) != "none":
                collapsed.setdefault(layer, Counter())[kind] += 1
    return {layer: dict(kinds) for layer, kinds in collapsed.items()}


def _collapse_texts(collapsed: Mapping[str, Mapping[str, int]], seeds: int) -> list[str]:
    layers: dict[tuple[str, int], list[str]] = {}
    for layer, kinds in collapsed.items():
        for kind, count in kinds.items():
            layers.setdefault((kind, count), []).append(layer)
    return [
        f"the membership probabilities of {', '.join(names)} collapsed to {kind} ({count} of {count_of(seeds, 'seed')})"
        for (kind, count), names in layers.items()
    ]
