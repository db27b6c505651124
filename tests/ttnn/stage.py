"""A /dev/shm of their own for several processes: ttnn ones, and those that look at them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from kit import HERE, ROOT, Environment, namespace_command


class Player:
    """A process that runs ``actor.py``; see there what it may be asked."""

    def __init__(self, process: subprocess.Popen[str], words: Path) -> None:
        self.process = process
        self.words = words

    def ask(self, command: str, *arguments: object) -> dict[str, Any]:
        """Have it do something, and return its answer.

        Raises:
            AssertionError: it ended instead.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([command, *arguments]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                answer: dict[str, Any] = json.loads(line[7:])
                return answer
        raise AssertionError(
            f"{command} {arguments}: it ended with {self.process.wait()}\n{self.words.read_text()[-3000:]}"
        )

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> int:
        """Have it end by itself, and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(60)


class Stage:
    """A mount namespace with an empty /dev/shm, in which a test starts processes; a context manager.

    Args:
        environment: the ttnn of the processes.
        folder: a scratch folder.
        cluster: which of ``clusters.CLUSTERS`` they see.
    """

    def __init__(self, environment: Environment, folder: Path, cluster: str) -> None:
        self.environment = environment
        self.folder = folder
        self.cluster = cluster
        self.players: list[Player] = []

    def __enter__(self) -> "Stage":
        # The namespace lives as long as somebody is in it.
        command = [*namespace_command(), "sh", "-c", "mount -t tmpfs none /dev/shm && echo up && exec cat"]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for player in self.players:
            player.kill()
            for stream in (player.process.stdin, player.process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._holder.kill()
        self._holder.communicate()

    def _inside(self, *command: str | Path) -> list[str]:
        user = ("-U", "--preserve-credentials") if "-r" in namespace_command() else ()
        return ["nsenter", *user, "-m", "-t", str(self._holder.pid), "--wd=.", *map(str, command)]

    def start(self, *, slow: bool = False, knows_ttmem: bool = False) -> Player:
        """Start a ttnn process.

        Args:
            slow: whether it dispatches slowly.
            knows_ttmem: whether it can import ttmem at all.
        """
        variables = self.environment.variables(self.folder, self.cluster, slow=slow, knows_ttmem=knows_ttmem)
        words = self.folder / f"player-{len(self.players)}.txt"
        with words.open("w") as stderr:
            process = subprocess.Popen(
                self._inside(self.environment.venv / "bin" / "python", HERE / "actor.py"),
                cwd=self.folder,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        player = Player(process, words)
        self.players.append(player)
        return player

    def ttmem(self, verb: str, *arguments: str) -> tuple[int, Any]:
        """Run a command of ttmem as this test's own Python has it, and return its exit code and its JSON."""
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        for name in ("TTMEM_SHM_DIR", "TTMEM_DISABLE", "TTMEM_NAMESPACE"):
            variables.pop(name, None)
        done = subprocess.run(
            self._inside(sys.executable, "-m", "ttmem", verb, *arguments, "--json"),
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def devices(self) -> dict[int, dict[str, Any]]:
        """Return what ``ttmem-dump`` shows, by device."""
        code, found = self.ttmem("dump")
        assert code == 0
        return {device["device_id"]: device for device in found["devices"]}
