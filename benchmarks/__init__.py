"""Benchmarks of ttmem beside its peers; ``python -m benchmarks.run`` and ``python -m benchmarks.segment``."""
