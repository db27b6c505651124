"""The version of ttmem, once."""

__version__ = "0.1.0"
