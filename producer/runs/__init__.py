"""Runs carried out: rows of a source scored into a sink, phase by phase, each under a lease."""
