"""What the tests have a ttnn process do: ``scenes.py NAME [ARGUMENTS]`` prints one answer."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import threading
import time
import types
import warnings

import ttnn
import workloads
from workloads import L1, WORKLOADS, Bench, Count, answer, regions

from ttmem import _ttnn_hook as hook


def figures(name, mesh=""):
    """Follow a workload and compare with TT-Metal's regions."""
    hook.start()
    bench, count = Bench([int(n) for n in mesh.split("x")] if mesh else None), Count()
    keep = WORKLOADS[name](bench)
    lag = {}
    count.feed(hook.drain())
    chips = list(bench.device.get_device_ids())
    for chip in chips:
        lag[chip] = (count.covered(chip, "circular_buffer"), hook.total_cb(chip))
    refreshed = bench.refresh()
    count.feed(hook.drain())
    theirs = regions()
    answer(
        ours={chip: count.figures(chip) for chip in chips},
        theirs={chip: theirs[chip] for chip in chips},
        now=lag,
        all_kinds={chip: count.covered(chip, "circular_buffer", "dataflow_buffer") for chip in chips},
        kinds=count.kinds,
        dispatched=count.dispatched,
        status=hook.status(),
        refused=bench.refused,
        kept=len(keep) + bool(refreshed),
    )


def counts(name, mode):
    """Count a workload's events, with or without a graph capture around it."""
    hook.start()
    bench, count = Bench(), Count()
    if mode == "capture":
        ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
    keep = WORKLOADS[name](bench)
    nodes = ttnn.graph.end_graph_capture() if mode == "capture" else []
    count.feed(hook.drain())
    answer(kinds=count.kinds, dispatched=count.dispatched, nodes=len(nodes), kept=len(keep))


def pretended():
    """Allocate and dispatch in a NO_DISPATCH capture: nothing of it may count."""
    hook.start()
    bench, count = Bench(), Count()
    x = bench.tensor(1, 1, 256, 256)
    first = ttnn.add(x, x)
    count.feed(hook.drain())
    before = count.figures(0)
    ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NO_DISPATCH)
    y = bench.tensor(1, 1, 256, 256, memory=L1)
    z = ttnn.add(x, x)
    ttnn.graph.end_graph_capture()
    inside = hook.drain()
    del y, z
    count.feed(inside)
    count.feed(hook.drain())
    answer(
        before=before, after=count.figures(0), inside=len(inside), blocked=hook.status()["blocked"], kept=bool(first)
    )


def threads():
    """Allocate, dispatch and free on four threads; ttnn 0.77 crashes by itself if they dispatch at the same moment."""
    hook.start()
    bench, count = Bench(), Count()
    failures, turn = [], threading.Lock()

    def work(number):
        try:
            for i in range(40):
                x = bench.tensor(1, 1, 32 * (1 + number), 32 * (1 + i % 5), memory=L1 if i % 2 else workloads.DRAM)
                with turn:
                    y = ttnn.add(x, x)
                if i % 3:
                    ttnn.deallocate(y)
        except Exception as error:
            failures.append(repr(error))

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    gc.collect()
    bench.refresh()
    count.feed(hook.drain())
    answer(ours=count.figures(0), theirs=regions()[0], dispatched=count.dispatched, failures=failures)


def overlap():
    """Two circular buffers whose ranges share a core: TT-Metal charges each to every core of both."""
    hook.start()
    bench, count = Bench(), Count()
    bench.circular([(4096, (0, 0, 1, 0)), (8192, (1, 0, 2, 0))])
    count.feed(hook.drain())
    (footprint,) = count.programs.values()
    answer(ours=count.covered(0, "circular_buffer"), theirs=regions()[0]["cb"], footprint=footprint)


