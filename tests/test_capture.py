"""A capture's events give what TT-Metal counted, in every generation, and no file does harm."""

from __future__ import annotations

import copy
import gzip
import json
import re
import tracemalloc
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ttmem.capture import CaptureReader
from ttmem.cores import as_core_range_set
from ttmem.errors import CaptureError
from ttmem.interpreter import CaptureInterpreter
from ttmem.mesh import CaptureSink
from ttmem.model import BufferType
from ttmem.placement import place

CAPTURES = Path(__file__).parent / "captures"
NORMAL = ["n150_conv", "n150_mlp", "p150_transformer", "t3k_mesh_transformer"]


@cache
def union_bytes(intervals):
    """Return the bytes covered on all cores; every address and size of the real captures is a multiple of 4."""
    cores = {}
    for address, size, core_ranges in intervals:
        for core in core_ranges:
            cores.setdefault(core, set()).update(range(address, address + size, 4))
    return 4 * sum(map(len, cores.values()))


class Model:
    """A sink that keeps sets of bytes; also checks that every call makes sense."""

    def __init__(self, base=105664, alignment=32):
        self.base, self.alignment = base, alignment
        self.buffers, self.laid, self.programs, self.thrown, self.calls = {}, {}, {}, [], []
        self.dispatches = 0
        self.recorded_ns = 0

    def allocate(self, chip, key, buffer_type, size, address, size_per_bank, name):
        assert (chip, key) not in self.buffers
        self.buffers[chip, key] = (buffer_type, size, address, size_per_bank, name)
        self.calls.append(("allocate", chip, key))

    def free(self, chip, key):
        del self.buffers[chip, key]
        self.calls.append(("free", chip, key))

    def lay_out(self, chip, program_key, circular_buffers, name):
        self.laid[chip, program_key] = name

    def add_program(self, chip, program_key, circular_buffers, name):
        assert (chip, program_key) in self.laid
        assert (chip, program_key) not in self.programs
        self.programs[chip, program_key] = (name, circular_buffers)
        self.calls.append(("add", chip, name))

    def dispatch(self, chip, program_key):
        assert (chip, program_key) in self.programs
        self.dispatches += 1
        self.calls.append(("dispatch", chip, self.programs[chip, program_key][0]))

    def threw(self, chip, program_key):
        self.thrown.append((chip, self.laid[chip, program_key]))

    def advance(self, duration_ns):
        assert duration_ns > 0
        self.recorded_ns += duration_ns

    def chips(self):
        return {chip for chip, _ in (*self.programs, *self.buffers)}

    def placed(self, chip):
        return [
            (name, place(buffers, base=self.base, alignment=self.alignment))
            for (of, _), (name, buffers) in self.programs.items()
            if of == chip
        ]

    def totals(self, chip):
        intervals = frozenset(
            (buffer.address, buffer.size, buffer.core_ranges)
            for _, buffers in self.placed(chip)
            for buffer in buffers
            if not buffer.globally_allocated
        )
        used = {
            name: sum(size for (of, _), (kind, size, *_) in self.buffers.items() if of == chip and kind is buffer_type)
            for name, buffer_type in (
                ("dram_bytes", BufferType.DRAM),
                ("l1_bytes", BufferType.L1),
                ("l1_small_bytes", BufferType.L1_SMALL),
                ("trace_bytes", BufferType.TRACE),
            )
        }
        return {"cb_bytes": union_bytes(intervals), **used}

    def all_totals(self):
        return {chip: self.totals(chip) for chip in sorted(self.chips())}


def path_of(name):
    return next(p for p in (CAPTURES / f"{name}.json", CAPTURES / f"{name}.json.gz") if p.exists())


def nodes_of(name):
    return list(CaptureReader(path_of(name)).nodes())


def interpret(nodes, *, complete=True, **options):
    model = Model(**options)
    interpreter = CaptureInterpreter(model)
    for node in nodes:
        interpreter.feed(node)
    interpreter.finish(complete=complete)
    return model, interpreter


def feed_all(interpreter, path):
    for node in CaptureReader(path).nodes():
        interpreter.feed(node)


def regions_of(name):
    meta = json.loads((CAPTURES / f"{name}.meta.json").read_text())
    keys = ("cb_bytes", "dram_bytes", "l1_bytes", "l1_small_bytes", "trace_bytes")
    return {region["device_id"]: {key: region[key] for key in keys} for region in meta["regions"].values()}


