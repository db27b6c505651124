"""Remove what dead writers left in shared memory: files of this user, after a grace time, never a living writer's."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ttmem import segment
from ttmem.cli import EXIT_DONE, ends_well, parse, seconds_between, write


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m ttmem gc``."""
    parser = argparse.ArgumentParser(
        prog="python -m ttmem gc",
        description=__doc__,
        epilog="exit codes: 0 done, also if there was nothing; 2 wrong usage",
    )
    add = parser.add_argument
    add(
        "--grace",
        type=seconds_between(0, 1e9),
        default=segment.GRACE_NS / 1e9,
        metavar="SEC",
        help=f"keep what was found dead less than SEC ago (default {segment.GRACE_NS / 1e9:g})",
    )
    add("--now", action="store_true", help="no grace time")
    add("-n", "--dry-run", action="store_true", help="change nothing")
    add("--json", action="store_true", help="print what was done as JSON")
    return parser


def _text(done: Sequence[tuple[Path, str]], grace_ns: int) -> str:
    why = f" (found dead less than {grace_ns / 1e9:g} s ago; --now removes it)"
    lines = [f"{verdict}: {path}{why if verdict == 'kept' else ''}\n" for path, verdict in done]
    left = stale_regions(segment.shm_directory())
    if not done:
        lines.append("nothing to collect" + (" of ttmem" if left else "") + "\n")
    lines += [f"left to you, for TT-Metal may take it over: {path}; while nothing runs: rm {path}\n" for path in left]
    return "".join(lines)


def stale_regions(directory: Path) -> list[Path]:
    """Return TT-Metal's own regions in which only dead processes are left."""
    from ttmem import region  # so that --help costs nothing

    return [path for path in region.find_regions(directory) if region.read_region(path).state == "stale"]


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
        write(_text(done, grace_ns))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
