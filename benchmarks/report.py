"""Put the measured figures into docs/performance.md, so that it says nothing that no result stands behind.

``python -m benchmarks.report`` rewrites what lies between the markers; the tests hold the page to the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.run import RESULTS
from benchmarks.timing import show_time

PAGE = RESULTS.parent.parent / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def _figure(value: float, unit: str) -> str:
    if unit == "ns":
        return show_time(value)
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _source(result: dict[str, Any]) -> str:
    at = result["machine"]
    virtual = "virtual machine, " if at["virtual"] else ""
    return (
        f"`{result['command']}`, commit `{result['commit'][:12]}`, {result['taken'][:10]}, {at['processor']}, "
        f"{virtual}{at['cores']} processors, load {at['load_at_start']:.1f} at the start, "
        f"Python {result['python']}."
    )


def goals() -> str:
    """Return the table of issue 3's goals."""
    result = _load("engine")
    lines = [_source(result), "", "| what | goal | minimum | median | |", "|---|---|---|---|---|"]
    for one in result["goals"]:
        unit = "" if one["unit"] == "ns" else f" {one['unit']}"
        goal, low, median = (_figure(one[name], one["unit"]) for name in ("goal", "minimum", "median"))
        least = "at least " if one["at_least"] else ""
        mark = "" if one["reached"] else "**missed**"
        lines.append(f"| {one['what']} | {least}{goal}{unit} | {low} | {median} | {mark} |")
    return "\n".join(lines)


def engines() -> str:
    """Return the table of engines over the number of programs."""
    result = _load("engine")
    series = [one for one in result["series"] if one["grid"] == "8x8" and one["cbs"] == 4]
    sizes = sorted({one["programs"] for one in series})
    names = list(dict.fromkeys((one["engine"], one["level"]) for one in series))
    lines = []
    for workload in dict.fromkeys(one["workload"] for one in series):
        lines += [f"**{workload}**", "", "| engine | " + " | ".join(f"{n:,}" for n in sizes) + " |"]
        lines.append("|---|" + "---|" * len(sizes))
        for name, level in names:
            row = {o["programs"]: o for o in series if (o["engine"], o["workload"]) == (name, workload)}
            cells = []
            for size in sizes:
                one = row.get(size)
                if one is None or not one["add_ns"]:
                    cells.append("–")
                else:
                    text = f"{show_time(one['add_ns']['min'])} / {show_time(one['remove_ns']['min'])}"
                    cells.append(text if one["right"] else f"{text} (wrong)")
            if any(cell != "–" for cell in cells):
                where = ", one core" if level.startswith("Python") else ""
                lines.append(f"| {name}{where} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += _variants(result["series"])
    lines += _capped(series)
    reasons: dict[str, list[str]] = {}
    for name, why in result["left_out"].items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        # The JSON names them all.
        what = ", ".join(names) if len(names) < 4 else f"{len(names)} series, from {names[0]} to {names[-1]}"
        lines += [f"Left out: {what}: {why}.", ""]
    return "\n".join(lines).rstrip()


def _variants(series: list[dict[str, Any]]) -> list[str]:
    """Return the table of ttmem on other grids and with other numbers of CBs."""
    mine = [one for one in series if one["engine"] == "ttmem" and (one["grid"], one["cbs"]) != ("8x8", 4)]
    mine = [one for one in mine if one["add_ns"]]
    if not mine:
        return []
    kinds = list(dict.fromkeys((one["grid"], one["cbs"], one["programs"]) for one in mine))
    lines = ["**ttmem on other grids and with more CBs**", ""]
    lines.append("| workload | " + " | ".join(f"{grid}, {cbs} CBs, {n:,}" for grid, cbs, n in kinds) + " |")
    lines.append("|---|" + "---|" * len(kinds))
    for workload in dict.fromkeys(one["workload"] for one in mine):
        row = {(o["grid"], o["cbs"], o["programs"]): o for o in mine if o["workload"] == workload}
        cells = [
            f"{show_time(row[kind]['add_ns']['min'])} / {show_time(row[kind]['remove_ns']['min'])}"
            if kind in row
            else "–"
            for kind in kinds
        ]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _capped(series: list[dict[str, Any]]) -> list[str]:
    """Return lines that name the engines that were too slow to be timed, and where."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in series:
        if not one["add_ns"] and one["note"]:
            why = re.sub(r"took [\d.]+ s( at [\d,]+ cached)?$", "took too long", one["note"].removeprefix("left out: "))
            found.setdefault((one["engine"], why), []).append(f"{one['workload']} at {one['programs']:,}")
    return [line for (engine, why), where in found.items() for line in (f"{engine}, {why}: {', '.join(where)}.", "")]


def further() -> str:
    """Return the table of figures that have no goal."""
    lines = ["| what | minimum | median |", "|---|---|---|"]
    for name, value in _load("engine")["further"].items():
        what, unit = name.rsplit(", ", 1)
        low, median = (value["min"], value["median"]) if isinstance(value, dict) else (value, value)
        suffix = "" if unit == "ns" else f" {unit}"
        lines.append(f"| {what} | {_figure(low, unit)}{suffix} | {_figure(median, unit)}{suffix} |")
    return "\n".join(lines)


def floor() -> str:
    """Return the table of the parts."""
    result = _load("floor")
    lines = [_source(result), "", "| part | minimum | median |", "|---|---|---|"]
    for name, one in result["figures"].items():
        lines.append(f"| {name} | {show_time(one['min'])} | {show_time(one['median'])} |")
    return "\n".join(lines)


def segment() -> str:
    """Return the table of the segment's benchmark."""
    result = _load("segment")
    lines = [_source(result), "", "| what | goal | minimum | median | |", "|---|---|---|---|---|"]
    for one in result["rows"]:
        goal = "" if one["goal"] is None else show_time(one["goal"])
        mark = "**missed**" if one["reached"] is False else ""
        lines.append(f"| {one['what']} | {goal} | {show_time(one['minimum'])} | {show_time(one['median'])} | {mark} |")
    return "\n".join(lines)


def deaths() -> str:
    """Return the table of killed writers."""
    result = _load("segment")
    lines = ["| peer | writers killed | records torn | dead figures still given | |", "|---|---|---|---|---|"]
    for one in result["deaths"]:
        lines.append(f"| {one['name']} | {one['killed']} | {one['torn']} | {one['still_counted']} | {one['note']} |")
    lines += [""] + [f"Left out: {name}: {why}." for name, why in result["left_out"].items()]
    return "\n".join(lines).rstrip()


BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__: block for block in (goals, engines, further, floor, segment, deaths)
}


def render(text: str) -> str:
    """Return the page with the figures of the results between its markers."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


def main() -> int:
    """Rewrite the page; return 0."""
    PAGE.write_text(render(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
