"""Prints the answers of `shadowft data` for people, as text and tables."""

from typing import TYPE_CHECKING, Any

from shadowft_core.cli.tables import new_console, new_table, print_line

if TYPE_CHECKING:
    from rich.console import Console

COUNTS = ("before", "after", "added", "removed", "kept")
SHOWN = 2000  # characters of a sample; --json prints all


def show_prepared(found: dict[str, Any]) -> None:
    """Print what `data show` found."""
    console = new_console()
    print_line(console, f"{found['folder']}: {found['digest']}")
    dropped = ", ".join(f"{count} {reason}" for reason, count in found["rows_dropped"].items())
    pairs = f", {found['preferences']} with a rejected reply" if found["preferences"] else ""
    used = f"{found['rows_read']} rows read, {found['rows_used']} used{pairs}"
    print_line(console, used + f"; {dropped}" * bool(dropped))
    table = new_table("", "split", "rows", "characters of", "min", "median", "p95", "max")
    for name, split in found["splits"].items():
        lengths = split["characters"] or {}
        table.add_row(name, str(split["rows"]), *_spread(lengths, "prompt"))
        if lengths:
            table.add_row("", "", *_spread(lengths, "reply"))
    console.print(table)
    for name, split in found["splits"].items():
        if "tokens" in split and split["tokens"]["rows"]:
            _show_tokens(console, name, split["tokens"])
    for kind, about in found["suspect"].items():
        print_line(console, f"suspect: {about['rows']} rows, {kind}")
        for row in about["examples"]:
            print_line(console, f"  {row['source']}: {_line(row['text'])}")
    for row in found["nearest"] or ():
        print_line(console, f"similar to a test item: {row['similarity']:.2f} {row['source']} and {row['item']}")
        print_line(console, f"  {_line(row['text'])}")
    for sample in found["samples"]:
        _show_sample(console, sample)


def show_comparison(found: dict[str, Any]) -> None:
    """Print what `data diff` found."""
    console = new_console()
    if found["equal"]:
        print_line(console, f"{found['first']} and {found['second']} have the same rows in the same splits")
    table = new_table("rows", "split", *COUNTS)
    for name, counts in found["splits"].items():
        table.add_row(name, *(str(counts[column]) for column in COUNTS))
    console.print(table)
    for way, count in found["moved"]["ways"].items():
        print_line(console, f"moved from {way}: {count}")
    for row in found["moved"]["examples"]:
        print_line(console, f"  {row['source']}: {row['from']} to {row['to']}")
    print_line(console, f"questions with a changed reply: {found['changed']['questions']}")
    for pair in found["changed"]["examples"]:
        print_line(console, f"  {pair['first']} is now {pair['second']}")
    if found["dropped"]:
        table = new_table("rows dropped", "reason", "before", "after")
        for reason, counts in found["dropped"].items():
            table.add_row(reason, str(counts["before"]), str(counts["after"]))
        console.print(table)


def _spread(lengths: dict[str, Any], column: str) -> list[str]:
    if column not in lengths:
        return [""] * 5
    return [column, *(str(lengths[column][name]) for name in ("min", "median", "p95", "max"))]


def _show_tokens(console: "Console", name: str, tokens: dict[str, Any]) -> None:
    levels = ", ".join(f"{level} {tokens[level]}" for level in ("min", "median", "p95", "max"))
    share = f"{tokens['too_long_share']:.1%} longer than train.max_length {tokens['max_length']}"
    print_line(console, f"tokens of {tokens['rows']} rows of {name}: {levels}; {share}")
    for reason, about in tokens["refused"].items():
        print_line(console, f"  {about['rows']} rows refused: {reason} ({about['sources'][0]})")


def _show_sample(console: "Console", sample: dict[str, Any]) -> None:
    console.print()
    print_line(console, f"--- {sample['source']}")
    if "refused" in sample:
        print_line(console, f"left out of training: {sample['refused']}")
    if "sequences" in sample:
        for number, parts in enumerate(sample["sequences"]):
            if number and sample["rejected"]:
                print_line(console, "rejected:")
            text = "".join(f"{{+{part['text']}+}}" if part["learned"] else part["text"] for part in parts)
            console.print(text, soft_wrap=True)
        return
    if sample["tools"]:
        print_line(console, f"tools: {_line(str(sample['tools']))}")
    for turn in (*sample["messages"], *({**one, "role": "rejected"} for one in sample["rejected"] or ())):
        thought = f"<think>{turn['reasoning_content']}</think> " if "reasoning_content" in turn else ""
        calls = f" {turn['tool_calls']}" if "tool_calls" in turn else ""
        text = thought + _with_images(turn) + calls
        more = f"... ({len(text)} characters)" if len(text) > SHOWN else ""
        console.print(f"{turn['role']}: {text[:SHOWN]}{more}", soft_wrap=True)


def _with_images(turn: dict[str, Any]) -> str:
    """The content of a turn with a mark for each image."""
    text: str = turn["content"]
    for place in reversed(turn.get("image_places", [])):
        text = f"{text[:place]}[image]{text[place:]}"
    return text


def _line(text: str) -> str:
    return " ".join(text.split())
