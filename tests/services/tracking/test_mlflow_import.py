"""MLflow is imported again after an import that another thread has disturbed."""

import subprocess
import sys

PROGRAM = """
import importlib, sys, types
sys.modules["mlflow.version"] = importlib.import_module("json")  # what a failed import may leave behind
from services.tracking.mlflow_client import import_mlflow
import_mlflow()
import mlflow, os
print(mlflow.version.VERSION == mlflow.__version__, os.environ["MLFLOW_DISABLE_TELEMETRY"])
"""


def test_an_import_that_failed_half_way_is_begun_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "True true\n", done.stderr
