"""Any exportable network as a graph whose nodes can be removed and separated."""
