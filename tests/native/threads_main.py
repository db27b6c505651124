"""``python threads_main.py [unlocked]``: threads on one block and one ledger.

With a word after it, on a block without the lock, which a sanitizer must see.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading

from threads import SharedBlock, drive

import ttmem
from ttmem._segment import DeviceBlock

WRITERS, UPDATES = 3, 3000


def on_a_block(locked: bool) -> bool:
    """Return whether no reading was torn and no update was lost."""
    shared = SharedBlock(DeviceBlock(16))
    # Long enough without the lock that they meet, on a busy machine, too.
    updates = UPDATES if locked else 100 * UPDATES
    threads = [threading.Thread(target=shared.write, args=(updates, locked)) for _ in range(WRITERS)]
    torn: list[int] = []
    if locked:
        threads.append(threading.Thread(target=lambda: torn.append(shared.read(WRITERS * UPDATES))))
    run(threads)
    return torn == [0]


def on_a_ledger() -> bool:
    """Drive a published device from compiled and from Python callers at once; return whether its figures close."""
    failures: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TTMEM_SHM_DIR"] = directory
        with ttmem.publish(0, grid=(4, 4)) as publisher:
            program = publisher.add_program([ttmem.CircularBuffer(0, 64, "{[0-0 - 3-3]}")], name="kept")

            def compiled(number: int) -> None:
                failures.append(drive(publisher, (number + 1) << 32, UPDATES, program))

            def plain() -> None:
                for number in range(UPDATES // 10):
                    publisher.remove_program(publisher.add_program([ttmem.CircularBuffer(number, 32, "{[0-0 - 1-1]}")]))
                    publisher.deallocate(publisher.allocate("L1", 64, address=4096, size_per_bank=64))
                    publisher.snapshot()

            run(
                [threading.Thread(target=compiled, args=(number,)) for number in range(2)]
                + [threading.Thread(target=plain)]
            )
            memory = publisher.snapshot().memory
    left = (memory.dram.used_bytes, memory.l1.used_bytes, memory.kernel.used_bytes, memory.cb.physical_bytes)
    return failures == [0, 0] and left == (0, 0, 0, 16 * 64)


def run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    """Return 0 if everything held."""
    if len(sys.argv) > 1:
        return int(on_a_block(locked=False))
    return 0 if on_a_block(locked=True) and on_a_ledger() else 1


if __name__ == "__main__":
    sys.exit(main())
