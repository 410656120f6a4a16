"""`python -m tests.conformance --tool shadowft|mergekit|peft|state-dicts|"COMMAND TEMPLATE"`: fills in the table.

A template is a shell command with {base} {tuned} {instruct} {out}, or with {adapter} for LoRA; {work} is scratch space,
{dtype} the Instruct's dtype, {python} the interpreter of --python. Repeat --tool to compare.
Example: python -m tests.conformance --tool shadowft --tool peft --only lora --markdown table.md
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shadowft_core.files import write_atomically
from tests.conformance.cases import CASES, Case
from tests.conformance.kit import Kit, Outcome, Verdict
from tests.conformance.tools import NAMED, processes

Column = dict[str, Outcome]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tool", action="append", required=True, help="a name or a command template; repeatable")
    parser.add_argument("--python", default=sys.executable, help="interpreter for {python}, with mergekit installed")
    parser.add_argument("--only", default="", help="cases whose group or id contains this text")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.only in case.id or options.only in case.group]
    if not cases:
        parser.error(f"--only {options.only!r} matches none of {len(CASES)} cases")
    for name in options.tool:
        for template in NAMED.get(name, (name,)):
            if "{out}" not in template or not ("{tuned}" in template or "{adapter}" in template):
                parser.error(f"--tool {name!r} is none of {', '.join(NAMED)}, nor a command with {{out}} and {{tuned}}")
    columns: dict[str, Column] = {}
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        kit = Kit(Path(folder))
        for number, name in enumerate(options.tool):
            tool, label = (
                processes(NAMED.get(name, (name,)), options.python),
                name if name in NAMED else f"tool{number}",
            )
            columns[label] = {}
            for count, case in enumerate(cases, 1):
                outcome = columns[label][case.id] = kit.run(case, tool)
                print(f"{label}: {count}/{len(cases)} {case.id}: {outcome.verdict}", file=sys.stderr)
    text = table(cases, columns)
    print(text, end="")
    if options.markdown:
        write_atomically(options.markdown, text.encode())
    return 0 if all(good(outcome) for column in columns.values() for outcome in column.values()) else 1


def good(outcome: Outcome) -> bool:
    return outcome.verdict in (Verdict.PASS, Verdict.NOT_ASKED)


def table(cases: Sequence[Case], columns: dict[str, Column]) -> str:
    """The outcomes in Markdown: counts, a table for each group, and a note on each outcome that is not a pass."""
    lines = ["| outcome |" + "".join(f" {name} |" for name in columns), "|---|" + "---|" * len(columns)]
    counts = {name: Counter(outcome.verdict for outcome in column.values()) for name, column in columns.items()}
    for verdict in Verdict:
        label = "not a case for it" if verdict == Verdict.NOT_ASKED else verdict
        lines.append(f"| {label} |" + "".join(f" {count[verdict]} |" for count in counts.values()))
    for group in dict.fromkeys(case.group for case in cases):
        lines += ["", f"### {group}", "", "| case | inputs | expected |" + "".join(f" {n} |" for n in columns)]
        lines.append("|---|---|---|" + "---|" * len(columns))
        for case in cases:
            if case.group == group:
                cells = "".join(f" {column[case.id].verdict} |" for column in columns.values())
                lines.append(f"| {case.id} | {case.about} | {case.expected} |{cells}")
    for name, column in columns.items():
        notes = [
            f"- {key}: {outcome.verdict}: {_short(outcome.note)}"
            for key, outcome in column.items()
            if outcome.note and not good(outcome)
        ]
        if notes:
            lines += ["", f"### Notes on {name}", "", *notes]
    return "\n".join(lines) + "\n"


def _short(note: str) -> str:
    return note.replace("|", "\\|") if len(note) < 200 else f"{note[:197]}..."


if __name__ == "__main__":
    sys.exit(main())
