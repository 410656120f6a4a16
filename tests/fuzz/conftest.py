"""The table of the fuzz suite: what each target accepted and refused."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for found in ("passed", "failed") for report in terminalreporter.stats.get(found, ())]
    rows = [value for report in reports for name, value in report.user_properties if name == "fuzz"]
    if not rows:
        return
    columns = ("accepted", "refused", "seconds", "mib")
    terminalreporter.section("fuzz: inputs of each target, the slowest in seconds, the highest growth of memory in MiB")
    for row in sorted(rows, key=lambda row: row["target"]):
        terminalreporter.write_line(f"{row['target']:<28}" + "".join(f"{row[name]:>10}" for name in columns))
    totals = {name: sum(row[name] for row in rows) for name in columns[:2]}
    terminalreporter.write_line(
        f"{'all ' + str(sum(totals.values())):<28}" + "".join(f"{n:>10}" for n in totals.values())
    )
