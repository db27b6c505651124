"""``python threads_main.py [unlocked]``: threads on one block; with a word, without the lock, which a sanitizer must see."""

from __future__ import annotations

import sys
import threading

from threads import SharedBlock

from ttmem._segment import DeviceBlock

WRITERS, UPDATES = 3, 3000


def main() -> int:
    """Return 0 if no reading was torn and no update was lost."""
    locked = len(sys.argv) == 1
    shared = SharedBlock(DeviceBlock(16))
    writers = [threading.Thread(target=shared.write, args=(UPDATES, locked)) for _ in range(WRITERS)]
    torn: list[int] = []
    if locked:
        writers.append(threading.Thread(target=lambda: torn.append(shared.read(WRITERS * UPDATES))))
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    return int(torn != [0])


if __name__ == "__main__":
    sys.exit(main())