def clash():
    """Lay circular buffers out into a live L1 buffer: TT-Metal throws."""
    hook.start()
    bench, count = Bench(), Count()
    bench.circular([(2048, (0, 0, 0, 0))])
    before = hook.total_cb(0)
    tensor = bench.tensor(1, 1, 2048, 17152, memory=L1)
    thrown = ""
    try:
        bench.circular([(409600, (0, 0, 1, 0))])
    except RuntimeError as error:
        thrown = str(error)
    count.feed(hook.drain())
    now = hook.total_cb(0)
    after = count.covered(0, "circular_buffer")
    time.sleep(0.2)
    bench.circular([(4096, (2, 0, 2, 0))])
    count.feed(hook.drain())
    answer(
        before=before,
        now=now,
        ours=after,
        thrown=thrown,
        refreshed=regions()[0]["cb"],
        ours_refreshed=count.covered(0, "circular_buffer"),
        kept=bool(tensor),
    )


def undone():
    """Stop and start again; calls go on as if nothing had been."""
    bench = Bench()
    x = bench.tensor(1, 1, 64, 64)
    started = hook.start()
    keep = [ttnn.add(x, x)]
    held, seen = hook.status()["held"], len(hook.drain())
    left = hook.stop()
    keep.append(ttnn.multiply(x, x))
    silent = len(hook.drain())
    hook.start()
    keep.append(ttnn.add(x, x))
    again = [event[0] for event in hook.drain()]
    status = hook.status()
    unknown = status["unknown_dispatches"]
    hook.stop()
    answer(
        started=started,
        held=held,
        slots=status["slots"],
        seen=seen,
        left=left,
        silent=silent,
        again=again,
        unknown=unknown,
        held_after=hook.status()["held"],
        kept=len(keep),
    )


def tracked(name, mesh=""):
    """Track a workload through the publisher and read it back as any reader does."""
    import ttmem
    import ttmem.ttnn

    bench = Bench([int(n) for n in mesh.split("x")] if mesh else None)
    early = bench.tensor(1, 1, 64, 64, memory=L1)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        tracker = ttmem.ttnn.track(bench.device)
    keep = WORKLOADS[name](bench)
    bench.refresh()
    tracker.sync()
    theirs, ours, devices = regions(), {}, {}
    for chip in bench.device.get_device_ids():
        with ttmem.attach(chip) as reader:
            devices[chip] = reader.snapshot().to_dict()
        memory = devices[chip]["memory"]
        ours[chip] = {key: memory[key]["used_bytes"] for key in ("dram", "l1", "l1_small", "trace")}
        ours[chip]["cb"] = memory["cb"]["physical_bytes"]
    ttnn.deallocate(early)
    tracker.sync()
    l1_after = {chip: ttmem.attach(chip).snapshot().memory.l1.used_bytes for chip in ours}
    l1_theirs = {chip: regions()[chip]["l1"] for chip in ours}
    first = next(iter(devices.values()))
    tracker.stop()
    answer(
        active=True,
        raised=[str(one.message) for one in raised],
        ours=ours,
        theirs={chip: theirs[chip] for chip in ours},
        l1_after=l1_after,
        l1_theirs=l1_theirs,
        geometry={key: first[key] for key in ("arch", "grid", "asic_id", "source", "state")},
        asic_ids={chip: device["asic_id"] for chip, device in devices.items()},
        accounting=first["l1_accounting"],
        programs=[row["name"] for row in first["programs"]],
        sources_after=[device.source for device in ttmem.devices()],
        held_after=hook.status()["held"],
        kept=len(keep),
        pid=os.getpid(),
        pids=[process["pid"] for process in first["processes"]],
    )


def peaked():
    """Let a tracked workload run between a reset of the marks and a look at them, as a limited test does."""
    import ttmem.ttnn
    from ttmem.process_peaks import ProcessPeaks

    bench = Bench()
    held = bench.tensor(1, 1, 512, 512, memory=L1)
    tracker = ttmem.ttnn.track(bench.device)
    with ProcessPeaks() as peaks:
        other = bench.tensor(1, 1, 1024, 1024, memory=L1)
        ttnn.deallocate(other)
        ttnn.add(held, held)
    with ProcessPeaks() as quiet:
        tracker.stop()
    answer(rows=peaks.rows(), quiet=quiet.rows())


