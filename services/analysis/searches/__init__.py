"""What the trials of searches show: their progress, importance of parameters, Pareto fronts."""
