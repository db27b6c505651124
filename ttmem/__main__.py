"""``python -m ttmem VERB``: every command under one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from ttmem.cli import ends_well, write

VERBS = {
    "dump": "one-shot breakdown of all devices",
    "top": "the live screen",
    "replay": "feed a graph capture or a recording through a publisher",
    "exporter": "Prometheus endpoint",
    "record": "record what is published to a file",
    "export": "write a report for another tool",
    "diff": "what changed between two dumps or recordings",
    "explain": "how far every program is from a clash with L1 buffers",
    "fit": "whether circular buffers would fit",
    "peaks": "the most that was used, when, and by what",
    "lockstep": "devices of a mesh that are not alike, and in what",
    "fragmentation": "holes in L1 and DRAM, and what the regions set aside needed",
    "doctor": "every file in shared memory, and what is wrong with it",
    "gc": "remove what dead writers left",
}


def _usage() -> str:
    lines = "\n".join(f"  {verb:<15}{text}" for verb, text in VERBS.items() if find_spec(f"ttmem.cli.{verb}"))
    return f"usage: python -m ttmem VERB [options]\n\n{lines}\n\n`python -m ttmem VERB --help` tells its options."


@ends_well("python -m ttmem")
def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code: 2 if there is none of that name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        write(f"{_usage()}\n")
        return 0
    if arguments[:1] in (["-V"], ["--version"]):
        from ttmem._version import __version__

        write(f"ttmem {__version__}\n")
        return 0
    if not arguments or arguments[0] not in VERBS or find_spec(f"ttmem.cli.{arguments[0]}") is None:
        print(_usage(), file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"ttmem.cli.{arguments[0]}").main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