def captured(name, mesh=""):
    """Follow a workload by graph captures, as where the hook cannot be had, and read it back."""
    import ttmem
    import ttmem.ttnn

    bench = Bench([int(n) for n in mesh.split("x")] if mesh else None)
    early = bench.tensor(1, 1, 64, 64, memory=L1)
    hook.start = lambda: "there is no such call"
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        tracker = ttmem.ttnn.track(bench.device)
    plain = {kind: kind.__call__ for kind in (type(ttnn.add),)}
    first = WORKLOADS[name](bench)
    windows, late = tracker.windows, bench.tensor(1, 1, 512, 512, memory=L1)
    second = WORKLOADS[name](bench)
    again = tracker.windows - windows
    bench.refresh()
    tracker.sync()
    theirs, ours, lowest, devices = regions(), {}, {}, {}
    for chip in bench.device.get_device_ids():
        with ttmem.attach(chip) as reader:
            devices[chip] = reader.snapshot().to_dict()
        memory = devices[chip]["memory"]
        ours[chip] = {key: memory[key]["used_bytes"] for key in ("dram", "l1", "l1_small", "trace")}
        ours[chip]["cb"] = memory["cb"]["physical_bytes"]
        lowest[chip] = min(core["l1_lowest_address"] for core in devices[chip]["cores"])
    addresses = [
        t.buffer_address() for t in (*first, *second, early, late) if t is not None and "L1" in repr(t.memory_config())
    ]
    bench.device.clear_program_cache()
    x = bench.tensor(1, 1, 32, 32)
    y = ttnn.add(x, x)
    one = next(iter(ours))
    cleared = [row["name"] for row in ttmem.attach(one).snapshot().to_dict()["programs"]]
    missed, tracker_warnings = tracker.missed, tracker.warnings
    tracker.stop()
    answer(
        raised=[str(warning.message) for warning in raised],
        ours=ours,
        theirs={chip: theirs[chip] for chip in ours},
        again=again,
        lowest=lowest,
        lowest_address=min(addresses),
        missed=missed,
        warnings=tracker_warnings,
        said=devices[one]["warnings"],
        resident=devices[one]["memory"]["cb"]["resident_bytes"],
        programs=[row["name"] for row in devices[one]["programs"]],
        cleared=cleared,
        restored=[kind.__call__ is not call for kind, call in plain.items()],
        sources_after=[device.source for device in ttmem.devices()],
        kept=bool(y),
    )


def stepping_aside():
    """Capture a graph while ttmem would make captures of its own."""
    import ttmem.ttnn

    bench = Bench()
    x = bench.tensor(1, 1, 64, 64)

    def capture(operation, mode=ttnn.graph.RunMode.NORMAL):
        ttnn.graph.begin_graph_capture(mode)
        keep = operation(x, x)
        nodes = ttnn.graph.end_graph_capture()
        return len(nodes), bool(keep)

    alone = capture(ttnn.subtract)
    bench.device.clear_program_cache()
    tracker = ttmem.ttnn.track(bench.device, method="capture")
    windows = tracker.windows
    beside = capture(ttnn.subtract)
    capture(ttnn.add, ttnn.graph.RunMode.NO_DISPATCH)
    missed = tracker.missed
    inside = tracker.windows - windows
    failed = ""
    try:
        ttnn.matmul(x, bench.tensor(1, 1, 96, 96))
    except RuntimeError as error:
        failed = str(error)
    active = ttnn.graph.is_graph_capture_active()
    keep = ttnn.multiply(x, x)
    programs = [row["name"] for row in tracker.publishers[0].snapshot().to_dict()["programs"]]
    bench.close()
    tracker.sync()
    answer(
        alone=alone,
        beside=beside,
        inside=inside,
        missed=missed,
        failed=bool(failed),
        active=active,
        programs=programs,
        warnings=tracker.warnings,
        after_close=[tracker.active, tracker.reason],
        kept=bool(keep),
    )


