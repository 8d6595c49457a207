"""Pages that show one run, or several side by side; each a file alone, with its pictures inside."""

from bilevel.report.comparison import Comparison as Comparison
from bilevel.report.comparison import compare as compare
from bilevel.report.comparison_page import comparison_text as comparison_text
from bilevel.report.comparison_page import write_comparison as write_comparison
from bilevel.report.run_page import write_report as write_report