def start(name, *arguments):
    return {"node_type": "function_start", "params": {"name": name}, "arguments": list(arguments)}


def end(name, **params):
    return {"node_type": "function_end", "params": {"name": name, **params}, "connections": []}


def opened(mesh=1):
    return {"node_type": "circular_buffer_deallocate_all", "params": {"device_id": mesh}}


def laid(address=105664, size=4096, chip=0, ranges="{[0-0 - 0-0]}", **params):
    return {
        "node_type": "circular_buffer_allocate",
        "params": {"address": address, "size": size, "core_range_set": ranges, "device_id": chip, **params},
    }


def tensor(mesh=1, chips=(0,)):
    text = json.dumps([{"address": 0, "device_id": chip, "mesh_device_id": mesh} for chip in chips])
    return {"node_type": "tensor", "params": {"device_tensors": text}}


def buffer(kind, link=0, size=2048, address=4096, mesh=1, **params):
    return {
        "node_type": f"buffer_{kind}",
        "connections": [] if link is None else [link],
        "params": {"size": size, "address": address, "buffer_type": 1, "device_id": mesh, **params},
    }


def operation(name, *inner, arguments=()):
    return [start(name, *arguments), opened(), *inner, end(name), tensor()]


# What TT-Metal counted.


@pytest.mark.parametrize("name", NORMAL)
def test_every_total_of_every_chip_equals_tt_metals_region(name):
    model, interpreter = interpret(nodes_of(name))
    assert model.all_totals() == regions_of(name)
    assert interpreter.warnings.texts() == []
    assert interpreter.counts.unmatched_frees == 0


def test_a_mesh_capture_names_all_eight_chips():
    model, _ = interpret(nodes_of("t3k_mesh_transformer"))
    assert model.chips() == set(range(8))


def test_no_dispatch_places_the_circular_buffers_at_the_addresses_of_the_normal_capture():
    def addresses(name):
        model, _ = interpret(nodes_of(name))
        return [
            (program, [(b.address, b.size, str(b.core_ranges)) for b in buffers])
            for program, buffers in model.placed(0)
            if {b.kind for b in buffers} == {"circular_buffer"}
        ]

    # The second add has another shape and the same footprint: two programs for TT-Metal, one for NO_DISPATCH.
    normal = addresses("n150_mlp")
    assert len(normal) == 7
    assert normal[6] == normal[0]
    assert addresses("n150_mlp_nodispatch") == normal[:6]


def test_no_dispatch_repeats_one_program():
    model, interpreter = interpret(nodes_of("n150_mlp_nodispatch"))
    assert interpreter.counts.no_dispatch
    assert [name for name, _ in model.placed(0)].count("BinaryNgDeviceOperation") == 1
    assert model.calls.count(("dispatch", 0, "BinaryNgDeviceOperation")) == 3


def test_every_visible_cache_hit_finds_its_program():
    _, interpreter = interpret(nodes_of("p150_transformer"))
    counts = interpreter.counts
    # The other 12 are softmax, whose dataflow buffers a NORMAL capture does not show.
    assert (counts.dispatches, counts.programs, counts.cache_hits) == (145, 32, 113)
    assert (counts.hits_found, counts.hits_unmatched) == (101, 12)


def test_a_clash_keeps_no_program_and_is_reported():
    model, interpreter = interpret(nodes_of("n150_clash_8"))
    assert model.programs == {}
    assert model.thrown == [(0, "LayerNormDeviceOperation")]
    assert interpreter.counts.threw == 1
    assert model.totals(0)["l1_bytes"] == 8 * 8388608


def test_dataflow_buffers_and_scratchpads_keep_their_kind():
    model, _ = interpret(nodes_of("p100_conv_dfb_nodispatch"), base=111744, alignment=64)
    kinds = {b.kind for _, buffers in model.placed(0) for b in buffers}
    assert kinds == {"circular_buffer", "dataflow_buffer", "scratchpad"}


# Generations.


def as_strings(node):
    node["params"] = {k: str(int(v)) if isinstance(v, (int, bool)) else v for k, v in (node["params"] or {}).items()}


def old_ranges(node):
    params = node["params"] or {}
    if "core_range_set" in params:
        params["core_range_set"] = re.sub(r"(\d+)-(\d+)", r"(x=\1,y=\2)", params["core_range_set"])


