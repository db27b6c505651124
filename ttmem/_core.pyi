"""Types of the compiled interval engine; its C interface stands in `_core.pxd`."""

from typing import final

@final
class Intervals:
    width: int
    height: int
    num_cores: int
    mask_words: int
    limit: int
    def __new__(cls, width: int, height: int, *, limit: int = 1572864, hash_bits: int = 64) -> Intervals: ...
