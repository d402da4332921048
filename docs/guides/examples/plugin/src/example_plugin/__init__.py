"""A backbone, a method, a search space and a source of data for nas-blockout, to be copied."""
