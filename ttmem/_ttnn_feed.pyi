from collections.abc import Mapping
from typing import Any, final

from ttmem._ledger import Ledger

sink: object

@final
class Feed:
    def __init__(self, publisher: Ledger, before: Mapping[Any, int] | None = None) -> None: ...
    @property
    def refused(self) -> int: ...

def hear(wanted: Mapping[int, Feed]) -> None: ...
