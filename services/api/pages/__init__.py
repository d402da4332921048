"""Pages of the service beside list and login: a study, the form for a new one, the queue."""
