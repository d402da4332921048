"""What a study leaves when its trials have ended: comparison, report, exported models, MLflow."""
