"""Which tables a report has, by section. Importing this module imports matplotlib."""

from services.analysis.comparison import ComparisonDocument
from services.report import answers, classes, confusion, structure
from services.report.tables import accuracy_tables, class_tables, cost_tables, structure_tables, training_tables
from services.report.tables.report_table import Cell, Column, Table, count, table
from services.report.view import ReportView


def tables(view: ReportView, document: ComparisonDocument) -> dict[str, list[Table]]:
    """Return the tables that the study has data for, by section of the report.

    The sections are ``arms``, ``seeds``, ``pairs``, ``corruption``, ``corruption_detail``, ``cost``, ``search``,
    ``training``, ``memberships``, ``structure``, ``agreement``, ``blocks``, ``balanced``, ``classes``, ``errors``,
    ``lost``, ``trials`` and ``environment``.
    """
    steps = structure.GAP_STEPS
    gaps = structure.gaps(view, document)
    return {
        "arms": [accuracy_tables.arms_table(document)],
        "seeds": [accuracy_tables.seeds_table(document)],
        "pairs": list(accuracy_tables.pairs_tables(document)),
        "corruption": list(accuracy_tables.corruption_tables(document)),
        "corruption_detail": list(accuracy_tables.corruption_detail(document)),
        "cost": [cost_tables.cost_table(view, document)],
        "search": list(cost_tables.search_tables(view, document)),
        "training": list(training_tables.convergence_tables(view, document)),
        "memberships": list(structure_tables.memberships_tables(document)),
        "structure": list(
            structure_tables.structure_tables(view, document, gaps, raw=steps["raw"], hard=steps["hard"])
        ),
        "agreement": list(structure_tables.agreement_tables(classes.group_agreements(view, document))),
        "blocks": list(structure_tables.blocks_tables(answers.kept_blocks(view, document))),
        "balanced": list(class_tables.balanced_tables(view, document)),
        "classes": list(class_tables.class_tables(view, document)),
        "errors": [*confusion.confusion_tables(view, document), *_unique_answers(view, document)],
        "lost": list(cost_tables.lost_tables(view)),
        "trials": [cost_tables.trials_table(view)],
        "environment": [cost_tables.environment_table(view)],
    }


def _unique_answers(view: ReportView, document: ComparisonDocument) -> list[Table]:
    """Return on how many test images each arm differs from all others; nothing without predictions."""
    arms = answers.unique_answers(view, document)
    if not arms:
        return []
    return [
        table(
            "unique-answers",
            "Test images on which one arm differs from all others",
            "Test images on which one arm differs from all others. An arm classifies an image correctly if more than "
            "half of its retrained models do.",
            [Column("arm"), *("seeds", "only arm correct", "only arm incorrect")],
            [
                [Cell(arm.arm), count(arm.seeds), count(len(arm.only_correct)), count(len(arm.only_incorrect))]
                for arm in arms
            ],
        )
    ]
