"""Supernets: one network that holds many, whose choices between them are learned with its weights."""
