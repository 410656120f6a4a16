"""Prints the answers of `shadowft data` for people, as text and tables."""

from typing import TYPE_CHECKING, Any

from shadowft_core.cli.tables import new_console, new_table, print_line

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 2000  # characters of a sample; --json prints all


def show_prepared(found: dict[str, Any]) -> None:
    """Print what `data show` found."""
    console = new_console()
    print_line(console, f"{found['folder']}: {found['digest']}")
    dropped = ", ".join(f"{count} {reason}" for reason, count in found["rows_dropped"].items())
    print_line(console, f"{found['rows_read']} rows read, {found['rows_used']} used" + f"; {dropped}" * bool(dropped))
    table = new_table("", "split", "rows", "characters of", "min", "median", "p95", "max")
    for name, split in found["splits"].items():
        lengths = split["characters"] or {}
        table.add_row(name, str(split["rows"]), *_spread(lengths, "prompt"))
        if lengths:
            table.add_row("", "", *_spread(lengths, "reply"))
    console.print(table)
    for kind, about in found["suspect"].items():
        print_line(console, f"suspect: {about['rows']} rows, {kind}")
        for one in about["examples"]:
            print_line(console, f"  {one['source']}: {_line(one['text'])}")
    for sample in found["samples"]:
        _show_sample(console, sample)


def _spread(lengths: dict[str, Any], column: str) -> list[str]:
    if column not in lengths:
        return [""] * 5
    return [column, *(str(lengths[column][name]) for name in ("min", "median", "p95", "max"))]


def _show_sample(console: "Console", sample: dict[str, Any]) -> None:
    print_line(console, f"\n--- {sample['source']}")
    if sample["tools"]:
        print_line(console, f"tools: {_line(str(sample['tools']))}")
    for turn in sample["messages"]:
        thought = f"<think>{turn['reasoning_content']}</think> " if "reasoning_content" in turn else ""
        calls = f" {turn['tool_calls']}" if "tool_calls" in turn else ""
        text = thought + turn["content"] + calls
        more = f"... ({len(text)} characters)" if len(text) > SHOWN else ""
        print_line(console, f"{turn['role']}: {text[:SHOWN]}{more}")


def _line(text: str) -> str:
    return " ".join(text.split())
