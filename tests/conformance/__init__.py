"""What a graft must give back and what it must refuse, as a table that any tool can be run against.

cases.py is the table; inputs.py and lies.py make the folders of a case; oracle.py says what is right; tools.py runs a
tool; kit.py judges it by exit code and output folder alone. `python -m tests.conformance --help`; docs/conformance.md.
"""
