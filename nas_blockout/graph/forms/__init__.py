"""The form in which a branched graph is only run: normalization folded in, operations divided by expected time."""
