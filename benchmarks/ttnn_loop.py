"""What following a real ttnn costs a loop of cached ``ttnn.add``, on a mock cluster: ``python -m benchmarks.ttnn_loop``.

Loops with and without alternate in one process. Set up like the tests in ``tests/ttnn`` (see the README there).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import machine

KIT = Path(__file__).parent.parent / "tests" / "ttnn"
RESULT = Path(__file__).parent / "results" / "ttnn_loop.json"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ttnn_loop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="loops of 1,000 operations each, of either kind")
    parser.add_argument("--versions", default="0.77.0,0.81.1", help="of ttnn")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(KIT))
    import kit

    found = []
    for version in args.versions.split(","):
        for what in ("hook", "track"):
            with tempfile.TemporaryDirectory() as work:
                try:
                    there = kit.environment(version, Path(work))
                except kit.UnavailableError as error:
                    print(f"left out: {error}", file=sys.stderr)
                    continue
                answer = there.run(Path(work), "n150", "scenes.py", "overhead", what, str(args.rounds))
            found.append({"ttnn": version, "what": what, **answer})
            print(
                f"ttnn {version}, {what}: {answer['off_us']:.1f} us without, {answer['on_us']:.1f} us with; "
                f"ratio {answer['ratio']:.3f} (median of {answer['rounds']}), of the least {answer['least_ratio']:.3f}"
            )
    args.out.write_text(json.dumps({**machine.describe(("cython",)), "series": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
