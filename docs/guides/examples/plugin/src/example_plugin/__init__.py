"""A choice of your own of every kind that a study takes from plug-ins, to be copied."""
