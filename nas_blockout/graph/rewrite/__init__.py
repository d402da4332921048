"""From the graph of a network and memberships of its nodes to the graph of the branched network."""
