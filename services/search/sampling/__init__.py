"""Samplers that are made anew for every proposal, from the trials in the store: what Optuna keeps, they rebuild."""
