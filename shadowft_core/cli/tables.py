"""Prints the results of `extract`, `receipt`, `pair` and `diff` for people, as text and tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.cli.output import say
from shadowft_core.errors import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN = 12  # rows of a table; --json prints all


def show_delta(out: Path, facts: dict[str, Any]) -> None:
    """Print what `extract` wrote."""
    forms = ", ".join(f"{count} {form}" for form, count in facts["tensors"].items())
    say(f"{out}: kind {facts['kind']}, tensors: {forms}; {facts['bytes']} bytes, error {facts['error']:g}")
    for reason, sides in facts["ignored"].items():
        for side, names in sides.items():
            say(f"  {len(names)} only in the {side}, {reason}: {', '.join(names[:3])}")
    for name, rows in facts["tokens"].items():
        say(
            f"  {name}: {rows['matched']} rows matched by token; left out: {rows['tuned_only']['rows']} "
            f"of tokens only in the tuned model, {rows['base_only']['rows']} only in the Base"
        )
    if facts["trainer"]:
        say(f"  {_sentence(facts['trainer'])}")


def _sentence(trainer: dict[str, Any]) -> str:
    from shadowft_core.delta import sentence

    return sentence(trainer)


def show_pair(result: dict[str, Any]) -> None:
    """Print the verdict on a pair, its reasons, and sigma by layer and module."""
    console = new_console()
    for role in ("base", "instruct"):
        named, facts = result[role], result["facts"][role]
        label = f" ({named['label']})" if named["label"] else ""
        print_line(console, f"{role}: {named['ref']} {named.get('digest', '')}".rstrip() + label)
        size = f"{facts['tensors']} tensors, {facts['weights']:,} weights in {', '.join(facts['dtypes'])}"
        template = "chat template" if facts["chat_template"] else "no chat template"
        print_line(
            console, f"  {facts['model_type']}, {size}, head {'tied' if facts['tied'] else 'untied'}, {template}"
        )
    print_line(console, f"verdict: {result['verdict']}")
    for reason in result["reasons"]:
        print_line(console, f"  {reason}")
    sigma = result["sigma"]
    read, size = sigma["weights"]["read"], sigma["weights"]["of"]
    print_line(console, f"sampled, {read:,} of {size:,} weights" if result["sampled"] else f"all {size:,} weights read")
    print_line(console, f"sigma {sigma['overall']:.5f} overall, {sigma['definition']} (0: identical, 1: unrelated)")
    if "vision" in sigma:
        parts = f"{sigma['language']:.5f} language model, {sigma['vision']['overall']:.5f} vision"
        print_line(console, f"sigma {parts}; below, the language model")
    for figure in sigma.get("aggregations", {}).values():
        value = "-" if figure["value"] is None else f"{figure['value']:.5f}"
        print_line(console, f"sigma {value} as {figure['definition']} ({figure['source']})")
    table = new_table("", "layer or module", "sigma")
    for layer, value in sorted(sigma["layers"].items(), key=lambda item: int(item[0])):
        table.add_row(f"layer {layer}", f"{value:.5f}")
    table.add_section()
    for module, value in sorted(sigma["modules"].items(), key=lambda item: (-item[1], item[0])):
        table.add_row(module, f"{value:.5f}")
    console.print(table)


def show_receipt(account: dict[str, Any]) -> None:
    """Print what was grafted and untouched, and the tensors that lost most to rounding."""
    console = new_console()
    print_line(console, f"{account['path']}: {account['digest']}")
    print_line(console, f"  = instruct {account['instruct']['digest']}")
    for delta in account["deltas"]:
        what = (
            f"delta {delta['digest']}"
            if "digest" in delta
            else f"({delta['tuned']} - {delta['base']}), no delta stored"
        )
        print_line(console, f"  + {delta['scale']:g} * {what}")
    merge = account["merge"]
    rule = " ".join(["merge", merge["rule"], *(f"{key} {merge[key]}" for key in ("density", "seed") if key in merge)])
    base = ", onto the delta's own Base" if account["onto_base"] else ""
    print_line(console, f"{rule}, scope {account['scope']}, dtype {account['dtype']}{base}")
    for digest, trainer in account["trained"].items():
        print_line(console, f"  {digest}: {_sentence(trainer)}")
    for pattern, scale in account["scale_for"]:
        print_line(console, f"  scale {scale:g} for {pattern}")
    if account["regrafted_from"]:
        print_line(console, f"regrafted from recipe {account['regrafted_from']}; needs its own verdict")
    if account["waivers"]:
        print_line(console, f"waived by name: {', '.join(account['waivers'])}")
    print_line(console, f"{account['classes']['grafted']} tensors grafted")
    for reason, names in account["untouched"].items():
        print_line(console, f"{len(names)} untouched, {reason}: {_some(names)}")
    _show_left_out(console, account)
    for name, rows in account["tokens"].items():
        print_line(
            console, f"{name}: {rows['matched']} rows matched by token, {rows['moved']} of them under another id"
        )
        for side, what in (
            ("instruct_only", "left as the Instruct's"),
            ("base_only", "of tokens that the Instruct lacks, dropped"),
            ("padding", "padding, left as the Instruct's"),
        ):
            if rows[side]["rows"]:
                print_line(console, f"  {rows[side]['rows']} {what}: {_some(rows[side]['ids'])}")
    if account["retention"] is None:
        return
    table = new_table(
        "what rounding kept of the delta, most affected first",
        *("tensor", "|delta|", "|delta|/|weight|", "cosine", "energy", "unchanged"),
    )
    rows = [{"name": "overall", **account["retention"]}, *account["tensors"][:SHOWN]]
    for row in rows:
        relative = "-" if row["relative"] is None else f"{row['relative']:.3g}"
        table.add_row(
            row["name"],
            *(f"{row['delta_norm']:.4g}", relative, f"{row['cosine']:.6f}", f"{row['energy']:.4%}"),
            f"{row['unchanged']:.2%}",
            end_section=row is rows[0],
        )
    console.print(table)
    _print_more(console, len(account["tensors"]))


def _show_left_out(console: "Console", account: dict[str, Any]) -> None:
    """Print which part of the delta was not grafted, and which tensors only one side has."""
    from shadowft_core.weights import percent

    if account["left_out"]:
        print_line(
            console, f"{len(account['left_out'])} tensors of the delta are out of scope: {_some(account['left_out'])}"
        )
    if travel := account["travel"]:
        shares = ", ".join(f"{leaf} {percent(share)}" for leaf, share in travel["stays"].items())
        print_line(console, f"{percent(travel['energy'])} of the delta's energy is grafted; not grafted: {shares}")
    for reason, sides in account["ignored"].items():
        for side, names in sides.items():
            print_line(console, f"{len(names)} only in the {side}, {reason}: {_some(names)}")


def show_diff(found: dict[str, Any]) -> None:
    """Print how many tensors differ and how, and the tensors that differ most."""
    console = new_console()
    for side in ("first", "second"):
        print_line(console, f"{side}: {found[side]['path']} {found[side]['digest']}")
    words = {"bits": "differ in bits", "dtype": "differ in dtype", "shape": "differ in shape"}
    counts = [f"{count} {words.get(status, status)}" for status, count in found["counts"].items() if count]
    print_line(console, f"tensors: {', '.join(counts)}")
    differing = {name: entry for name, entry in found["tensors"].items() if entry["status"] != "equal"}
    if not differing:
        print_line(console, "the models are equal")
        return

    def weight(item: tuple[str, dict[str, Any]]) -> tuple[bool, float, str]:
        """Sort differences of layout first, then non-finite values, then by relative norm."""
        name, entry = item
        relative = entry.get("relative")
        return entry["status"] == "bits", -float("inf") if relative is None else -relative, name

    table = new_table(
        "tensors that differ", "tensor", "how", "first", "second", "changed", "max |difference|", "relative"
    )
    for name, entry in sorted(differing.items(), key=weight)[:SHOWN]:
        numbers = [_number(entry, key) for key in ("max_abs", "relative")]
        changed = str(entry.get("changed", ""))
        table.add_row(name, entry["status"], _layout(entry, "first"), _layout(entry, "second"), changed, *numbers)
    console.print(table)
    _print_more(console, len(differing))


def _number(entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        return ""
    return "not finite" if entry[key] is None else f"{entry[key]:.4g}"


def _layout(entry: dict[str, Any], side: str) -> str:
    layout = entry.get(side)
    return f"{layout[0]} {layout[1]}" if layout else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _print_more(console: "Console", rows: int) -> None:
    if rows > SHOWN:
        print_line(console, f"and {rows - SHOWN} more; --json lists all")


def new_console() -> "Console":
    """A console as wide as the terminal, or wide enough for names on a pipe."""
    from shadowft_core import terminal

    console = terminal.new_console()
    if not console.is_terminal:
        console.width = 160  # a pipe has no width; tensor names are long
    return console


def print_line(console: "Console", line: str) -> None:
    """Print one line unwrapped, so that digests stay whole."""
    console.print(plain(line, "\t"), soft_wrap=True)


def new_table(title: str, first: str, *columns: str) -> "Table":
    """A table with names aligned left and numbers aligned right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table
