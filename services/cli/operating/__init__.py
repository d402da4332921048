"""Commands for whoever operates the service: deleting studies, teams, the audit log."""
