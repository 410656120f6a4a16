"""Runs untrusted Python programs against tests, each isolated, and says which passed.

A program and its tests run in two processes. The program can give the tests nothing but plain values (sandbox/plain.py)
and knows neither the tests nor the process that decides. docs/sandbox.md says what is isolated and what is not.
"""

from shadowft_core.sandbox.benchmarks import Grade, grade
from shadowft_core.sandbox.limits import Limits
from shadowft_core.sandbox.running import Kind, Program, Verdict, require, run

__all__ = ["Grade", "Kind", "Limits", "Program", "Verdict", "grade", "require", "run"]
