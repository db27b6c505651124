"""Publish from wrappers around an allocator and a program cache of your own: `python examples/wrapper.py`."""

import contextlib

import ttmem

GEOMETRY = {"arch": "wormhole_b0", "grid": (8, 8), "l1_cb_base": 105664, "l1_small_size": 24576}
BANKS = 64


class Runtime:
    """Stands for what you have: it allocates from the top of L1 down, and runs programs by name."""

    def __init__(self):
        self.top = 1499136 - 24576

    def allocate(self, size_per_bank):
        self.top -= size_per_bank
        return self.top

    def free(self, address):
        pass

    def run(self, name, circular_buffers):
        pass


class PublishedRuntime:
    """The same calls, each of which tells ttmem, too."""

    def __init__(self, runtime, pub):
        self.runtime = runtime
        self.pub = pub
        self.buffers = {}
        self.programs = {}

    def allocate(self, size_per_bank, name=""):
        address = self.runtime.allocate(size_per_bank)
        size = size_per_bank * BANKS
        self.buffers[address] = self.pub.allocate("L1", size, address=address, size_per_bank=size_per_bank, name=name)
        return address

    def free(self, address):
        self.runtime.free(address)
        self.pub.deallocate(self.buffers.pop(address))

    def run(self, name, circular_buffers):
        """A program is laid out once, and dispatched again and again."""
        if name not in self.programs:
            self.programs[name] = self.pub.add_program(circular_buffers, name=name)
        self.runtime.run(name, circular_buffers)
        self.pub.dispatch(self.programs[name])

    @contextlib.contextmanager
    def tensor(self, size_per_bank, name=""):
        address = self.allocate(size_per_bank, name)
        try:
            yield address
        finally:
            self.free(address)


def main():
    with ttmem.publish(0, **GEOMETRY) as pub:
        runtime = PublishedRuntime(Runtime(), pub)
        # Without an address they are placed as TT-Metal places them.
        tiles = [ttmem.CircularBuffer(None, 2 * 2048, "{[0-0 - 7-7]}") for _ in range(3)]
        with runtime.tensor(30720, name="weights"):
            for _ in range(10):
                runtime.run("Add", tiles)
            # Any process may look at it now: ttmem-dump, ttmem-top, ttmem.attach(0).
            snapshot = pub.snapshot()
        print("while it ran, L1 bytes:", snapshot.memory.l1.used_bytes)
        print("CB bytes:", snapshot.memory.cb.physical_bytes)
        print("smallest headroom:", snapshot.cores["headroom_bytes"].min())
        print("after it, L1 bytes:", pub.snapshot().memory.l1.used_bytes)


if __name__ == "__main__":
    main()
