"""Runs inside a ttnn environment: operations to follow, and TT-Metal's own figures to compare with."""

from __future__ import annotations

import collections
import json
import struct
import time
from pathlib import Path

import ttnn

DRAM, L1 = ttnn.DRAM_MEMORY_CONFIG, ttnn.L1_MEMORY_CONFIG


class Bench:
    """An open mock device and what the operations need."""

    def __init__(self, mesh=None, *, device_id=0, **options):
        options.setdefault("l1_small_size", 24576)
        self.mesh = mesh
        if mesh:
            self.device = ttnn.open_mesh_device(ttnn.MeshShape(*mesh), **options)
        else:
            self.device = ttnn.open_device(device_id=device_id, **options)
        self.refused = []

    def close(self):
        (ttnn.close_mesh_device if self.mesh else ttnn.close_device)(self.device)

    def tensor(self, *shape, memory=DRAM, dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT):
        return ttnn.allocate_tensor_on_device(ttnn.Shape(shape), dtype, layout, self.device, memory)

    def attempt(self, operation, *args, **options):
        """Some operations refuse some mock grids: go on without them and what needs their result."""
        if any(argument is None for argument in args):
            return None
        try:
            return operation(*args, **options)
        except RuntimeError as error:
            self.refused.append(str(error)[:200])
            return None

    def refresh(self):
        """Have TT-Metal write its CB figure: it does so when new CBs are laid out, at most every 100 ms."""
        time.sleep(0.2)
        return self.circular([(2048, (0, 0, 0, 0))])

    def circular(self, buffers, page_size=1024):
        """Dispatch a program with circular buffers of (bytes, (x, y, x, y), ...); all the rectangles of one make a set."""
        a, b = self.tensor(1, 1, 32, 32), self.tensor(1, 1, 32, 32)
        descriptors = [
            ttnn.CBDescriptor(
                total_size=size,
                core_ranges=core_ranges(*areas),
                format_descriptors=[
                    ttnn.CBFormatDescriptor(buffer_index=i, data_format=ttnn.bfloat16, page_size=page_size)
                ],
            )
            for i, (size, *areas) in enumerate(buffers)
        ]
        kernel = ttnn.KernelDescriptor(
            kernel_source="void kernel_main() {}\n",
            source_type=ttnn.KernelDescriptor.SourceType.SOURCE_CODE,
            # TT-Metal crashes over a circular buffer on a core without a kernel.
            core_ranges=core_ranges((0, 0, *(max(area[i] for _, *areas in buffers for area in areas) for i in (2, 3)))),
            compile_time_args=[],
            runtime_args=[],
            config=ttnn.ReaderConfigDescriptor(),
        )
        ttnn.generic_op([a, b], ttnn.ProgramDescriptor(kernels=[kernel], semaphores=[], cbs=descriptors))


def core_ranges(*areas):
    return ttnn.CoreRangeSet(
        [ttnn.CoreRange(ttnn.CoreCoord(x, y), ttnn.CoreCoord(end_x, end_y)) for x, y, end_x, end_y in areas]
    )


def mlp(bench):
    """Dense operations on one activation, one of them twice."""
    x = bench.tensor(1, 1, 512, 512)
    w = bench.tensor(1, 1, 512, 512, memory=L1)
    keep = [bench.attempt(ttnn.add, x, w), bench.attempt(ttnn.layer_norm, x), bench.attempt(ttnn.gelu, x)]
    keep.append(bench.attempt(ttnn.matmul, x, w, memory_config=L1))
    keep.append(bench.attempt(ttnn.softmax, keep[-1], dim=-1))
    keep += [bench.attempt(ttnn.transpose, x, -2, -1), bench.attempt(ttnn.add, x, w)]
    ttnn.deallocate(x)
    return keep


