"""P of a network whose structure is learned: its settings, where it begins, and how it is described."""
