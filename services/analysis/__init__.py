"""Analysis of the trials of a study: the comparison of its arms, and the verdict, fronts and tables made from it."""
