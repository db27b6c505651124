from collections.abc import Mapping
from typing import Any

from ttmem._ledger import Ledger

sink: object

class Feed:
    def __init__(self, publisher: Ledger, before: Mapping[Any, int] | None = None) -> None: ...
    @property
    def refused(self) -> int: ...
    @property
    def before(self) -> dict[int, int]: ...

def hear(wanted: Mapping[int, Feed]) -> None: ...