def spoilt(what):
    """Break a part of ttmem's that a user's operation goes through, and carry operations out."""
    import ttmem.ttnn

    bench = Bench()
    tracker = ttmem.ttnn.track(bench.device, method="capture")
    one = ttnn.add(bench.tensor(1, 1, 64, 64), bench.tensor(1, 1, 64, 64))

    def fail(*arguments):
        raise KeyError("broken")

    if what == "begin":
        tracker._graph = types.SimpleNamespace(
            is_graph_capture_active=lambda: False, RunMode=ttnn.graph.RunMode, _cpp_begin_graph_capture=fail
        )
    elif what == "nodes":
        tracker._interpreter.feed = fail
    elif what == "dispatch":
        tracker.publishers[0].close()
    else:
        tracker._blocks.poll = fail
        tracker._poll_at_ns = 0
    other = ttnn.add(*[bench.tensor(1, 1, 64 if what == "dispatch" else 128, 64) for _ in range(2)])
    answer(
        shapes=[list(one.shape), list(other.shape)],
        active=tracker.active,
        reason=tracker.reason,
        patched=len(tracker._patched),
        capturing=ttnn.graph.is_graph_capture_active(),
    )


def unforeseen(method):
    """Track with a ttnn that does not answer as it should: that ends no program, and leaves nothing behind."""
    import ttmem.ttnn

    bench = Bench()
    x = bench.tensor(1, 1, 64, 64)
    before = ttnn.decorators.FastOperation.__call__

    def broken(device):
        raise AttributeError("no such figure")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ttmem.ttnn.memory_view, kept = lambda device, kind: broken(device), ttmem.ttnn.memory_view
        tracker = ttmem.ttnn.track(bench.device, method=method)
        ttmem.ttnn.memory_view = kept
    shape = list(ttnn.add(x, x).shape)
    with ttmem.ttnn.track(bench.device) as later:
        again = later.active
    answer(
        shape=shape,
        active=tracker.active,
        reason=tracker.reason,
        said=[str(warning.message) for warning in caught],
        devices=sum(device["source"] == "ttmem" for device in ttmem.devices()),
        patched=ttnn.decorators.FastOperation.__call__ is not before,
        again=again,
    )


def twice():
    """Fail to track a device a second time while it allocates: the first tracker misses nothing of that."""
    import ttmem.ttnn

    bench = Bench()
    tracker = ttmem.ttnn.track(bench.device)
    keep = []

    def geometry_of(device, original=ttmem.ttnn.geometry_of):
        keep.append(bench.tensor(1, 1, 256, 256, memory=L1))
        return original(device)

    ttmem.ttnn.geometry_of = geometry_of
    try:
        ttmem.ttnn.Tracker(bench.device).start()
    except ttmem.AlreadyPublishedError as error:
        said = str(error)
    memory = ttmem.attach(0).snapshot().memory
    answer(
        said=said,
        ours=[memory.dram.used_bytes, memory.l1.used_bytes],
        theirs=[regions()[0][name] for name in ("dram", "l1")],
        kept=len(keep),
        active=tracker.active,
    )


def capture_cost(rounds="20"):
    """Time a loop of cached ttnn.add with and without captures, in turn: microseconds an operation."""
    import ttmem.ttnn

    bench = Bench()
    x = bench.tensor(1, 1, 256, 256)

    def loop(count=1000):
        begin = time.perf_counter()
        for _ in range(count):
            ttnn.deallocate(ttnn.add(x, x))
        return (time.perf_counter() - begin) / count * 1e6

    loop()
    on, off = [], []
    for _ in range(int(rounds)):
        off.append(loop())
        with ttmem.ttnn.track(bench.device, method="capture") as tracker:
            ttnn.add(x, x)
            on.append(loop())
    answer(on_us=min(on), off_us=min(off), windows=tracker.windows)


