"""The report of a run: report.json for programs, report.html for people."""

from jielong.report.curves import Drawn
from jielong.report.report import gather, write_report
from jielong.report.verdicts import verdicts

__all__ = ["Drawn", "gather", "verdicts", "write_report"]
