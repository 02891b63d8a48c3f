"""What a run says beside the one before it: rows that changed, how far results moved, and a report of both."""

from producer.drift.counting import changes
from producer.drift.measuring import drift
from producer.drift.report import check_report, write_report

__all__ = ["changes", "check_report", "drift", "write_report"]
