"""A backbone, a method and a search space for nas-blockout, to be copied."""
