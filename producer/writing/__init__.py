"""Sinks: results become files, folders, tables and batch files."""

from producer.writing.base import Note, Results, Writer
from producer.writing.opening import open_sink

__all__ = ["Note", "Results", "Writer", "open_sink"]
