"""Tell how far the circular buffers of each program are from the lowest L1 buffer, and explain every clash.

SOURCE is a graph capture or report (each dispatch is judged at its moment), a dump of ttmem-dump --json, a recording
(its last moment, or --at), or - for stdin; without it the devices of this host are judged as they are now. What is
piped in may also be a log: TT-Metal's own error texts in it (clash with L1 buffers, beyond max L1 size, out of memory,
...) are found and explained, with the dump or recording that is named as second SOURCE, else with the devices of this
host.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ttmem.clash import Finding, judge_capture, judge_device, live_buffers
from ttmem.cli import EXIT_CONDITION, EXIT_DONE, EXIT_UNREADABLE
from ttmem.cli.screens import add_no_color, screen_of, write
from ttmem.cli.sources import (
    NothingError,
    UsageError,
    add_at,
    add_device,
    add_geometry,
    dump_of_file,
    geometry_of,
    live_devices,
    piped_stdin,
    run,
    select_chips,
    select_devices,
    verb_parser,
)
from ttmem.dumps import Dump, DumpError, cb_base_of, dump_of_text, kind_of_file, read_live
from ttmem.errors import TtmemError
from ttmem.thrown import MAX_TEXT, Thrown, explain, finding_of, parse_thrown
from ttmem.views.explain import render_findings
from ttmem.views.text import Screen, wrap

_EPILOG = """\
exit codes: 0 no clash; 1 nothing to read; 2 wrong usage; 3 a clash was found; 4 unreadable, or not to its end

examples:
  python -m ttmem explain capture.json            every dispatch of a capture
  python -m ttmem explain -d 0                    would a cached program of device 0 clash now?
  python my_model.py 2>&1 | python -m ttmem explain -
