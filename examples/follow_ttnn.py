"""Follow everything that ttnn does on a device, with one line: `python examples/follow_ttnn.py`, where ttnn is installed."""

import ttnn

import ttmem
import ttmem.ttnn


def main():
    device = ttnn.open_device(device_id=0, l1_small_size=24576)
    shape, dtype, layout = ttnn.Shape([1, 1, 512, 512]), ttnn.bfloat16, ttnn.TILE_LAYOUT
    with ttmem.ttnn.track(device) as tracker:
        x = ttnn.allocate_tensor_on_device(shape, dtype, layout, device, ttnn.L1_MEMORY_CONFIG)
        for _ in range(10):
            ttnn.deallocate(ttnn.add(x, x))
        # Other processes see it without this, a moment later.
        tracker.sync()
        with ttmem.attach(0) as reader:
            snapshot = reader.snapshot()
        print("L1 bytes:", snapshot.memory.l1.used_bytes)
        print("CB bytes:", snapshot.memory.cb.physical_bytes)
        print("programs:", [program["name"] for program in snapshot.programs])
        for text in snapshot.warnings:
            print("note:", text)
        ttnn.deallocate(x)
    ttnn.close_device(device)


if __name__ == "__main__":
    main()
