"""Floor 8: the report of a run: one HTML file that a person reads first and that opens anywhere, without a network."""

from energyflow.report.page import write_report

__all__ = ["write_report"]
