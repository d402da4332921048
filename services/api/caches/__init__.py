"""What the API remembers for a second or so, so that many callers cost the store little."""
