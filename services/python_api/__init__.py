"""Studies from Python: `nas_blockout.Study`, its results as data frames, models and pictures.

The library reaches this package by its name when ``nas_blockout.Study`` is first read, and imports nothing of it
before.
"""

from services.python_api.frames import EstimatedCost
from services.python_api.study_handle import Study, StudyNotRun
from services.python_api.study_models import StudyModel
from services.python_api.study_report import ReportFigure, ShownVerdict, StudyReport

__all__ = ["EstimatedCost", "ReportFigure", "ShownVerdict", "Study", "StudyModel", "StudyNotRun", "StudyReport"]
