"""Statistics of a comparison: significance over seeds, curves of searches, Pareto fronts, agreement of groupings.

`significance` compares arms whose retrainings share seeds; `search_curves` sums searches up; `pareto_fronts` has
fronts and hypervolumes of several objectives; `cluster_agreement` compares a learned grouping of classes with a known
one.
"""
