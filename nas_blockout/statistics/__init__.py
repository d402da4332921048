"""Statistics of a comparison: significance and equivalence over seeds, curves of searches, Pareto fronts, groupings.

`significance` compares arms whose retrainings share seeds, and `equivalence` says whether two lie within a
margin; `search_curves` sums searches up; `pareto_fronts` has fronts and hypervolumes of several objectives;
`cluster_agreement` compares a learned grouping of classes with a known one, and `rank_agreement` two rankings.
"""