def array_ranges(node):
    params = node["params"] or {}
    if "core_range_set" in params:
        params["core_range_set"] = [
            {"start": {"x": r.start.x, "y": r.start.y}, "end": {"x": r.end.x, "y": r.end.y}}
            for r in as_core_range_set(params["core_range_set"]).ranges
        ]


def flags(spelling):
    def change(node):
        params = node["params"] or {}
        if "globally_allocated" in params:
            params["globally_allocated"] = spelling[params["globally_allocated"] == "1"]

    return change


def without(*names):
    def change(node):
        for name in names:
            node.pop(name, None)
            if node["params"]:
                node["params"].pop(name, None)

    return change


def oldest_deallocate(node):
    if node["node_type"] == "buffer_deallocate":
        node["params"]["size"] = "0"


@pytest.mark.parametrize(
    "changes",
    [
        [as_strings],
        [old_ranges],
        [as_strings, old_ranges],
        [array_ranges],
        [flags(("false", "true"))],
        [flags((False, True))],
        [flags((0, 1))],
        [without("arguments", "input_tensors", "stacking_level", "duration_ns")],
        [without("counter")],
        [without("connections")],
        [without("max_size_per_bank", "num_cores", "page_size", "layout")],
        [oldest_deallocate],
        [as_strings, old_ranges, oldest_deallocate, without("arguments", "stacking_level", "duration_ns")],
    ],
)
@pytest.mark.parametrize("name", ["n150_mlp", "n150_conv", "t3k_mesh_transformer"])
def test_every_generation_gives_the_same_totals(name, changes):
    nodes = copy.deepcopy(nodes_of(name))
    for node in nodes:
        for change in changes:
            change(node)
    model, interpreter = interpret(nodes)
    assert model.all_totals() == regions_of(name)
    assert interpreter.warnings.texts() == []


@pytest.mark.parametrize("name", ["n150_mlp", "p150_transformer"])
def test_without_any_device_id_everything_is_on_chip_0(name):
    nodes = copy.deepcopy(nodes_of(name))
    for node in nodes:
        without("device_id", "device_tensors")(node)
    model, _ = interpret(nodes)
    assert model.all_totals() == regions_of(name)


def test_a_report_gives_the_same_as_its_graph(tmp_path):
    nodes = nodes_of("n150_mlp")
    path = tmp_path / "report.json"
    devices = [{"device_id": 0, "arch": "Arch.WORMHOLE_B0", "worker_l1_size": 1499136, "l1_bank_size": 1368896}]
    devices[0].update(address_at_first_l1_cb_buffer=105664, num_x_compute_cores=8, num_y_compute_cores=9)
    path.write_text(json.dumps({"version": 1, "graph": nodes, "devices": devices, "python_io": []}))
    reader = CaptureReader(path)
    model, _ = interpret(reader.nodes())
    assert model.all_totals() == regions_of("n150_mlp")
    geometry = reader.geometries()[0]
    assert (geometry.arch, geometry.worker_l1_size, geometry.l1_cb_base) == ("wormhole_b0", 1499136, 105664)
    assert (geometry.grid.x, geometry.grid.y, geometry.l1_small_size, geometry.dram_size) == (8, 9, 24576, None)


# Programs.


def test_a_hit_prefers_the_same_inputs_then_any_shape_then_the_name():
    def inputs(shape, dtype="BFLOAT16", pointer="0x1"):
        return (
            f"Params({pointer})",
            f"{{Tensor(shape=Shape([{shape}]),dtype=DataType::{dtype},config=MemoryConfig(L1))}}",
        )

    nodes = [
        *operation("Op", laid(size=32), arguments=inputs("1, 2")),
        *operation("Op", laid(size=64), arguments=inputs("3, 4")),
        *operation("Op", laid(size=96), arguments=inputs("1, 2", dtype="FLOAT32")),
        *operation("Op", arguments=inputs("1, 2", pointer="0x2")),
        *operation("Op", arguments=inputs("5, 6")),
        *operation("Op", arguments=inputs("5, 6", dtype="UINT8")),
        *operation("Other", arguments=inputs("1, 2")),
    ]

    class Sizes(Model):
        def dispatch(self, chip, program_key):
            super().dispatch(chip, program_key)
            sizes.append(self.programs[chip, program_key][1][0].size)

    sizes = []
    model = Sizes()
    interpreter = CaptureInterpreter(model)
    for node in nodes:
        interpreter.feed(node)
    interpreter.finish()
    assert sizes == [32, 64, 96, 32, 64, 96]
    assert (interpreter.counts.hits_found, interpreter.counts.hits_unmatched) == (3, 1)


