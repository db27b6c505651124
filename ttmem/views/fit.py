"""Whether circular buffers fit, as text."""

from __future__ import annotations

from ttmem.fit import CbSpec, Fit
from ttmem.units import format_exact
from ttmem.views.text import Screen, exact_bytes, wrap


def render_fit(answer: Fit, screen: Screen) -> str:
    """Return one answer as text."""
    where = "" if answer.room.device_id is None else f"Device {answer.room.device_id}: "
    lines: list[str] = []
    outside = any(found.outside for found in answer.ranges)
    for found in answer.ranges:
        core = "" if found.binding_core is None else f" (core {found.binding_core.x},{found.binding_core.y} binds)"
        head = f"{where}{found.core_range}: "
        if found.outside and answer.room.grid is not None:
            grid = answer.room.grid
            head += f"does not fit: the grid has {grid[0]}x{grid[1]} cores"
        elif found.headroom_bytes is None:
            head += f"CBs end at {found.cb_region_end}; whether that fits is not known"
        elif found.headroom_bytes < 0:
            head += (
                f"does not fit: CBs end at {found.cb_region_end}, {exact_bytes(-found.headroom_bytes)} "
                f"above {found.limit}{core}"
            )
        else:
            head += (
                f"fits: CBs end at {found.cb_region_end}, {exact_bytes(found.headroom_bytes)} below {found.limit}{core}"
            )
        lines += wrap(head, screen, rest="  ")
    for index, (spec, address, largest) in enumerate(
        zip(answer.specs, answer.addresses, answer.largest, strict=True), 1
    ):
        lines += wrap(
            f"CB {index}: {format_exact(spec.size)} bytes per core at {address} on {spec.core_ranges}"
            # Cores that are not there hold nothing of any size.
            + ("" if outside else f"; {_largest_text(spec, largest)}"),
            screen,
            first="  ",
            rest="    ",
        )
    return "".join(line + "\n" for line in lines)


def _largest_text(spec: CbSpec, largest: int | None) -> str:
    if largest is None:
        return "how large it may be is not known"
    size = spec.with_tiles(largest).size
    if largest == 0:
        return "there is no room for any of it beside the others"
    if spec.tile_bytes == 1:
        return f"it may have at most {format_exact(size)} bytes beside the others"
    plural = f", {spec.buffers} times" if spec.buffers > 1 else ""
    return f"it may hold at most {largest} tiles{plural} ({format_exact(size)} bytes) beside the others"
