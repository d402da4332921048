"""What the trials of a study say: the comparison of its arms and the sentences, fronts and tables made from it."""
