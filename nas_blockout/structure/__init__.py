"""How a trained network becomes a smaller or branched one.

`distill` (memberships), `pruning` (magnitudes) and `confusion` (mistakes) each turn the
network of a first stage into that of a second; `two_stages` is what the three share. `branching` says how far the
result branches.
"""
