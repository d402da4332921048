"""Which figures a report has, by section. Importing this module imports matplotlib."""

from services.analysis.comparison import ComparisonDocument
from services.report import accuracy, answers, classes, confusion, corruption, search, structure
from services.report.figure import Shown
from services.report.view import ReportView


def pictures(view: ReportView, document: ComparisonDocument) -> dict[str, list[Shown]]:
    """Return the figures that the study has data for, by section of the report, or what is said in place of one.

    The sections are ``accuracy``, ``differences``, ``corruption``, ``cost``, ``search``, ``parameters``, ``gap``,
    ``agreement``, ``structure`` (by arm that learned one), ``architecture`` (of the other arms), ``blocks`` (that a
    policy keeps) and ``errors``.
    """
    learned = list(structure.learned(view, document))
    known = {str(picture.arm) for picture in learned}
    return {
        "accuracy": list(accuracy.accuracy(document)),
        "differences": list(accuracy.differences(document)),
        "corruption": list(corruption.corruption(document)),
        "cost": [*accuracy.fronts(document), *accuracy.costs(view, document)],
        "search": [*accuracy.progress(view, document), *accuracy.convergence(view, document)],
        "parameters": [*search.importance(view, document), *search.parallel(view, document)],
        "gap": list(structure.gap(view, document)),
        "agreement": list(classes.agreement(view, document)),
        "structure": learned,
        "blocks": list(answers.paths(view, document)),
        "architecture": list(structure.other_architectures(view, document, known=known)),
        "errors": [*confusion.confusion(view, document), *answers.only_correct_images(view, document)],
    }
