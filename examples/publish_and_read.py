"""One process publishes a device, another reads it: `python examples/publish_and_read.py`."""

import multiprocessing

import ttmem


def write(ready, done):
    """Publish a cached program, dispatch it, and stay until the reader is done."""
    geometry = {"arch": "wormhole_b0", "grid": (8, 8), "l1_cb_base": 105664, "l1_small_size": 24576}
    with ttmem.publish(0, **geometry) as pub:
        buffers = [ttmem.CircularBuffer(None, 4096, "{[0-0 - 7-7]}") for _ in range(3)]
        pub.dispatch(pub.add_program(buffers, name="Add"))
        pub.allocate("L1", 64 * 30720, address=1443840, size_per_bank=30720, name="weights")
        ready.set()
        done.wait()


def main():
    """Start the writer and look at it from here."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    writer = context.Process(target=write, args=(ready, done))
    writer.start()
    ready.wait()
    with ttmem.attach(0) as reader:
        snapshot = reader.snapshot()
    done.set()
    writer.join()
    print("physical CB bytes:", snapshot.memory.cb.physical_bytes)
    print("smallest headroom:", snapshot.cores["headroom_bytes"].min())
    print("free L1 bytes:", snapshot.l1_accounting.free_bytes)


if __name__ == "__main__":
    main()
