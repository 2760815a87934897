"""Datasets of one's own, and machines without a network."""
