"""Floor 6: what the draws say of themselves."""

from energyflow.diagnostics.checks import Check, check
from energyflow.diagnostics.export import from_netcdf, read_trace, summary, to_arviz, to_netcdf

__all__ = ["Check", "check", "from_netcdf", "read_trace", "summary", "to_arviz", "to_netcdf"]