def report(mesh=""):
    """Have ttnn write its reports: the database of ttnn-visualizer and the detailed memory report."""
    os.environ["TT_METAL_LOGS_PATH"] = os.getcwd()
    import ttnn.graph_report

    bench = Bench([int(n) for n in mesh.split("x")] if mesh else None)
    x, w = bench.tensor(1, 1, 256, 256), bench.tensor(1, 1, 256, 256, memory=L1)
    # Without it a report has no buffer from before it began.
    ttnn.graph.enable_detailed_buffer_tracing()
    ttnn.graph.begin_graph_capture(ttnn.graph.RunMode.NORMAL)
    total = ttnn.add(x, w)
    product = ttnn.multiply(total, w, memory_config=L1)
    ttnn.deallocate(total)
    ttnn.graph.end_graph_capture_to_file("report.json")
    ttnn.graph_report.import_report("report.json", "database")
    ttnn.dump_device_memory_state(bench.device, prefix="")
    theirs = regions()
    grid = bench.device.compute_with_storage_grid_size()
    answer(regions=theirs, grid={"x": grid.x, "y": grid.y}, lowest=min(product.buffer_address(), w.buffer_address()))


def closed():
    """Close the device under the tracker, with tensors alive, from before and from after its start."""
    import ttmem
    import ttmem.ttnn

    bench = Bench()
    early = bench.tensor(1, 1, 64, 64)
    early_sum = ttnn.add(early, early)
    tracker = ttmem.ttnn.track(bench.device)
    late = bench.tensor(1, 1, 64, 64, memory=L1)
    late_sum = ttnn.multiply(late, late)
    tracker.sync()
    first = ttmem.attach(0).snapshot().to_dict()
    open_memory = first["memory"]
    bench.close()
    tracker.sync()
    after = ttmem.attach(0).snapshot().to_dict()["memory"]
    del early, early_sum, late, late_sum
    bench.device = tracker.device = None
    gc.collect()
    tracker.sync()
    tracker.stop()

    def used(memory):
        return [memory["dram"]["used_bytes"], memory["l1"]["used_bytes"], memory["cb"]["physical_bytes"]]

    said = [text.partition(": ")[2] for text in first["warnings"]]
    answer(open=used(open_memory), after=used(after), warnings=tracker.warnings, said=said)


def overhead(what="track", rounds="30"):
    """Time a loop of cached ttnn.add with and without `what` (hook, track), in turn; answer with the median of the ratios."""
    bench = Bench()
    x = bench.tensor(1, 1, 256, 256)
    import ttmem.ttnn

    tracker = ttmem.ttnn.Tracker(bench.device)

    def loop(count=1000):
        # Processor time: others may want the processor too.
        begin = time.process_time()
        for _ in range(count):
            ttnn.deallocate(ttnn.add(x, x))
        return (time.process_time() - begin) / count * 1e6

    loop()
    on, off = [], []
    for i in range(int(rounds)):
        for followed in (i % 2, 1 - i % 2):
            if followed and what == "hook":
                hook.start()
            elif followed:
                tracker.start()
                ttnn.deallocate(ttnn.add(x, x))
            (on if followed else off).append(loop())
            tracker.stop()
            hook.stop()
            hook.drain()
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    answer(
        on_us=statistics.median(on),
        off_us=statistics.median(off),
        ratio=statistics.median(ratios),
        least_ratio=min(on) / min(off),
        rounds=len(on),
    )


SCENES = (
    figures,
    counts,
    pretended,
    threads,
    overlap,
    clash,
    undone,
    tracked,
    peaked,
    captured,
    stepping_aside,
    spoilt,
    unforeseen,
    twice,
    report,
    closed,
    overhead,
    capture_cost,
)
if __name__ == "__main__":
    {scene.__name__: scene for scene in SCENES}[sys.argv[1]](*sys.argv[2:])
