"""Statistics of a comparison: significance over seeds, curves of searches, agreement of groupings.

`significance` compares contestants whose retrainings share seeds; `search_curves` sums searches up; `cluster_agreement`
holds a learned grouping of classes against a known one.
"""
