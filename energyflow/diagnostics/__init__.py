"""Floor 6: what the draws say of themselves, a probe for what they cannot say, and whether a field has an energy."""

from energyflow.diagnostics.by_chain import by_chain
from energyflow.diagnostics.checks import Check, check
from energyflow.diagnostics.curl import asymmetry
from energyflow.diagnostics.export import from_netcdf, read_trace, summary, to_arviz, to_netcdf
from energyflow.diagnostics.probe import Probe, probe_modes
from energyflow.diagnostics.short_run import GapReport, LongRun, gap_report, long_run
from energyflow.diagnostics.superchains import superchain_starts

__all__ = [
    "Check",
    "GapReport",
    "LongRun",
    "Probe",
    "asymmetry",
    "by_chain",
    "check",
    "from_netcdf",
    "gap_report",
    "long_run",
    "probe_modes",
    "read_trace",
    "summary",
    "superchain_starts",
    "to_arviz",
    "to_netcdf",
]
