"""The plot of the engine's benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contest import Series
from benchmarks.workloads import ALL


def plot(series: list[Series], path: Path) -> str:
    """Draw time over number of programs, log-log; return why not, or an empty text."""
    try:
        import matplotlib
    except ImportError as error:
        return f"no plot: {error}; python -m pip install -r benchmarks/requirements.txt"
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ttmem"
    from matplotlib import pyplot

    shown = [name for name in ("stack", "stack32", "split", "random", "staircase", "comb") if name in ALL]
    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7.5), sharex=True, sharey=True)
    names = sorted({(one.level, one.engine) for one in series})
    colours = {engine: f"C{i % 10}" for i, (_, engine) in enumerate(names)}
    styles = {"C": "-", "C++": "--", "Python, one core": ":"}
    for panel, workload in zip(panels.flat, shown, strict=True):
        for level, engine in names:
            points = sorted(
                (one.programs, min(one.add_ns) / 1e3)
                for one in series
                if (one.engine, one.workload, one.grid, one.cbs) == (engine, workload, "8x8", 4)
                and one.add_ns
                and one.right
            )
            if points:
                ours = engine.startswith("ttmem")
                panel.plot(
                    *zip(*points, strict=True),
                    styles[level],
                    marker="o",
                    markersize=5 if ours else 3,
                    linewidth=2.4 if ours else 1.2,
                    color=colours[engine],
                    label=engine + (" (one core of 64)" if level.startswith("Python") else ""),
                )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(workload)
        panel.grid(visible=True, which="major", alpha=0.3)
    for panel in panels[1]:
        panel.set_xlabel("programs in the cache")
    for panel in panels[:, 0]:
        panel.set_ylabel("one program added, µs")
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=4, frameon=False, fontsize=9)
    figure.suptitle("One program of 4 circular buffers added to a device of 8x8 cores (minimum of the rounds)")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return ""
