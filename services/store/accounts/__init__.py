"""Who may use the service, and who did what: tokens, sign-ins, sessions of the web page, teams, and the audit log."""
