"""Schedules, as callers see them."""

from producer.schedules.calls import Schedules

__all__ = ["Schedules"]
