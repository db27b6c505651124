"""What `explain` says of captures, of devices and of TT-Metal's own error texts."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
from made_devices import N150

import ttmem
from ttmem.clash import ClashWatch, advice, judge_capture, judge_device, live_buffers
from ttmem.cli.explain import main
from ttmem.cli.fit import main as fit_main
from ttmem.dumps import read_live
from ttmem.model import BufferType, CircularBuffer, Geometry
from ttmem.placement import region_ends
from ttmem.reader import Host
from ttmem.recording import RecordingWriter, read_host_for_recording
from ttmem.thrown import parse_thrown

pytestmark = pytest.mark.usefixtures("directory")

CAPTURES = Path(__file__).parent / "captures"
CLASH = CAPTURES / "n150_clash_8.json"
CAPTURE_NAMES = sorted(p.name for p in CAPTURES.glob("*.json*") if ".meta." not in p.name)


def answer(capsys, *argv, code):
    found = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out), err


def error_text():
    return json.loads((CAPTURES / "n150_clash_8.meta.json").read_text())["error"]


class Stdin(io.StringIO):
    """Text on stdin, without a file behind it."""


# Captures.


def test_the_clash_of_a_capture_has_the_figures_that_tt_metal_printed(capsys):
    found, _ = answer(capsys, CLASH, code=3)
    (clash,) = found["clashes"]
    assert clash["program"] == "LayerNormDeviceOperation"
    assert clash["core_range"] == "[0-0 - 7-3]"
    assert clash["cb_region_end"] == 527552
    assert clash["l1_lowest_address"] == 425984
    assert clash["shortfall_bytes"] == 101568
    assert clash["threw"] is True
    (told,) = parse_thrown(error_text())
    assert told.kind == "clash"
    for name in ("core_range", "cb_region_end", "l1_lowest_address"):
        assert told.figures[name] == clash[name]


def test_the_words_of_a_clash_are_those_of_tt_metal():
    finding = judge_capture(CLASH).findings[0]
    words = finding.tt_metal_text().replace(finding.program, "0")
    assert words in error_text()


def test_a_clash_names_what_is_involved_and_the_smallest_change_first(capsys):
    found, _ = answer(capsys, CLASH, code=3)
    (clash,) = found["clashes"]
    (buffer,) = clash["buffers"]
    assert (buffer["address"], buffer["size_per_bank"]) == (425984, 131072)
    assert sum(cb["size_bytes"] for cb in clash["circular_buffers"]) == 527552 - 105664
    assert "101,568" in clash["advice"][0]
    assert "128.0 KiB at 425984" in clash["advice"][1]


@pytest.mark.parametrize("name", [name for name in CAPTURE_NAMES if "clash" not in name])
def test_a_capture_that_ran_has_no_clash_and_a_row_for_each_program(name, capsys):
    found, _ = answer(capsys, CAPTURES / name, code=0)
    assert found["clashes"] == []
    assert found["programs"]
    for row in found["programs"]:
        lowest = row["l1_lowest_address"]
        assert row["headroom_bytes"] == (None if lowest is None else lowest - row["cb_region_end"])


def test_a_hit_counts_as_a_dispatch_and_the_smallest_headroom_stays():
    watch = ClashWatch(lambda chip: Geometry())
    buffers = (CircularBuffer(100, 50, "{[0-0 - 3-3]}"),)
    watch.lay_out(0, 1, buffers, "matmul")
    watch.add_program(0, 1, buffers, "matmul")
    watch.dispatch(0, 1)
    watch.allocate(0, 7, BufferType.L1, 4096, 140, 64, "weights")
    watch.dispatch(0, 1)
    watch.free(0, 7)
    watch.dispatch(0, 1)
    (finding,) = watch.findings()
    assert (finding.dispatches, finding.l1_lowest_address, finding.shortfall_bytes) == (3, 140, 10)
    assert [b.name for b in finding.buffers] == ["weights"]


def test_a_program_is_judged_where_it_was_laid_out_and_not_where_its_operation_ended():
    watch = ClashWatch(lambda chip: Geometry())
    buffers = (CircularBuffer(100, 50, "{[0-0 - 3-3]}"),)
    watch.lay_out(0, 1, buffers, "matmul")
    watch.allocate(0, 7, BufferType.L1, 4096, 140, 64, "later")
    watch.add_program(0, 1, buffers, "matmul")
    watch.dispatch(0, 1)
    assert not watch.findings()[0].clashes


def test_buffers_of_other_types_and_global_circular_buffers_clash_with_nothing():
    watch = ClashWatch(lambda chip: Geometry())
    watch.allocate(0, 1, BufferType.DRAM, 4096, 32, 64, "")
    watch.allocate(0, 2, BufferType.L1_SMALL, 4096, 32, 64, "")
    buffers = (
        CircularBuffer(100, 50, "{[0-0 - 0-0]}"),
        CircularBuffer(900, 50, "{[0-0 - 0-0]}", globally_allocated=True),
    )
    watch.lay_out(0, 1, buffers, "x")
    watch.threw(0, 1)
    (finding,) = watch.findings()
    assert (finding.cb_region_end, finding.l1_lowest_address, finding.threw) == (150, None, True)


def test_each_rectangle_of_a_program_has_its_own_region_end():
    ends = region_ends(
        (
            CircularBuffer(100, 10, "{[0-0 - 0-0]}"),
            CircularBuffer(110, 20, "{[0-0 - 1-1]}"),
            CircularBuffer(100, 5, "{[7-7 - 7-7]}"),
        )
    )
    assert {str(core_range): end for core_range, end in ends.items()} == {
        "[0-0 - 0-0]": 130,
        "[0-0 - 1-1]": 130,
        "[7-7 - 7-7]": 105,
    }


def test_circular_buffers_without_addresses_are_placed_and_that_is_said(capsys):
    found, err = answer(capsys, CAPTURES / "n150_mlp_nodispatch.json", code=0)
    assert "105664" in err
    assert "--l1-cb-base" in err
    placed = {(row["program"], row["cb_region_end"]) for row in found["programs"]}
    normal, err = answer(capsys, CAPTURES / "n150_mlp.json", code=0)
    assert not err
    assert ("MatmulDeviceOperation", 892096) in placed & {
        (r["program"], r["cb_region_end"]) for r in normal["programs"]
    }


def test_a_program_beyond_the_end_of_l1_is_named(capsys):
    assert main([str(CLASH), "--worker-l1-size", "500000"]) == 3
    assert "27,552 bytes beyond the end of L1 at 500000" in " ".join(capsys.readouterr().out.split())


def test_the_text_of_a_clash_names_everything(capsys):
    assert main([str(CLASH)]) == 3
    out = " ".join(capsys.readouterr().out.split())
    for words in ("[0-0 - 7-3]", "527552", "425984", "101,568 bytes", "229,376", "TT-Metal threw here"):
        assert words in out


def replanned(tmp_path, change):
    """The clash capture, changed: ``change`` gets the list of nodes and returns another."""
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(change(json.loads(CLASH.read_text()))))
    return file


def test_with_fewer_live_buffers_the_same_program_does_not_clash(capsys, tmp_path):
    def change(nodes):
        return [n for n in nodes if not (n["node_type"] == "buffer_allocate" and (n["params"]["address"]) == 425984)]

    found, _ = answer(capsys, replanned(tmp_path, change), code=0)
    (row,) = found["programs"]
    assert row["headroom_bytes"] == 425984 + 131072 - 527552


def test_with_more_live_buffers_each_one_that_is_in_the_way_is_named(capsys, tmp_path):
    def change(nodes):
        index = next(
            i for i, n in enumerate(nodes) if n["node_type"] == "buffer_allocate" and n["params"]["address"] == 425984
        )
        more = []
        for number in (1, 2):
            node = json.loads(json.dumps(nodes[index]))
            node["params"]["address"] -= number * 131072
            more.append(node)
        return nodes[: index + 1] + more + nodes[index + 1 :]

    found, _ = answer(capsys, replanned(tmp_path, change), code=3)
    (clash,) = found["clashes"]
    assert clash["l1_lowest_address"] == 163840
    assert clash["shortfall_bytes"] == 527552 - 163840
    assert [b["address"] for b in clash["buffers"]] == [163840, 294912, 425984]
    assert "3 L1 buffers below 527552" in " ".join(clash["advice"])


def test_a_hit_that_clashes_is_found_though_it_lays_nothing_out(capsys, tmp_path):
    def change(nodes):
        # First the operation without the L1 buffers, ended well; then the buffers; then the operation from the cache.
        begin = max(
            i for i, n in enumerate(nodes) if n["node_type"] == "function_start" and "layer_norm" in n["params"]["name"]
        )
        last = next(n["counter"] for n in nodes if n["params"] and n["params"].get("name") == "ttnn.layer_norm")
        operation = [n for n in nodes[begin:] if n["node_type"] != "capture_end"]
        tensor = {"counter": last, "node_type": "tensor", "params": {}, "connections": []}
        ended = [
            tensor,
            {"counter": 10**6, "node_type": "function_end", "params": {"name": "ttnn.layer_norm"}, "connections": []},
        ]
        hit = [n for n in operation if n["node_type"] != "circular_buffer_allocate"]
        return operation + ended + nodes[:begin] + hit + ended

    found, _ = answer(capsys, replanned(tmp_path, change), code=3)
    (clash,) = found["clashes"]
    assert (clash["cb_region_end"], clash["l1_lowest_address"], clash["dispatches"]) == (527552, 425984, 2)
    assert "threw" not in clash


def test_a_program_that_is_tried_again_after_it_threw_is_one_clash():
    watch = ClashWatch(lambda chip: Geometry())
    buffers = (CircularBuffer(100, 50, "{[0-0 - 3-3]}"),)
    for key, address in ((1, 140), (2, 120), (3, 130)):
        watch.allocate(0, key, BufferType.L1, 4096, address, 64, "weights")
        watch.lay_out(0, key, buffers, "matmul")
        watch.threw(0, key)
        watch.free(0, key)
    (finding,) = watch.findings()
    assert (finding.l1_lowest_address, finding.dispatches, finding.threw) == (120, 3, True)


# The capture of a clash, with fewer and with more live buffers than it has.

GROUP = 7  # nodes of one `ttnn.allocate_tensor_on_device` in the capture, from its second node on
HELD = 8


def variant(count, freed=()):
    """Return the nodes as TT-Metal would have written them with other live buffers before the layer norm."""
    nodes = json.loads(CLASH.read_text())
    first, rest = nodes[1 : 1 + GROUP], nodes[1 + GROUP * HELD :]
    out = [nodes[0]]
    for number in range(count):
        text = json.dumps(first).replace("1343488", str(1343488 - 131072 * number))
        out += [moved(node, GROUP * number) for node in json.loads(text)]
    shift = GROUP * (count - HELD)
    for number in freed:
        where = len(out)
        buffer = 3 + GROUP * number
        out.append({**copy.deepcopy(out[buffer + 1]), "node_type": "buffer_deallocate", "counter": where})
        shift += 1
    return out + [moved(copy.deepcopy(node), shift) for node in rest]


def moved(node, by):
    node["counter"] += by
    node["connections"] = [counter + by for counter in node["connections"]]
    return node


def essence(node):
    params = {name: value for name, value in (node["params"] or {}).items() if name != "tensor_id"}
    return node["counter"], node["node_type"], node["connections"], params


def simple_model(nodes):
    """Work out, from the nodes alone, how far the program reaches and what lies there when it is laid out."""
    live, ends, found = {}, {}, None
    for node in nodes:
        p, kind = node["params"] or {}, node["node_type"]
        if kind == "buffer_allocate" and p["type"] == "L1":
            live[int(p["address"])] = int(p["max_size_per_bank"])
        elif kind == "buffer_deallocate" and p["type"] == "L1":
            del live[int(p["address"])]
        elif kind == "circular_buffer_allocate":
            key = p["core_range_set"].strip("{}")
            ends[key] = max(ends.get(key, 0), int(p["address"]) + int(p["size"]))
            found = dict(live)
    return ends, found


@pytest.mark.parametrize(
    ("count", "freed"),
    [*((count, ()) for count in range(11)), (8, (7,)), (8, (0,)), (9, (8, 7)), (10, (9,)), (10, (3, 8)), (7, (6, 5))],
)
def test_with_fewer_and_with_more_live_buffers_the_figures_are_those_of_a_simple_model(count, freed, capsys, tmp_path):
    nodes = variant(count, freed)
    assert [node["counter"] for node in nodes] == list(range(len(nodes)))
    if (count, freed) == (HELD, ()):
        # The variant that changes nothing is the capture; only durations and tensors' ids differ in its groups.
        assert [essence(node) for node in nodes] == [essence(node) for node in json.loads(CLASH.read_text())]
    (tmp_path / "c.json").write_text(json.dumps(nodes))
    ends, live = simple_model(nodes)
    lowest = min(live, default=None)
    assert ends == {"[0-0 - 7-3]": 527552}
    clashing = lowest is not None and lowest < 527552
    found, _ = answer(
        capsys, tmp_path / "c.json", "--arch", "wormhole_b0", "--l1-small-size", 24576, code=3 if clashing else 0
    )
    (row,) = found["programs"]
    top = 1499136 - 24576
    assert (row["core_range"], row["cb_region_end"], row["l1_lowest_address"]) == ("[0-0 - 7-3]", 527552, lowest)
    assert row["headroom_bytes"] == (top if lowest is None else lowest) - 527552
    assert len(found["clashes"]) == clashing
    for clash in found["clashes"]:
        below = {address: size for address, size in sorted(live.items()) if address < 527552}
        assert clash["shortfall_bytes"] == 527552 - lowest
        assert {b["address"]: b["size_per_bank"] for b in clash["buffers"]} == below
        assert clash["num_buffers"] == len(below)
        cheaper = 527552 - lowest < sum(below.values())
        assert clash["advice"][0].startswith("shrink" if cheaper else "free")


# Devices.


def test_a_cached_program_that_would_clash_now_is_found_before_it_throws(capsys):
    with ttmem.publish(0, **N150) as pub:
        program = pub.add_program([ttmem.CircularBuffer(105664, 421888, "{[0-0 - 7-3]}")], name="norm")
        pub.dispatch(program)
        top = 1499136 - 24576
        pub.allocate("L1", 64 * 1048576, address=top - 1048576, size_per_bank=1048576, name="weights")
        found, _ = answer(capsys, "-d", 0, code=3)
        (clash,) = found["clashes"]
        assert (clash["program"], clash["core_range"]) == ("norm", "[0-0 - 7-3]")
        assert (clash["cb_region_end"], clash["l1_lowest_address"], clash["shortfall_bytes"]) == (
            527552,
            425984,
            101568,
        )
        assert clash["certain"] is True
        assert [b["name"] for b in clash["buffers"]] == ["weights"]


def test_a_live_clash_names_the_cores_the_cbs_and_the_smallest_change_first(capsys):
    layernorm = [
        ttmem.CircularBuffer(105664, 16384, "{[0-0 - 7-7]}"),
        ttmem.CircularBuffer(122048, 262144, "{[0-0 - 7-3]}"),
        ttmem.CircularBuffer(384192, 32768, "{[0-0 - 7-3], [2-5 - 2-5]}"),
    ]
    with ttmem.publish(0, **N150) as pub:
        pub.add_program(layernorm, name="layernorm")
        # A larger program elsewhere must not be taken for it, nor its cores for this one's.
        pub.add_program([ttmem.CircularBuffer(105664, 900000, "{[0-7 - 0-7]}")], name="other")
        for number, name in enumerate(("weights", "activations")):
            pub.allocate("L1", 64 * 32768, address=370000 + 32768 * number, size_per_bank=32768, name=name)
        found, _ = answer(capsys, "-d", 0, code=3)
    rows = {(row["program"], row["core_range"]): row for row in found["programs"]}
    assert {key: row["cb_region_end"] for key, row in rows.items()} == {
        # TT-Metal keeps an end for each range that a CB was laid on; whatever meets it counts.
        ("layernorm", "[0-0 - 7-7]"): 416960,
        ("layernorm", "[0-0 - 7-3]"): 416960,
        ("layernorm", "[2-5 - 2-5]"): 416960,
        ("other", "[0-7 - 0-7]"): 1005664,
    }
    assert all(row["l1_lowest_address"] == 370000 for row in rows.values())
    clash = next(row for row in found["clashes"] if row["core_range"] == "[0-0 - 7-3]")
    assert (clash["shortfall_bytes"], clash["certain"]) == (46960, True)
    assert sorted(cb["size_bytes"] for cb in clash["circular_buffers"]) == [16384, 32768, 262144]
    assert [(b["name"], b["address"]) for b in clash["buffers"]] == [("weights", 370000), ("activations", 402768)]
    # To shrink 46,960 bytes is less than to free two buffers of 32,768.
    assert "to at most 215,184" in clash["advice"][0]
    assert "free the 2 L1 buffers" in clash["advice"][1]


def test_a_device_without_clash_ends_with_0_and_tells_the_headroom(capsys):
    with ttmem.publish(0, **N150) as pub:
        pub.add_program([ttmem.CircularBuffer(105664, 4096, "{[0-0 - 7-3]}")], name="norm")
        found, _ = answer(capsys, "-d", 0, code=0)
        assert found["clashes"] == []
        assert found["programs"][0]["headroom_bytes"] == 1499136 - 24576 - 105664 - 4096


def test_the_binding_core_is_named_where_buffers_lie_on_some_cores(capsys):
    with ttmem.publish(0, **N150) as pub:
        pub.add_program([ttmem.CircularBuffer(105664, 65536, "{[0-0 - 7-7]}")], name="norm")
        pub.allocate("L1", 1024, address=150016, size_per_bank=1024, core_ranges="{[3-4 - 3-4]}", name="shard")
        found, _ = answer(capsys, "-d", 0, code=3)
        (clash,) = found["clashes"]
        assert clash["binding_core"] == {"x": 3, "y": 4}
        assert main(["-d", "0"]) == 3
        assert "Binding core: 3,4" in capsys.readouterr().out


def test_a_dump_gives_the_same_answer_as_the_live_device(capsys, tmp_path):
    with ttmem.publish(0, **N150) as pub:
        pub.add_program([ttmem.CircularBuffer(105664, 421888, "{[0-0 - 7-3]}")], name="norm")
        pub.allocate("L1", 64 * 1048576, address=425984, size_per_bank=1048576, name="weights")
        live, _ = answer(capsys, "-d", 0, code=3)
        file = tmp_path / "dump.json"
        file.write_text(json.dumps(read_live().to_dict()))
    from_file, _ = answer(capsys, file, code=3)
    assert from_file == live


def test_a_program_whose_cores_are_not_known_is_judged_with_care():
    device = {
        "device_id": 0,
        "cores": [
            {"x": 0, "y": 0, "cb_region_end": 500, "l1_lowest_address": 400},
            {"x": 1, "y": 0, "cb_region_end": 500, "l1_lowest_address": 900},
        ],
        "programs": [{"name": "a", "num_cores": 1, "cb_bytes_per_core": 300, "cb_region_end": 500}],
    }
    (finding,) = judge_device(device)
    assert finding.clashes
    assert not finding.certain
    assert finding.core_range is None


def test_no_device_and_no_file_end_with_1_and_say_what_helps(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    found, err = answer(capsys, code=1)
    assert found == {"clashes": [], "programs": []}
    assert "name a capture or a dump" in err
    assert main(["/nonexistent/capture.json"]) == 1


def test_a_file_that_is_nothing_known_ends_with_4(capsys, tmp_path):
    file = tmp_path / "x.json"
    file.write_text("hello")
    assert main([str(file)]) == 4
    assert "ttmem-dump --json" in capsys.readouterr().err


# TT-Metal's texts.


def test_an_error_text_on_stdin_is_explained(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Stdin("noise\n" + error_text() + "more noise\n"))
    found, _ = answer(capsys, "-", code=3)
    (clash,) = found["clashes"]
    assert (clash["core_range"], clash["shortfall_bytes"]) == ("[0-0 - 7-3]", 101568)
    assert found["errors"][0]["kind"] == "clash"


def test_an_error_text_is_explained_with_the_buffers_of_the_device_at_hand(capsys, monkeypatch):
    with ttmem.publish(0, **N150) as pub:
        pub.allocate("L1", 64 * 131072, address=425984, size_per_bank=131072, name="ttnn.matmul")
        monkeypatch.setattr("sys.stdin", Stdin(error_text()))
        found, _ = answer(capsys, "-", code=3)
        assert [b["name"] for b in found["clashes"][0]["buffers"]] == ["ttnn.matmul"]
        assert any("CB base 105664" in line for line in found["errors"][0]["explanation"])


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            "Statically allocated circular buffers on core range [(x=0,y=0) - (x=7,y=7)] grow to 1600000 B which is "
            "beyond max L1 size of 1499136 B",
            "too_large",
            "100,864 bytes (98.5 KiB) beyond the end of a core's L1",
        ),
        (
            "Statically allocated circular buffers in program 77 clash with L1 buffers on core range [(x=0,y=0) - "
            "(x=7,y=3)]. L1 buffer allocated at 425984 and static circular buffer region ends at 527552",
            "clash",
            "on [0-0 - 7-3], 101,568 bytes",
        ),
        (
            "Circular buffer core range [0-0 - 8-8] in program 3 exceeds device compute grid (8x8) and is not entirely "
            "on cores claimed via ServiceCoreManager",
            "grid",
            "the last is [7-7]",
        ),
        (
            "Circular buffers on service-core range [0-9 - 0-9] in program 3 clash with ServiceCoreManager-allocated "
            "L1 (lowest service allocation at 1000, CB region ends at 1500)",
            "service_core",
            "500 bytes above",
        ),
        (
            "Out of Memory: Not enough space to allocate 8388608 B L1 buffer across 64 banks, where each bank needs to "
            "store 131072 B, but bank size is 1368896 B (allocated: 1048576 B, free: 320320 B, largest "
            "free block: 100000 B)",
            "out_of_memory",
            "fragmentation of 68.8 %",
        ),
        (
            "Out of Memory: Not enough space to allocate 8388608 B DRAM buffer across 12 banks, where each bank needs "
            "to store 699392 B, but bank size is only 4096 B",
            "out_of_memory",
            "more than a whole bank",
        ),
        (
            "Cannot set to globally allocated buffer. Circular buffer size 4096 B exceeds allocated L1 buffer size of "
            "2048 B",
            "global_cb",
            "2,048 too few",
        ),
    ],
)
def test_every_text_of_tt_metal_is_read_and_explained(text, kind, says, capsys, monkeypatch):
    (thrown,) = parse_thrown(f"TT_THROW @ program.cpp:1925\ninfo:\n{text}\nbacktrace:\n")
    assert thrown.kind == kind
    assert all(value is not None for value in thrown.figures.values())
    monkeypatch.setattr("sys.stdin", Stdin(text))
    found, _ = answer(capsys, "-", code=3 if kind == "clash" else 0)
    assert says in " ".join(found["errors"][0]["explanation"])


def out_of_memory(size, kind, banks, needed, told=""):
    return (
        f"Out of Memory: Not enough space to allocate {size} B {kind} buffer across {banks} banks, where each bank needs "
        f"to store {needed} B{told}"
    )


def test_an_l1_buffer_that_found_no_room_is_explained_with_the_holes_of_the_dump_at_hand(capsys, tmp_path, monkeypatch):
    top = 1499136 - 24576
    with ttmem.publish(0, **N150) as pub:
        # Holes of 300,000 and 200,000 bytes around a small buffer, then large ones down to the CB base.
        pub.allocate("L1", 64 * 4096, address=top - 304096, size_per_bank=4096, name="small")
        pub.allocate("L1", 64 * 500000, address=top - 1004096, size_per_bank=500000, name="large")
        pub.allocate("L1", 64, address=105664, size_per_bank=top - 1004096 - 105664, name="rest")
        (tmp_path / "dump.json").write_text(json.dumps(read_live().to_dict()))
    told = f", but bank size is {top - 105664} B (allocated: 868896 B, free: 500000 B, largest free block: 300000 B)"
    for text in (out_of_memory(64 * 400000, "L1", 64, 400000), out_of_memory(64 * 400000, "L1", 64, 400000, told)):
        monkeypatch.setattr("sys.stdin", Stdin(text))
        found, _ = answer(capsys, "-", tmp_path / "dump.json", code=0)
        said = " ".join(found["errors"][0]["explanation"])
        assert "500,000 bytes are free in each bank, but the largest piece has 300,000: fragmentation of 40.0 %" in said
        assert "to free this buffer is the least that makes room, 4,096 bytes per bank for a piece of 504,096" in said
        assert f"4.0 KiB per bank at {top - 304096} from small" in said
        assert "the largest live L1 buffers: 488.3 KiB per bank" in said


def test_a_dram_buffer_that_found_no_room_is_explained_too(capsys, tmp_path, monkeypatch):
    base = 2**20 + 64
    with ttmem.publish(0, arch="wormhole_b0", dram_size=12 * (2**30 - base)) as pub:
        pub.allocate("DRAM", 12 * 2**29, address=base + 2**28, size_per_bank=2**29, name="weights")
        (tmp_path / "dump.json").write_text(json.dumps(read_live().to_dict()))
    monkeypatch.setattr("sys.stdin", Stdin(out_of_memory(12 * 2**29, "DRAM", 12, 2**29)))
    found, _ = answer(capsys, "-", tmp_path / "dump.json", code=0)
    said = " ".join(found["errors"][0]["explanation"])
    free = 2**29 - base
    assert f"only {free:,} of {2**30 - base:,} bytes are free in each bank: free at least {base:,} bytes" in said
    assert "512.0 MiB per bank at 269484096 from weights" in said


def test_a_region_beyond_l1_is_explained_from_the_base_of_the_dump_at_hand(capsys, tmp_path, monkeypatch):
    with ttmem.publish(0, **N150):
        (tmp_path / "dump.json").write_text(json.dumps(read_live().to_dict()))
    text = (
        "Statically allocated circular buffers on core range [(x=0,y=0) - (x=7,y=7)] grow to 1600000 B which is beyond max "
        "L1 size of 1499136 B"
    )
    monkeypatch.setattr("sys.stdin", Stdin(text))
    found, _ = answer(capsys, "-", tmp_path / "dump.json", code=0)
    said = " ".join(found["errors"][0]["explanation"])
    assert "from the CB base 105664 they take 1,494,336 bytes per core of at most 1,393,472" in said
    assert "shrink the program's circular buffers by at least 100,864 bytes per core" in said


def test_the_same_text_many_times_is_one_error():
    (thrown,) = parse_thrown(error_text() * 5)
    assert thrown.count == 5


def test_stdin_without_any_known_text_ends_with_1(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Stdin("all is well\n"))
    assert main(["-"]) == 1
    assert "no error text of TT-Metal" in capsys.readouterr().err


def test_a_finding_without_a_clash_has_no_advice():
    findings = judge_capture(CAPTURES / "n150_mlp.json").findings
    assert [advice(finding) for finding in findings] == [[]] * len(findings)


def test_live_buffers_leaves_out_what_has_no_place_in_l1():
    rows = [
        {"buffer_type": "DRAM", "address": 1, "size_bytes": 1},
        {"buffer_type": 1, "address": None, "size_bytes": 1},
        {"buffer_type": "L1", "address": 5, "size_bytes": 7, "size_per_bank": 1, "name": "a"},
    ]
    assert [(b.name, b.address, b.size) for b in live_buffers(rows)] == [("a", 5, 7)]


# Recordings.


def test_a_moment_of_a_recording_is_explained_and_fitted_into_as_the_device_was(capsys, tmp_path):
    file, host = str(tmp_path / "r.ttmem"), Host()
    with ttmem.publish(0, **N150) as pub, RecordingWriter(file) as writer:
        pub.add_program([CircularBuffer(105664, 8192, "{[0-0 - 7-7]}")], name="matmul")
        writer.write(read_host_for_recording(host))
        pub.allocate("L1", 64 * 65536, address=110000, size_per_bank=65536, name="left over")
        live, _ = answer(capsys, code=3)
        writer.write(read_host_for_recording(host), key=True)
        assert fit_main(["--cb", "16KiB", "--cores", "0-0:7-7", "--json"]) == 3
        fitted = json.loads(capsys.readouterr().out)
    host.close()
    found, _ = answer(capsys, file, code=3)
    assert found == live
    assert found["clashes"][0]["buffers"][0]["name"] == "left over"
    for moment in ("0", "first", "-3600"):
        before, _ = answer(capsys, file, f"--at={moment}", code=0)
        assert before["clashes"] == []
    assert main([file, "--at", "noon"]) == 2
    assert fit_main([file, "--cb", "16KiB", "--cores", "0-0:7-7", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == fitted
    assert fit_main([file, "--cb", "16KiB", "--cores", "0-0:7-7", "--at", "0"]) == 0


def test_of_a_capture_the_chips_that_are_named_are_judged(capsys):
    capture = CAPTURES / "t3k_mesh_transformer.json.gz"
    found, _ = answer(capsys, capture, "-d", "2,5", code=0)
    assert {row["device_id"] for row in found["programs"]} == {2, 5}
    _, err = answer(capsys, capture, "-d", "99", code=1)
    assert "no such chip in the capture: 99; there is 0, 1, 2" in err
    assert fit_main([str(capture), "--cb", "1x2048", "--cores", "0-0:1-1", "-d", "5", "--json"]) == 0
    assert [device["device_id"] for device in json.loads(capsys.readouterr().out)["devices"]] == [5]
