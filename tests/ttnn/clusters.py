"""Descriptions of clusters that are not there, as TT-Metal's mock mode reads them."""

from __future__ import annotations

import json


def _chip(rows: int, **masks: int) -> dict[str, object]:
    # Harvesting: which Tensix rows (Wormhole) or columns (Blackhole) are switched off, one bit each.
    base = {"dram_harvesting_mask": 0, "eth_harvesting_mask": 0, "pcie_harvesting_mask": 0, **masks}
    return {"noc_translation": True, "harvest_mask": rows, **base}


def _board(product: int, number: int) -> int:
    # TT-Metal checks the type of a board against the product code in its id.
    return product << 36 | number


def n150() -> dict[str, object]:
    """One Wormhole chip."""
    return {
        "arch": {0: "wormhole_b0"},
        "chips": {0: [0, 0, 0, 0]},
        "ethernet_connections": [],
        "chips_with_mmio": [{0: 0}],
        "harvesting": {0: _chip(1 << 6)},
        "boards": [[{"board_id": _board(0x100018, 0x500000001)}, {"board_type": "n150"}, {"chips": [0]}]],
    }


def p150() -> dict[str, object]:
    """One Blackhole chip."""
    return {
        "arch": {0: "blackhole"},
        "chips": {},
        "chip_unique_ids": {0: 0x80200000200},
        "ethernet_connections": [],
        "ethernet_connections_to_remote_devices": [],
        "chips_with_mmio": [{0: 0}],
        "io_device_type": "PCIe",
        "harvesting": {0: _chip(0b11 << 6, eth_harvesting_mask=0x120, pcie_harvesting_mask=2, l2cpu_harvesting_mask=0)},
        "chip_to_bus_id": {0: "0x01"},
        "boards": [[{"board_id": _board(0x40, 0x100000010)}, {"board_type": "p150"}, {"chips": [0]}]],
        "asic_locations": {0: 0},
        "chip_pci_bdfs": {0: "0000:01:00.0"},
    }


def t3000() -> dict[str, object]:
    """Four n300 boards: chips 0 to 3 on PCIe, each with a remote one, in a mesh of 2 x 4."""
    place = {0: (1, 0), 1: (1, 1), 2: (2, 0), 3: (2, 1), 4: (0, 0), 5: (0, 1), 6: (3, 0), 7: (3, 1)}
    # (chip, its first channel, other chip, its first channel); every link has two channels.
    links = [(0, 6, 2, 6), (0, 8, 4, 0), (0, 14, 1, 14), (1, 0, 3, 0), (1, 8, 5, 0)]
    links += [(2, 8, 6, 0), (2, 14, 3, 14), (3, 8, 7, 0), (4, 6, 5, 6), (6, 6, 7, 6)]
    ends = [
        [{"chip": a, "chan": first + i}, {"chip": b, "chan": second + i}]
        for a, first, b, second in links
        for i in (0, 1)
    ]
    return {
        "arch": dict.fromkeys(place, "wormhole_b0"),
        "chips": {chip: [x, y, 0, 0] for chip, (x, y) in place.items()},
        "chip_unique_ids": {chip: 0x300000000 + 17 * chip for chip in place},
        "ethernet_connections": ends,
        "ethernet_connections_to_remote_devices": [],
        "chips_with_mmio": [{0: 0}, {1: 1}, {2: 3}, {3: 2}],
        "harvesting": {chip: _chip(0b1000000001) for chip in place},
        "boards": [
            [{"board_id": _board(0x100014, 0x500000100 + 16 * i)}, {"board_type": "n300"}, {"chips": [4 + i, i]}]
            for i in range(4)
        ],
    }


CLUSTERS = {"n150": n150, "p150": p150, "t3000": t3000}


def descriptor(name: str) -> str:
    """Return a cluster's description as YAML, of which JSON with plain integer keys is nearly one."""
    return "\n".join(_yaml(CLUSTERS[name](), 0)) + "\n"


def _yaml(value: object, depth: int) -> list[str]:
    pad = "  " * depth
    lines: list[str] = []
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)  # type: ignore[attr-defined]
    for key, item in items:
        lead = pad + ("-" if key is None else f"{key}:")
        if isinstance(item, (dict, list)) and item:
            lines.append(lead)
            lines.extend(_yaml(item, depth + 1))
        else:
            lines.append(f"{lead} {json.dumps(item) if not isinstance(item, str) else item}")
    return lines
