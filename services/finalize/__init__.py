"""What a study leaves behind once its trials have ended: comparison, exported models, report, runs in MLflow.

Its parts: `finalize` (all of it, in order), `winners` (which trials are exported, and their networks), `trial_table`
(trials.csv), `report_input` (what the report shows), `export` (folders of exported models), `mlflow_runs`
and `mlflow_pages` (where its runs are compared).
"""
