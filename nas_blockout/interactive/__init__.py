"""What is called from a script or a notebook: one network without a study, an estimator, pictures and tables."""
