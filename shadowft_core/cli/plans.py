"""Gathers what `shadowft plan` reads, and prints the plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.cli.tables import new_console, new_table, print_line

if TYPE_CHECKING:
    from shadowft_core.params import Params


def planned(
    pair: Path, data: Path, preset: str | None, device: str | None, devices: int | None, params: "Params"
) -> dict[str, dict[str, Any]]:
    """The plans by route: of a preset from its table, else of the pair and data in these folders."""
    from shadowft_core import plan as room

    if preset is not None:
        from shadowft_core.presets import planned as planned_preset

        return {preset: planned_preset(preset, device, devices)}
    shapes, untrained = room.read_pair(pair)
    on = room.device(device or params.plan.device, params.train.threads)
    return room.plan_params(params, shapes, room.read_lengths(data), on, untrained, devices)


def show_plan(routes: dict[str, dict[str, Any]]) -> None:
    """Print one table for all routes with the same plan."""
    console = new_console()
    while routes:
        first = next(iter(routes.values()))
        same = [name for name, found in routes.items() if found == first]
        routes = {name: found for name, found in routes.items() if name not in same}
        count = f"{first['devices']} x " if first["devices"] > 1 else ""
        print_line(console, f"{', '.join(same)}: on {count}{first['device']}{_strategy(first)}")
        table = new_table("", "memory at the peak, each device", "GB")
        for part, size in first["memory"].items():
            if size:
                table.add_row(part, f"{size / 1e9:.2f}")
        table.add_section()
        table.add_row("sum", f"{first['peak'] / 1e9:.2f}")
        table.add_row("available", f"{first['available'] / 1e9:.2f}")
        console.print(table)
        for line in _lines(first):
            print_line(console, line)


def _strategy(found: dict[str, Any]) -> str:
    return f", {found['strategy']}" if found["strategy"] else ""


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['steps']:,} steps, {found['sequences']:,} sequences, {found['tokens']:,} tokens, "
        f"{found['padding']:.0%} padding, {found['operations']:.2e} operations"
    ]
    if found["seconds"] is not None:
        price = "" if found["price"] is None else f", price {found['price']:g}"
        lines.append(f"{_duration(found['seconds'])} at {found['utilisation']:.0%} of the peak FLOP/s{price}")
    sizes = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in found["disk"].items())
    lines.append(f"disk, GB: {sizes}")
    return lines + [f"assumed: {line}" for line in found["assumed"]]


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, with two digits or so."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
