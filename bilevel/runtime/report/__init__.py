"""`report.html`: one page that shows a run, with its pictures inside."""

from bilevel.runtime.report.run_page import write_report

__all__ = ["write_report"]