def test_an_operation_without_its_end_keeps_no_program_and_later_ones_count():
    nodes = [start("ttnn.a"), start("Bad"), opened(), laid(), *operation("Good", laid(size=64)), opened()]
    model, interpreter = interpret(nodes)
    assert [name for name, _ in model.programs.values()] == ["Good"]
    assert model.thrown == [(0, "Bad")]
    assert interpreter.counts.dispatches == 3


def test_an_operation_without_its_end_is_known_when_an_older_function_ends():
    nodes = [start("outer"), start("Bad"), opened(), laid(), end("outer"), *operation("Bad")]
    model, interpreter = interpret(nodes)
    assert (model.programs, model.thrown) == ({}, [(0, "Bad")])
    assert interpreter.counts.hits_unmatched == 1


def test_an_aborted_operation_keeps_no_program():
    model, _ = interpret([start("Bad"), opened(), laid(), end("Bad", aborted="true", abort_reason="x"), tensor()])
    assert (model.programs, model.thrown) == ({}, [(0, "Bad")])


def test_an_operation_without_output_is_kept_when_the_function_around_it_ends():
    inner = [start("Op"), opened(), laid(), end("Op")]
    model, _ = interpret([start("ttnn.op"), *inner, end("ttnn.op")])
    assert len(model.programs) == 1
    model, _ = interpret([start("ttnn.op"), *inner, {"node_type": "capture_end", "params": None}])
    assert (model.programs, model.thrown) == ({}, [(0, "Op")])
    model, _ = interpret(inner)
    assert len(model.programs) == 1


def test_what_clashed_and_is_hit_again_is_in_the_cache_after_all():
    # Measured with ttnn 0.77.0: the program stays cached and in the region, and the second call lays nothing out.
    clash = [start("ttnn.op"), start("Op", "x"), opened(), laid(), end("Op")]
    model, interpreter = interpret([*clash, start("ttnn.op"), *operation("Op", arguments="x"), end("ttnn.op")])
    assert len(model.programs) == 1
    assert interpreter.counts.hits_found == 1


def test_programs_of_a_mesh_workload_go_to_the_chips_that_their_circular_buffers_name():
    nodes = [tensor(1, (0, 1)), *operation("Op", opened(), laid(size=32, chip=0), laid(size=64, chip=1))]
    model, interpreter = interpret(nodes)
    assert {chip: buffers[0].size for (chip, _), (_, buffers) in model.programs.items()} == {0: 32, 1: 64}
    assert interpreter.counts.dispatches == 1


def test_recorded_time_is_counted_once_however_deep_functions_nest():
    inner = {**end("b"), "duration_ns": 30}
    outer = {**end("a"), "duration_ns": 100}
    model, _ = interpret([start("a"), start("b"), inner, start("b"), inner, outer, start("b"), inner])
    assert model.recorded_ns == 130


# Chips and buffers.


def test_events_wait_in_order_until_the_chips_of_their_mesh_are_known():
    nodes = [buffer("allocate", 1, mesh=5), buffer("allocate", 2, mesh=5), buffer("deallocate", 1, mesh=5)]
    model, _ = interpret([*nodes, tensor(5, (3, 2))])
    assert model.calls == [
        ("allocate", 3, 0),
        ("allocate", 2, 0),
        ("allocate", 3, 1),
        ("allocate", 2, 1),
        ("free", 3, 0),
        ("free", 2, 0),
    ]


def test_circular_buffers_tell_the_chips_where_no_tensor_does():
    nodes = [buffer("allocate", 1, mesh=5), start("Op"), opened(5), laid(chip=2), laid(chip=6), end("Op")]
    model, _ = interpret(nodes)
    assert [call for call in model.calls if call[0] == "allocate"] == [("allocate", 2, 0), ("allocate", 6, 0)]


def test_a_mesh_that_nothing_explains_is_chip_0_and_said_so():
    model, interpreter = interpret([buffer("allocate", 1, mesh=5)])
    assert model.chips() == {0}
    assert "mesh 5" in interpreter.warnings.texts()[0]


def test_a_mesh_that_turns_out_larger_takes_its_live_buffers_along():
    nodes = [tensor(1, (0,)), buffer("allocate", 1), tensor(1, (0, 1)), buffer("allocate", 2), buffer("deallocate", 1)]
    model, _ = interpret(nodes)
    assert set(model.buffers) == {(0, 1), (1, 1)}


