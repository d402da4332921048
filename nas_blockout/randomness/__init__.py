"""Draws: where random numbers come from in a step, and which rows of a batch they are drawn for."""
