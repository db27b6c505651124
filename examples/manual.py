"""Count by hand what a script lays into L1: `python examples/manual.py`."""

import ttmem

with ttmem.L1Tracker(device_id=0, arch="wormhole_b0", grid=(8, 8), l1_cb_base=105664, l1_small_size=24576) as tracker:
    tracker.track_cb(num_tiles=8, tile_size=2048, num_cores=64)
    tracker.track_cb(num_tiles=2, tile_size=4096, num_cores=32)
    tracker.track_kernel(num_cores=64)
    tracker.summary()