def test_a_free_without_a_link_is_matched_by_type_address_and_size():
    nodes = [buffer("allocate", 1, address=64), buffer("allocate", 2, address=128)]
    model, _ = interpret([*nodes, buffer("deallocate", None, address=64)])
    assert [b[2] for b in model.buffers.values()] == [128]
    _, interpreter = interpret([*nodes, buffer("deallocate", None, address=64, size=1)])
    assert interpreter.counts.unmatched_frees == 1


def test_a_free_of_a_buffer_from_before_the_capture_is_counted_and_ignored():
    # Both addresses are 0 under NO_DISPATCH: size alone must not match.
    model, interpreter = interpret([buffer("allocate", 1, address=0), buffer("deallocate", 9, address=0)])
    assert len(model.buffers) == 1
    assert interpreter.counts.unmatched_frees == 1
    assert next(iter(model.buffers.values()))[2] is None


def test_a_buffer_is_named_by_the_nearest_function_of_ttnn():
    model, _ = interpret([start("ttnn.matmul"), start("MatmulDeviceOperation"), start("create"), buffer("allocate", 1)])
    assert next(iter(model.buffers.values()))[4] == "ttnn.matmul"


# Bad input.


@pytest.mark.parametrize(
    ("node", "field"),
    [
        ("text", "node"),
        ({"counter": 7, "node_type": 5}, "node_type"),
        ({"counter": 7, "node_type": "new_thing", "params": {}}, "node_type"),
        ({"counter": 7, "node_type": "tensor", "params": "x"}, "params"),
        ({"counter": 7, **laid(size=-1)}, "size"),
        ({"counter": 7, **laid(size="many")}, "size"),
        ({"counter": 7, **laid(size=10**30)}, "size"),
        ({"counter": 7, **laid(address=None)}, "address"),
        ({"counter": 7, **laid(address=1.5)}, "address"),
        ({"counter": 7, **laid(ranges="{[9-9 - 0-0]}")}, "core_range_set"),
        ({"counter": 7, **laid(ranges=[1])}, "core_range_set"),
        ({"counter": 7, **laid(ranges="[" * 3000 + '"')}, "core_range_set"),
        ({"counter": 7, **laid(chip=-4)}, "device_id"),
        ({"counter": 7, **laid(globally_allocated="maybe")}, "globally_allocated"),
        ({"counter": 7, **buffer("allocate", size=True)}, "size"),
        ({"counter": 7, **buffer("allocate", buffer_type=77, type=[])}, "buffer_type"),
        ({"counter": 7, **buffer("allocate", max_size_per_bank="x")}, "max_size_per_bank"),
        ({"counter": 7, "node_type": "tensor", "params": {"device_tensors": "[{]"}}, "device_tensors"),
        (
            {"counter": 7, "node_type": "tensor", "params": {"device_tensors": '[{"mesh_device_id": 1}]'}},
            "device_tensors",
        ),
        ({"counter": 7, "node_type": "function_start", "params": {}}, "name"),
        ({"counter": 7, **end("never begun")}, "function_end"),
        ({"counter": 7, **end("a"), "duration_ns": -1}, "duration_ns"),
    ],
)
def test_a_bad_node_is_a_counted_warning_that_names_node_and_field_and_the_rest_stays_right(node, field):
    expected, _ = interpret(operation("Op", laid(size=64)))
    model, interpreter = interpret([start("a"), tensor(), node, end("a"), *operation("Op", laid(size=64))])
    assert [name for name, _ in model.programs.values()].count("Op") == len(expected.programs)
    ((_, name),) = [key for key in interpreter.warnings.counts if key[1] == field]
    text = interpreter.warnings.first[next(key for key in interpreter.warnings.counts if key[1] == name)]
    assert field in text
    assert ("node 2" if field == "node" else "node 7") in text


def test_a_name_can_always_be_encoded():
    model, _ = interpret(operation("Op\ud800", laid()))
    ((name, _),) = model.programs.values()
    assert name.encode() == b"Op?"


def test_a_damaged_program_is_no_cache_hit():
    _, interpreter = interpret([*operation("Op", laid()), *operation("Op", laid(size=-1))])
    assert interpreter.counts.cache_hits == 0


