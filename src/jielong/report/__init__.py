"""The report of a run: report.json for programs, report.html for people."""

from jielong.report.report import gather, write_report
from jielong.report.verdicts import verdicts

__all__ = ["gather", "verdicts", "write_report"]
