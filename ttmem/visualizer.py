"""Visualizer: a dump written as a report that ttnn-visualizer opens, a folder with ``db.sqlite`` and ``config.json``.

Its operations are the cached programs, each with its circular buffers and all live buffers, so that the tool draws every
program's L1 as it would be if it ran now. The first operation has the buffers alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttmem.dumps import Dump, DumpError
from ttmem.model import BufferType

# Columns of the tool's tables; a name with ":" has a type other than INT.
TABLES = {
    "devices": (
        "device_id num_y_cores num_x_cores num_y_compute_cores num_x_compute_cores worker_l1_size l1_num_banks l1_bank_size "
        "address_at_first_l1_bank address_at_first_l1_cb_buffer num_banks_per_storage_core num_compute_cores num_storage_cores "
        "total_l1_memory total_l1_for_tensors total_l1_for_interleaved_buffers total_l1_for_sharded_buffers cb_limit"
    ),
    "operations": "operation_id name:TEXT duration:FLOAT",
    "operation_arguments": "operation_id name:TEXT value:TEXT",
    "tensors": ("tensor_id shape:TEXT dtype:TEXT layout:TEXT memory_config:TEXT device_id address buffer_type"),
    "device_tensors": "tensor_id device_id address",
    "input_tensors": "operation_id input_index tensor_id",
    "output_tensors": "operation_id output_index tensor_id",
    "buffers": "operation_id device_id address max_size_per_bank buffer_type buffer_layout",
    "buffer_pages": (
        "operation_id device_id address core_y core_x bank_id page_index page_address page_size buffer_type"
    ),
    "captured_graph": "operation_id captured_graph:TEXT",
    "nodes": "operation_id unique_id node_operation_id name:TEXT",
    "edges": "operation_id source_unique_id sink_unique_id source_output_index sink_input_index key",
    "stack_traces": "operation_id stack_trace:TEXT",
    "errors": ("operation_id operation_name:TEXT error_type:TEXT error_message:TEXT stack_trace:TEXT timestamp:TEXT"),
    "local_tensor_comparison_records": "tensor_id golden_tensor_id matches desired_pcc:FLOAT actual_pcc:FLOAT",
    "global_tensor_comparison_records": "tensor_id golden_tensor_id matches desired_pcc:FLOAT actual_pcc:FLOAT",
}
_NODE_OF_KIND = {
    "circular_buffer": "circular_buffer_allocate",
    "dataflow_buffer": "dataflow_buffer_allocate",
    "scratchpad": "scratchpad_allocate",
}


def write_visualizer(dump: Dump, directory: str | os.PathLike[str], *, name: str = "ttmem") -> int:
    """Write the devices of a dump as a report, and return the number of its operations.

    Args:
        dump: each device with its geometry, programs and buffers.
        directory: made if it is missing.
        name: what the tool calls the report.

    Raises:
        DumpError: no device has a geometry.
        FileExistsError: the folder holds a report already.
        OSError: the folder cannot be written.
    """
    devices = [row for row in map(_device_row, dump.devices) if row is not None]
    if not devices:
        raise DumpError("no device tells its geometry, without which ttnn-visualizer draws nothing")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "db.sqlite"
    with database.open("xb"):
        pass
    operations = _operations(dump.devices)
    buffers = [row for device in dump.devices for row in _buffer_rows(device)]
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in TABLES.items():
            definitions = ", ".join(" ".join((*column.partition(":")[::2], "")[:2]) for column in columns.split())
            connection.execute(f"CREATE TABLE {table} ({definitions})")
        _insert(connection, "devices", devices)
        _insert(connection, "operations", [(i, title, 0.0) for i, (title, _) in enumerate(operations, 1)])
        graphs = [(i, json.dumps(graph)) for i, (_, graph) in enumerate(operations, 1)]
        _insert(connection, "captured_graph", graphs)
        _insert(connection, "buffers", ((i, *row) for i in range(1, len(operations) + 1) for row in buffers))
    config = {"report_name": name, "report_path": str(folder), "source": "ttmem"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return len(operations)


def _insert(connection: sqlite3.Connection, table: str, rows: Iterable[Sequence[Any]]) -> None:
    count = len(TABLES[table].split())
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * count)})", rows)


def _device_row(device: Mapping[str, Any]) -> tuple[int, ...] | None:
    grid, parts = device.get("grid"), device.get("l1_accounting") or {}
    total, reserved, small = (parts.get(f"{name}_bytes") for name in ("total", "reserved", "l1_small"))
    if grid is None or total is None or reserved is None or small is None:
        return None
    x, y = int(grid["x"]), int(grid["y"])
    cores = x * y
    worker, base = total // cores, reserved // cores
    bank = worker - base - small // cores
    whole = cores * bank
    # One bank a core; what the tool calls first bank is an offset within it.
    return (
        *(int(device["device_id"]), y, x, y, x, worker, cores, bank, 0, base, 1, cores, 0),
        *(total, 0, whole, whole, worker - base),
    )


def _buffer_rows(device: Mapping[str, Any]) -> Iterable[tuple[int, int, int, int, int]]:
    for row in device.get("buffers") or ():
        per_bank = row.get("size_per_bank")
        if row.get("address") is None or per_bank is None:
            continue
        kind = BufferType.parse(row["buffer_type"])
        # The layout is not known: 0 is interleaved.
        yield int(device["device_id"]), row["address"], per_bank, int(kind), 0


def _operations(devices: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    found: list[tuple[str, list[dict[str, Any]]]] = [("ttmem: live buffers", _graph("ttmem: live buffers", []))]
    for device in devices:
        for program in device.get("programs") or ():
            title = program["name"] or f"program {program['program_id']}"
            params = [
                (
                    _NODE_OF_KIND.get(buffer["kind"], "circular_buffer_allocate"),
                    {
                        "address": buffer["address"],
                        "size": buffer["size"],
                        "core_range_set": buffer["core_ranges"],
                        "device_id": device["device_id"],
                        "globally_allocated": "0",
                    },
                )
                for buffer in program.get("circular_buffers") or ()
            ]
            opening = ("circular_buffer_deallocate_all", {"device_id": device["device_id"]})
            found.append((title, _graph(title, [opening, *params])))
    return found


def _graph(name: str, inner: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    nodes = [("capture_start", {}), ("function_start", {"name": name, "inputs": "0"}), *inner]
    nodes += [("function_end", {"name": name}), ("capture_end", {})]
    return [
        {
            "counter": i,
            "id": i,
            "node_type": node_type,
            "params": params,
            "arguments": [],
            "input_tensors": [],
            "stacking_level": 0,
            "connections": [i + 1] if i + 1 < len(nodes) else [],
        }
        for i, (node_type, params) in enumerate(nodes)
    ]