def transformer(bench, layers=2, hidden=512):
    """Attention and feed-forward blocks at two sequence lengths; all weights are freed on the way."""
    for length in (128, 256):
        x = bench.tensor(1, 1, length, hidden)
        for _ in range(layers):
            weight = bench.tensor(1, 1, hidden, 3 * hidden, dtype=ttnn.bfloat8_b)
            normed = bench.attempt(ttnn.layer_norm, x, memory_config=L1)
            qkv = bench.attempt(ttnn.linear, normed, weight, memory_config=L1)
            scores = bench.attempt(
                ttnn.matmul, bench.tensor(1, 8, length, 64, memory=L1), bench.tensor(1, 8, 64, length, memory=L1)
            )
            bench.attempt(ttnn.softmax, scores, dim=-1)
            wide = bench.attempt(ttnn.linear, x, bench.tensor(1, 1, hidden, 4 * hidden), activation="gelu")
            out = bench.attempt(ttnn.linear, wide, bench.tensor(1, 1, 4 * hidden, hidden), memory_config=L1)
            x = bench.attempt(ttnn.add, x, out) if out is not None else x
            del weight, normed, qkv, scores, wide, out
    return [x]


def conv(bench):
    """Convolutions and pools, with sharded tensors, halos and globally allocated circular buffers."""
    keep = []
    for batch, channels, out, side in ((1, 32, 64, 28), (4, 16, 32, 16)):
        x = bench.tensor(1, 1, batch * side * side, channels, layout=ttnn.ROW_MAJOR_LAYOUT)
        w = bench.tensor(1, 1, channels * 9, out)
        keep.append(
            bench.attempt(
                ttnn.conv2d,
                input_tensor=x,
                weight_tensor=w,
                device=bench.device,
                in_channels=channels,
                out_channels=out,
                batch_size=batch,
                input_height=side,
                input_width=side,
                kernel_size=(3, 3),
                stride=(1, 1),
                padding=(1, 1),
            )
        )
    return keep


WORKLOADS = {"mlp": mlp, "transformer": transformer, "conv": conv}


class Count:
    """The dumbest sum of the hook's events: every byte of every core in a set of intervals."""

    def __init__(self):
        self.used = collections.Counter()
        self.programs = {}
        self.kinds = collections.Counter()
        self.dispatched = collections.Counter()

    def feed(self, events):
        for kind, chip, *values in events:
            self.kinds[kind] += 1
            if kind == "buffer_allocate":
                self.used[chip, values[1]] += values[2]
            elif kind == "buffer_free":
                self.used[chip, values[1]] -= values[2]
            elif kind == "program_add":
                self.programs[chip, values[0]] = values[2]
            elif kind == "program_remove":
                del self.programs[chip, values[0]]
            elif kind == "program_dispatch":
                self.dispatched[values[1]] += 1

    def covered(self, chip, *kinds):
        """Bytes under at least one local circular buffer, over all cores."""
        cores = collections.defaultdict(list)
        for (owner, _), footprint in self.programs.items():
            for kind, address, size, is_global, areas in footprint:
                if owner != chip or is_global or kind not in kinds:
                    continue
                for x, y, end_x, end_y in areas:
                    for column in range(x, end_x + 1):
                        for row in range(y, end_y + 1):
                            cores[column, row].append((address, address + size))
        total = 0
        for intervals in cores.values():
            reached = 0
            for begin, end in sorted(intervals):
                total += max(0, end - max(begin, reached))
                reached = max(reached, end)
        return total

    def figures(self, chip):
        names = {0: "dram", 1: "l1", 3: "l1_small", 4: "trace"}
        found = {name: self.used[chip, kind] for kind, name in names.items()}
        return {**found, "cb": self.covered(chip, "circular_buffer")}


def regions():
    """TT-Metal's own totals by chip."""
    found = {}
    for path in Path("/dev/shm").glob("tt_device_*_memory"):
        values = struct.unpack_from("<IIQI4xQQI4x5Q", path.read_bytes())
        found[values[6]] = dict(zip(("dram", "l1", "l1_small", "trace", "cb"), values[7:], strict=True))
    return found


def answer(**values):
    """Hand the test what it asked for."""
    print("ANSWER " + json.dumps(values), flush=True)