def test_a_file_that_breaks_off_anywhere_keeps_what_came_before_and_says_so(tmp_path):
    data = path_of("n150_mlp").read_bytes()
    path = tmp_path / "cut.json"
    last = 0
    for length in range(0, len(data), 2503):
        path.write_bytes(data[:length])
        model = Model()
        interpreter = CaptureInterpreter(model)
        with pytest.raises(CaptureError, match=r"cut\.json"):
            feed_all(interpreter, path)
        interpreter.finish(complete=False)
        assert interpreter.counts.nodes >= last
        last = interpreter.counts.nodes
    assert last > 160


def test_a_gzip_file_that_breaks_off_is_a_capture_error(tmp_path):
    data = path_of("n150_conv").read_bytes()
    path = tmp_path / "cut.json.gz"
    for length in range(1, len(data), 1997):
        path.write_bytes(data[:length])
        with pytest.raises(CaptureError):
            list(CaptureReader(path).nodes())


def test_an_operation_that_ended_before_the_file_broke_off_keeps_its_program():
    model, _ = interpret([start("ttnn.op"), start("Op"), opened(), laid(), end("Op")], complete=False)
    assert len(model.programs) == 1
    model, _ = interpret([start("ttnn.op"), start("Op"), opened(), laid()], complete=False)
    assert model.programs == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   ",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"graph": 5}',
        b'{"graph": []}',
        b"[1] x",
        b"[" * 5000,
        b"[" + b"9" * 6000 + b"]",
        b'[{"counter": 1e99999999999999999999}',
        b'[{"a": NaN}]',
        b'["\xff"]',
        b"\x1f\x8b" + b"rubbish" * 9,
    ],
)
def test_what_is_no_capture_is_a_capture_error_that_names_the_file(tmp_path, data):
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=r"bad\.json"):
        list(CaptureReader(path).nodes())


def test_a_file_that_is_not_there_is_a_capture_error(tmp_path):
    with pytest.raises(CaptureError, match="nowhere"):
        CaptureReader(tmp_path / "nowhere.json")
    with pytest.raises(CaptureError):
        CaptureReader(tmp_path)


def test_a_byte_order_mark_and_compression_make_no_difference(tmp_path):
    path = tmp_path / "named.anything"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path_of("n150_mlp").read_bytes()))
    assert list(CaptureReader(path).nodes()) == nodes_of("n150_mlp")


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["-1", "0", "{[0-0 - 300-0]}", "{}", "[]", "0x5", "9" * 600, "\ud800"]),
    st.lists(st.one_of(st.integers(), st.none(), st.dictionaries(st.text(max_size=3), st.integers())), max_size=3),
    st.dictionaries(st.sampled_from(["start", "end", "name", "x"]), st.integers(), max_size=2),
)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_mutation_of_nodes_raises_anything(data):
    nodes = copy.deepcopy(MLP)
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, len(nodes) - 1))
        node = nodes[index]
        action = data.draw(st.sampled_from(["param", "field", "drop", "repeat", "replace"]))
        if action == "drop":
            del nodes[index]
        elif action == "repeat":
            nodes.insert(data.draw(st.integers(0, len(nodes) - 1)), copy.deepcopy(node))
        elif action == "replace":
            nodes[index] = data.draw(ODD)
        elif isinstance(node, dict) and action == "field":
            node[data.draw(st.sampled_from(sorted(node) or ["params"]))] = data.draw(ODD)
        elif isinstance(node, dict) and isinstance(node.get("params"), dict) and node["params"]:
            node["params"][data.draw(st.sampled_from(sorted(node["params"])))] = data.draw(ODD)
    interpret(nodes)


MLP = nodes_of("n150_mlp") + nodes_of("n150_mlp_nodispatch")


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(repeats):
        path = tmp_path / f"{repeats}.json"
        once = []
        for link, size in enumerate((2048, 4096)):
            once += [buffer("allocate", link, size=size), *operation("Op"), buffer("deallocate", link, size=size)]
        head = json.dumps([tensor(), *operation("Op", laid())])[:-1]
        with path.open("w") as file:
            file.write(head)
            for _ in range(repeats):
                file.write("," + json.dumps(once)[1:-1])
            file.write("]")
        interpreter = CaptureInterpreter(CaptureSink())
        tracemalloc.start()
        try:
            feed_all(interpreter, path)
            interpreter.finish()
            assert interpreter.counts.hits_found == 2 * repeats
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(800) < 1.2 * peak(400)
