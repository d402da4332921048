"""Running a study: the driver that runs its trials, and the rules for extending a study that has been started."""
