"""Backbone, method, space, source of data, search algorithm and pruner of your own, to be copied."""
