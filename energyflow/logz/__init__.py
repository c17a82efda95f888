"""Floor 4: log Z by annealing in both directions, with a verdict, and the oracles it is checked against."""

from energyflow.logz.bracket import ais, bracket, reverse_ais
from energyflow.logz.likelihood import bits_per_dimension, log_likelihood
from energyflow.logz.oracles import log_z_enumeration, log_z_quadrature
from energyflow.logz.path import linear_schedule, sigmoid_schedule
from energyflow.logz.raise_likelihood import RaiseLikelihood, hidden_units, raise_log_likelihood
from energyflow.logz.result import LogZ
from energyflow.logz.smc import Smc, smc

__all__ = [
    "LogZ",
    "RaiseLikelihood",
    "Smc",
    "ais",
    "bits_per_dimension",
    "bracket",
    "hidden_units",
    "linear_schedule",
    "log_likelihood",
    "log_z_enumeration",
    "log_z_quadrature",
    "raise_log_likelihood",
    "reverse_ais",
    "sigmoid_schedule",
    "smc",
]
