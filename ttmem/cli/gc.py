"""Remove what dead writers left in shared memory: files of this user, after a grace time, never a living writer's."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ttmem import segment
from ttmem.cli import EXIT_DONE, ends_well, parse, write


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m ttmem gc``."""
    parser = argparse.ArgumentParser(prog="python -m ttmem gc", description=__doc__)
    add = parser.add_argument
    add(
        "--grace",
        type=float,
        default=segment.GRACE_NS / 1e9,
        metavar="SEC",
        help="keep what was found dead less than SEC ago",
    )
    add("--now", action="store_true", help="no grace time")
    add("-n", "--dry-run", action="store_true", help="change nothing")
    add("--json", action="store_true", help="print what was done as JSON")
    return parser


@ends_well("python -m ttmem gc")
def main(argv: Sequence[str] | None = None) -> int:
    """Collect dead writers' files; return 0."""
    args = parse(build_parser(), argv)
    if isinstance(args, int):
        return args
    grace_ns = 0 if args.now else int(args.grace * 1e9)
    done = segment.collect(segment.shm_directory(), segment.namespace(), grace_ns=grace_ns, dry_run=args.dry_run)
    if args.json:
        write(json.dumps([{"path": str(path), "done": verdict} for path, verdict in done], indent=2) + "\n")
    else:
        write("".join(f"{verdict}: {path}\n" for path, verdict in done) or "nothing to collect\n")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
