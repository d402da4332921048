"""Running a study: the driver that owns its trials, and what may be added to a study that was begun."""
