"""Compression jobs: each step in a process of its own, from the artifact of the step before to one more."""
