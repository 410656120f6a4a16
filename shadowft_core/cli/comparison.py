"""Prints the ledger of `compare` for people, as wide as the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shadowft_core.cli.tables import new_console, new_table, print_line
from shadowft_core.forgetting.text import both, change, kl_mean, kl_sentence, number, share, visible

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 400  # characters of an example: the end of the prompt, the beginning of an output
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
        print_line(console, f"  {visible(note)}")
    _show_scores(console, found)
    _show_answers(console, found["tasks"])
    _show_drift(console, found["tasks"])
    for task, about in found["tasks"].items():
        for kind, rows in about["examples"].items():
            for row in rows:
                _show_example(console, f"{visible(task)}, {kind}", row, named)


def _show_scores(console: "Console", found: Mapping[str, Any]) -> None:
    table = new_table("", "task", "items", *SIDES, "lost", "won", "net", "p", "KL")
    rows = dict(found["tasks"])
    if len(rows) > 1:
        rows |= {f"all of role {role}": about for role, about in found["roles"].items()}
    for name, about in rows.items():
        means = about.get("mean", {})
        flips = (str(about["lost"]), str(about["won"]), f"{about['net']:+d}", f"{about['p']:.2g}")
        scores = (number(means.get(side)) for side in SIDES)
        table.add_row(visible(name), str(about["n"]), *scores, *flips, kl_mean(about.get("kl")))
    console.print(table)
    for name, about in found["tasks"].items():
        if not about["right_or_wrong"]:
            print_line(console, f"{visible(name)}: lost or won if {about['metric']} moved by over {about['epsilon']:g}")
    if kl := found["arm"]["kl"]:
        print_line(console, f"KL of the Instruct to {visible(found['arm']['name'])}: {kl_sentence(kl)}")


def _show_answers(console: "Console", tasks: Mapping[str, Any]) -> None:
    """How long the answers are, and how they ended."""
    rows = {name: about for name, about in tasks.items() if about["answers"] and about["length"]}
    if not rows:
        return
    ends = list(next(about["answers"] for about in rows.values()))
    table = new_table("answers", "task", "tokens", "mean change", "median", *ends)
    for name, about in rows.items():
        length = about["length"]
        means = " to ".join(number(length[side]) for side in SIDES)
        moved = change(length["mean_change"]), change(length["median_change"])
        table.add_row(visible(name), means, *moved, *(both(about["answers"][end]) for end in ends))
    console.print(table)


def _show_drift(console: "Console", tasks: Mapping[str, Any]) -> None:
    rows = {name: about["drift"] for name, about in tasks.items() if about["drift"] and about["drift"]["answers"]}
    if not rows:
        return
    features = [key for key, value in next(iter(rows.values())).items() if isinstance(value, dict)]
    table = new_table("share of answers that keep the form of the reference's", "task", "answers", *features)
    for name, found in rows.items():
        table.add_row(visible(name), str(found["answers"]), *(share(found[feature]["kept"]) for feature in features))
    console.print(table)


def _show_example(console: "Console", title: str, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
    scores = " to ".join(number(row["scores"][side]) for side in SIDES)
    print_line(console, f"\n{title}: {scores}, item {row['item'].removeprefix('sha256:')[:12]}")
    prompt = str(row["prompt"])
    console.print(f"prompt: {'... ' * (len(prompt) > SHOWN)}{visible(prompt[-SHOWN:])}")
    for side in SIDES:
        text = str(row["outputs"][side])
        console.print(f"{named[side]}: {visible(text[:SHOWN]) or '(empty)'}{' ...' * (len(text) > SHOWN)}")
