"""What the kernel of this host tells of a pid that another process wrote down."""

from __future__ import annotations

import errno
import os
import pwd
import time
from pathlib import Path

_INITIAL_NAMESPACE = {"pid": 4026531836, "ipc": 4026531839}
_KERNEL_THREAD_FLAG = 0x00200000
_CLOCK_SLACK_NS = 2_000_000_000


class ProcessTable:
    """What this host's kernel tells of the pids that stand in regions.

    A region holds pids only, so four questions stay open after ``kill(pid, 0)``, and this is how they are answered:

    - *Is it a corpse?* A zombie, and a number that is now a thread of another process, are dead.
    - *Was the pid given out again?* Yes if the process there started after the slot last changed and does not have the
      region mapped; where its mappings cannot be read, its name decides. A name alone proves nothing, for programs
      rename themselves.
    - *Is the pid from another namespace?* Yes if a process of an inner namespace has that pid and name, and none here
      does; or if it is a kernel thread here. Any other living process is taken for the slot's, as TT-Metal itself does:
      a container's dead process whose pid lives on the host is not found out. In a container nothing is taken for
      granted: a living process must have the slot's name or the region mapped, and a missing one counts as dead only
      where /dev/shm is the container's own and the pid is one that the container has given out.
    - *Is it known anyway?* A process that maps the region, or that the Tenstorrent driver lists, is alive.

    Args:
        proc: where procfs is mounted.
        driver: the driver's own directory in procfs.

    The scan for inner namespaces is made once and kept: make a new table for each reading of the host.
    """

    def __init__(self, proc: str | Path = "/proc", driver: str | Path = "/proc/driver/tenstorrent") -> None:
        self._proc = Path(proc)
        self._driver = Path(driver)
        self._nested: dict[int, list[tuple[int, str]]] | None = None
        self._driver_pids: set[int] | None = None

    def judge(self, pid: int, name: str | None, updated_ns: int | None, file: os.stat_result) -> tuple[str, str | None]:
        """Return the state (``live``, ``stale`` or ``unknown``) and the user of the process in a slot.

        Args:
            pid: positive, as the slot has it.
            name: the slot's name, if it has one.
            updated_ns: when the slot last changed, if known.
            file: of the region.
        """
        if not self._exists(pid):
            return self._absent(pid, name, updated_ns, file)
        own_namespace = self._in_initial("pid")
        fields = self._stat(pid)
        if fields is None:
            # procfs hides it (hidepid, another mount): all that is known is that the pid is taken.
            return ("live" if own_namespace else "unknown"), None
        comm, process_state, threads, flags, start_ns = fields
        status = self._status(pid)
        if (process_state in "ZX" and threads <= 1) or status.get("Tgid", str(pid)) != str(pid):
            return self._absent(pid, name, updated_ns, file)
        user = _user_of(status)
        same_name = name is not None and comm == name
        started_later = updated_ns is not None and _boot_ns() <= updated_ns < start_ns - _CLOCK_SLACK_NS
        if same_name and not started_later:
            return "live", user
        mapped = self._maps(pid, file)
        if mapped or pid in self._drivers_pids():
            return "live", user
        if started_later:
            if mapped is None and same_name:
                return "live", user
            return self._absent(pid, name, updated_ns, file)
        inner = self._inner(pid, name, file)
        if inner is not None:
            return inner
        if flags & _KERNEL_THREAD_FLAG or not own_namespace:
            return "unknown", None
        return "live", user

    def _inner(self, pid: int, name: str | None, file: os.stat_result) -> tuple[str, str | None] | None:
        """Judge by the processes of inner namespaces; None if none of them has that pid and name."""
        outer_pids = [outer for outer, outer_name in self._inner_processes().get(pid, ()) if outer_name == name]
        for outer in outer_pids:
            if self._maps(outer, file):
                return "live", _user_of(self._status(outer))
        return ("unknown", None) if outer_pids else None

    def _absent(
        self, pid: int, name: str | None, updated_ns: int | None, file: os.stat_result
    ) -> tuple[str, str | None]:
        """Judge a pid that the slot's process has not got here: dead, or of another namespace."""
        inner = self._inner(pid, name, file)
        if inner is not None:
            return inner
        if self._in_initial("pid"):
            return "stale", None
        if self._in_initial("ipc") or pid > self._last_pid():
            return "unknown", None
        first = self._stat(1)
        if first is None or (updated_ns is not None and updated_ns < first[4]):
            return "unknown", None
        try:
            own = os.stat("/dev/shm").st_dev == file.st_dev
        except OSError:
            own = False
        return ("stale" if own else "unknown"), None

    @staticmethod
    def _exists(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except OSError as error:
            return error.errno != errno.ESRCH
        return True

    def _in_initial(self, kind: str) -> bool:
        try:
            return os.readlink(self._proc / "self" / "ns" / kind) == f"{kind}:[{_INITIAL_NAMESPACE[kind]}]"
        except OSError:
            return False

    def _stat(self, pid: int) -> tuple[str, str, int, int, int] | None:
        """Return comm, state, number of threads, flags and start (CLOCK_REALTIME, ns) of a process, or None."""
        text = _read_text(self._proc / str(pid) / "stat")
        comm, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        try:
            start = int(fields[19]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK")) + _boot_ns()
            return printable(comm), fields[0], int(fields[17]), int(fields[6]), start
        except (IndexError, ValueError):
            return None

    def _status(self, pid: int | str) -> dict[str, str]:
        lines = _read_text(self._proc / str(pid) / "status").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def _maps(self, pid: int, file: os.stat_result) -> bool | None:
        """Tell whether the process maps the region's file; None if that cannot be seen."""
        device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
        try:
            with open(self._proc / str(pid) / "maps", encoding="utf-8", errors="replace") as maps:
                return any(line.split(maxsplit=5)[3:5] == [device, str(file.st_ino)] for line in maps)
        except OSError:
            return None

    def _last_pid(self) -> int:
        """Return the pid that was given out last in the namespace of this procfs."""
        try:
            return int(_read_text(self._proc / "loadavg").split()[-1])
        except (IndexError, ValueError):
            return 0

    def _drivers_pids(self) -> set[int]:
        if self._driver_pids is None:
            self._driver_pids = set()
            try:
                for device in os.listdir(self._driver):
                    words = _read_text(self._driver / device / "pids").split()
                    self._driver_pids.update(int(word) for word in words if word.isdecimal())
            except OSError:
                pass
        return self._driver_pids

    def _inner_processes(self) -> dict[int, list[tuple[int, str]]]:
        """Return (pid here, name) of every process of an inner pid namespace, by its pid there."""
        if self._nested is None:
            self._nested = {}
            try:
                pids = [entry for entry in os.listdir(self._proc) if entry.isdecimal()]
            except OSError:
                pids = []
            for entry in pids:
                status = self._status(entry)
                numbers = status.get("NSpid", "").split()
                if len(numbers) > 1 and numbers[-1].isdecimal() and not status.get("State", "").startswith("Z"):
                    found = self._nested.setdefault(int(numbers[-1]), [])
                    found.append((int(entry), printable(status.get("Name", ""))))
        return self._nested


def user_name(uid: int) -> str:
    """Return the name of a user, or the number as text if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _user_of(status: dict[str, str]) -> str | None:
    uids = status.get("Uid", "").split()
    return user_name(int(uids[0])) if uids and uids[0].isdecimal() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def printable(text: str) -> str:
    """Return ``text`` with every letter that does not print replaced."""
    # A name is shown on terminals, and whoever wrote the region chose it.
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _boot_ns() -> int:
    """Return when this host started, CLOCK_REALTIME; a region older than that is in no /dev/shm."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
