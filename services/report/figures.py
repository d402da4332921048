"""Which figures a report has, by section. Importing it imports matplotlib."""

from services.comparison import ComparisonDocument
from services.report import answers, classes, corruption, outcome, searching, structure
from services.report.picture import Picture
from services.report.view import ReportView


def pictures(view: ReportView, document: ComparisonDocument) -> dict[str, list[Picture]]:
    """Return the figures that the study has data for, by section of the report.

    The sections are ``accuracy``, ``differences``, ``corruption``, ``cost``, ``search``, ``parameters``, ``gap``,
    ``agreement``, ``structure`` (by arm that learned one), ``architecture`` (of the other arms) and ``errors``.
    """
    learned = list(structure.learned(view, document))
    known = {str(picture.arm) for picture in learned}
    return {
        "accuracy": list(outcome.accuracy(document)),
        "differences": list(outcome.differences(document)),
        "corruption": list(corruption.corruption(document)),
        "cost": [*outcome.fronts(document), *outcome.costs(view, document)],
        "search": [*outcome.progress(view, document), *outcome.convergence(view, document)],
        "parameters": [*searching.importance(view, document), *searching.parallel(view, document)],
        "gap": list(structure.gap(view, document)),
        "agreement": list(classes.agreement(view, document)),
        "structure": learned,
        "architecture": list(structure.other_architectures(view, document, known=known)),
        "errors": [*outcome.confusion(view, document), *answers.alone(view, document)],
    }