"""
Tell = Callable[[str], None]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = verb_parser("explain", __doc__, _EPILOG)
    add = parser.add_argument
    add("source", nargs="*", metavar="SOURCE", help="a capture, a dump, a recording, or - for stdin")
    add_device(parser)
    add("--json", action="store_true", help="clashes and programs as JSON")
    add("--all", action="store_true", help="list all programs, not only those with the least room")
    add_no_color(parser)
    add_at(parser)
    add_geometry(parser)
    return parser


def _at_hand(paths: Sequence[str], wanted: Sequence[str] | None, tell: Tell) -> Dump:
    """Return the devices that an error text is explained with; none is fine."""
    if paths:
        return dump_of_file(paths[0], kind_of_file(paths[0]), wanted, tell, buffers=True)
    try:
        dump = read_live()
        return Dump(select_devices(dump, wanted, tell)) if dump.devices else dump
    except (TtmemError, OSError) as error:
        tell(f"explained without the devices of this host: {error}")
        return Dump([])


def _texts(errors: Sequence[Thrown], dump: Dump, args: argparse.Namespace) -> int:
    """Print what was thrown, explained."""
    given = geometry_of(args).l1_cb_base
    base, buffers, device = given, (), None
    # With several devices it is not known which of them threw.
    if len(dump.devices) == 1:
        (device,) = dump.devices
        base = cb_base_of(device) if given is None else given
        buffers = tuple(live_buffers(device.get("buffers") or ()))  # type: ignore[assignment]
    explained = [(error, explain(error, base=base, buffers=buffers, device=device)) for error in errors]
    clashes = [finding_of(error, buffers) for error in errors if error.kind == "clash"]
    if args.json:
        whole = {
            "clashes": [finding.to_clash() for finding in clashes],
            "programs": [],
            "errors": [
                {"kind": error.kind, **error.figures, "count": error.count, "explanation": lines}
                for error, lines in explained
            ],
        }
        write(json.dumps(whole, indent=2) + "\n")
    else:
        write("".join(_text(error, lines, screen_of(sys.stdout, no_color=args.no_color)) for error, lines in explained))
    return EXIT_CONDITION if clashes else EXIT_DONE


def _text(error: Thrown, lines: Sequence[str], screen: Screen) -> str:
    often = f" ({error.count} times)" if error.count > 1 else ""
    out = wrap(f"{error.kind.replace('_', ' ').upper()}{often}: {lines[0]}.", screen, rest="  ")
    for line in lines[1:]:
        out += wrap(line[:1].upper() + line[1:] + ".", screen, first="  - ", rest="    ")
    return "\n".join(out) + "\n"


def _judge(dump: Dump, tell: Tell) -> list[Finding]:
    findings = []
    judged = 0
    for device in dump.devices:
        if device.get("cores") is None or device.get("programs") is None:
            tell(
                f"device {device.get('device_id')} tells neither cores nor programs (source {device.get('source')}): "
                "nothing can be judged; publish it with ttmem.publish, or explain a capture"
            )
            continue
        judged += 1
        findings += judge_device(device, live_buffers(device.get("buffers") or ()))
        omitted = device.get("programs_omitted")
        if omitted:
            tell(f"device {device.get('device_id')} does not list {omitted} of its programs: they are not judged")
    if dump.devices and not judged:
        raise NothingError("no device tells enough to be judged")
    return sorted(findings, key=lambda f: (f.headroom_bytes is None, f.headroom_bytes or 0))


def _body(args: argparse.Namespace, tell: Tell) -> int:
    geometry = geometry_of(args)
    sources = list(args.source)
    if len(sources) > 2 or (len(sources) == 2 and sources[0] != "-"):
        raise UsageError("expected one SOURCE, or - and a dump that an error text is explained with")
    text = None
    complete = True
    if sources[:1] == ["-"] or (not sources and not args.device and piped_stdin()):
        stdin = getattr(sys.stdin, "buffer", None)
        text = sys.stdin.read() if stdin is None else stdin.read().decode("utf-8", "replace")
    if text is not None and (text.strip() or sources):
        errors = parse_thrown(text)
        if errors:
            return _texts(errors, _at_hand(sources[1:], args.device, tell), args)
        try:
            dump = dump_of_text(text, "stdin")
        except DumpError:
            raise NothingError(
                "stdin holds no error text of TT-Metal that ttmem knows, and no dump: expected for instance "
                f"'Statically allocated circular buffers ... clash with L1 buffers' in its last {MAX_TEXT} characters"
            ) from None
        findings = _judge(Dump(select_devices(dump, args.device, tell, "stdin")), tell)
    elif not sources:
        findings = _judge(live_devices(args.device, tell), tell)
    else:
        kind = kind_of_file(sources[0])
        if kind == "capture":
            judgement = judge_capture(sources[0], geometry=geometry)
            complete = judgement.complete
            for notice in judgement.notices:
                tell(notice)
            chips = select_chips(
                (f.device_id for f in judgement.findings if f.device_id is not None), args.device, tell
            )
            findings = [f for f in judgement.findings if f.device_id in chips]
        else:
            dump = dump_of_file(sources[0], kind, args.device, tell, args.at)
            if kind == "recording" and not any("buffers" in device for device in dump.devices):
                tell("the live buffers of this moment are not recorded: those that clash cannot be named")
            findings = _judge(dump, tell)
    code = _show(findings, args)
    return code if complete or code != EXIT_DONE else EXIT_UNREADABLE


def _show(findings: Sequence[Finding], args: argparse.Namespace) -> int:
    clashing = [finding for finding in findings if finding.clashes]
    if args.json:
        whole: dict[str, Any] = {
            "clashes": [finding.to_clash() for finding in clashing],
            "programs": [finding.to_dict() for finding in findings],
            "too_large": [finding.to_dict() for finding in findings if finding.too_large],
        }
        write(json.dumps(whole, indent=2) + "\n")
    else:
        write(render_findings(findings, screen_of(sys.stdout, no_color=args.no_color), every=args.all))
    return EXIT_CONDITION if clashing else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code.

    Args:
        argv: the arguments; None takes the process's.
    """
    return run(build_parser(), _body, argv, empty={"clashes": [], "programs": []})
