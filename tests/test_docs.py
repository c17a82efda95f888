"""The documents are true: every Python block of every page runs, links resolve, tables say what the code says.

A page is a user's program: its blocks run in order in one namespace, in a process of its own without JAX's strict
flags, with warnings as errors.
"""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from energyflow import arguments, recipe
from energyflow.cli import ABOUT
from energyflow.diagnostics import checks
from energyflow.report import verdicts
from energyflow.spec import Spec

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")] if not path.parts[-2].startswith("."))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IGNORED = [f for f in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["filterwarnings"]]
# Compiling is most of what a page costs, and nothing here needs fast code.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
RUNNER = """
import sys, warnings
warnings.simplefilter("error")
for message in {ignored}:
    warnings.filterwarnings("ignore", message=message)
source = open(sys.argv[1], encoding="utf-8")
exec(compile(source.read(), sys.argv[2], "exec"), {{"__name__": "__main__"}})
"""
