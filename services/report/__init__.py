"""The report of a study as one HTML file.

`render` makes it from a `ReportView`, which holds plain values only; `write` puts it into the folder of the study.
"""

from services.report.page import render, script_hash, write
from services.report.view import ReportView

__all__ = ["ReportView", "render", "script_hash", "write"]
