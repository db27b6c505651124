from typing import Any

from ttmem._reading import BlockReading

def core_table(readings: list[BlockReading], width: int, height: int, base: int, l1_top: int, out: Any) -> None: ...
