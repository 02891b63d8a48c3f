"""What a run says beside the one before it: rows that changed, how far results moved, and a report of both."""

from producer.drift.counting import changes
from producer.drift.measuring import measure
from producer.drift.report import check_report, write_report
from producer.drift.samples import Samples, read_samples

__all__ = ["Samples", "changes", "check_report", "measure", "read_samples", "write_report"]
