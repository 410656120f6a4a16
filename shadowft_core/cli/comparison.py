"""Prints the ledger of `compare` for people, as wide as the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shadowft_core.cli.tables import new_console, new_table, print_line
from shadowft_core.forgetting.text import both, change, kl_mean, kl_sentence, number, share, visible

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 400  # characters of an example: the end of the prompt, the beginning of an output
NAME = 16  # columns of a terminal for the name of a task
SIDES = ("reference", "arm")


def show_ledger(found: Mapping[str, Any], console: "Console | None" = None) -> None:
    """Print the tables by task, then the examples."""
    console = console or new_console()
    named = {side: visible(found[side]["name"]) for side in SIDES}
    for side in SIDES:
        about = found[side]
        label = f" ({visible(about['label'])})" if about["label"] else ""
        print_line(console, f"{side}: {named[side]}, scale {number(about['scale'])}, {about['model_digest']}{label}")
    for note in found["notes"]:
        console.print(f"  {visible(note)}")
    _show_scores(console, found)
    _show_answers(console, found["tasks"])
    _show_drift(console, found["tasks"])
    for task, about in found["tasks"].items():
        for kind, rows in about["examples"].items():
            for row in rows:
                _show_example(console, f"{visible(task)}, {kind}", row, named)


def _show_scores(console: "Console", found: Mapping[str, Any]) -> None:
    rows = {}
    for name, about in found["tasks"].items():
        rows[name] = [str(about["n"]), *(number(about["mean"][side]) for side in SIDES), *_flips(about)]
        rows[name].append(kl_mean(about["kl"]))
        rows |= {f"{name}, {part}": [str(of["n"]), "", "", *_flips(of), ""] for part, of in about["slices"].items()}
    rows |= {f"all of {group}": [str(of["n"]), "", "", *_flips(of), ""] for group, of in found["groups"].items()}
    if len(found["tasks"]) > 1:
        rows |= {f"all of role {role}": [str(of["n"]), "", "", *_flips(of), ""] for role, of in found["roles"].items()}
    _show_rows(console, "", ["items", *SIDES, "lost", "won", "net", "p", "KL"], rows)
    for name, about in found["tasks"].items():
        if not about["right_or_wrong"]:
            print_line(console, f"{visible(name)}: lost or won if {about['metric']} moved by over {about['epsilon']:g}")
    if kl := found["arm"]["kl"]:
        print_line(console, f"KL of the Instruct to {visible(found['arm']['name'])}: {kl_sentence(kl)}")


def _flips(of: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return str(of["lost"]), str(of["won"]), f"{of['net']:+d}", f"{of['p']:.2g}"


def _show_answers(console: "Console", tasks: Mapping[str, Any]) -> None:
    """How long the answers are, and how they ended."""
    found = {name: about for name, about in tasks.items() if about["answers"] and about["length"]}
    rows = {}
    for name, about in found.items():
        length = about["length"]
        rows[name] = [" to ".join(number(length[side]) for side in SIDES)]
        rows[name] += [change(length["mean_change"]), change(length["median_change"])]
        rows[name] += [both(sides) for sides in about["answers"].values()]
        ends = list(about["answers"])
    if rows:
        _show_rows(console, "answers", ["tokens", "mean change", "median", *ends], rows)


def _show_drift(console: "Console", tasks: Mapping[str, Any]) -> None:
    found = {name: about["drift"] for name, about in tasks.items() if about["drift"] and about["drift"]["answers"]}
    rows = {}
    for name, drift in found.items():
        features = [key for key, value in drift.items() if isinstance(value, dict)]
        rows[name] = [str(drift["answers"]), *(share(drift[feature]["kept"]) for feature in features)]
    if rows:
        _show_rows(console, "share of answers that keep the form of the reference's", ["answers", *features], rows)


def _show_rows(console: "Console", title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A table; a paragraph for each row where the terminal is too narrow for its columns."""
    widths = [max(map(len, cells)) + 2 for cells in zip(columns, *rows.values(), strict=True)]
    if sum(widths) + NAME <= console.width:
        table = new_table(title, "task", *columns)
        for name, cells in rows.items():
            table.add_row(visible(name), *cells)
        console.print(table)
        return
    console.print(f"\n{title}:" if title else "")
    for name, cells in rows.items():
        pairs = ", ".join(f"{column} {cell}" for column, cell in zip(columns, cells, strict=True) if cell)
        console.print(f"{visible(name)}: {pairs}")


def _show_example(console: "Console", title: str, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
    scores = " to ".join(number(row["scores"][side]) for side in SIDES)
    console.print()
    print_line(console, f"{title}: {scores}, item {row['item'].removeprefix('sha256:')[:12]}")
    prompt = str(row["prompt"])
    console.print(f"prompt: {'... ' * (len(prompt) > SHOWN)}{visible(prompt[-SHOWN:])}")
    for side in SIDES:
        text = str(row["outputs"][side])
        console.print(f"{named[side]}: {visible(text[:SHOWN]) or '(empty)'}{' ...' * (len(text) > SHOWN)}")
