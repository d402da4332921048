"""An experiment: one training, fully described; its network; and the run of it. Only this wires the others together."""

from nas_blockout.experiment.branchable import outline
from nas_blockout.experiment.builder import (
    MOST_PARAMETERS,
    build,
    built_for_training,
    dense_macs,
    matched,
    notes_of,
    outlined,
    outlined_for_training,
    paths_taken,
    rebuild,
    require_match,
    unbuildable,
)
from nas_blockout.experiment.class_subset import ClassSubset, subset_of
from nas_blockout.experiment.config import DERIVATIONS, Experiment, Parts, backbone_from_json, conflicts, needs_graph
from nas_blockout.experiment.costs import known_costs, known_network, structure_of_network
from nas_blockout.experiment.derivation import EVALUATION_BATCH, Derivation
from nas_blockout.experiment.rebuilding import derived_network, load_model, origin_of
from nas_blockout.experiment.runner import Outcome, Run, SavingRun, Snapshot, split_epochs
from nas_blockout.graph.macs import count_macs

__all__ = [
    "DERIVATIONS",
    "EVALUATION_BATCH",
    "MOST_PARAMETERS",
    "ClassSubset",
    "Derivation",
    "Experiment",
    "Outcome",
    "Parts",
    "Run",
    "SavingRun",
    "Snapshot",
    "backbone_from_json",
    "build",
    "built_for_training",
    "conflicts",
    "count_macs",
    "dense_macs",
    "derived_network",
    "known_costs",
    "known_network",
    "load_model",
    "matched",
    "needs_graph",
    "notes_of",
    "origin_of",
    "outline",
    "outlined",
    "outlined_for_training",
    "paths_taken",
    "rebuild",
    "require_match",
    "split_epochs",
    "structure_of_network",
    "subset_of",
    "unbuildable",
]
