"""Who may use the service, and who did what: tokens, sessions of the web page, teams, and the audit log."""
