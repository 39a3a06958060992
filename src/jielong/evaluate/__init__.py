"""Judges: held-out likelihood, n-gram baselines, skills by exact match, and the hidden preference."""
