"""What a graft must produce and what it must refuse, as a table that any tool can be run against.

cases.py is the table; inputs.py and hostile.py make the folders of a case; oracle.py computes the answer; tools.py
runs a tool; kit.py judges it by exit code and output folder. See `python -m tests.conformance --help` and
docs/conformance.md.
"""
