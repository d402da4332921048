"""What happens to a request before a route sees it: limits on its size, its rate and its time."""
