"""Leases: who is at work on what, so that collectors that share a folder do not do the same work.

A lease saves work, it does not decide anything: of two who publish the same folder the rename decides. A lease is a
file that its holder touches again and again; it lapses when the holder is dead, or has not touched it for long.
"""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probeselect.data.owners import Owner
from probeselect.data.sealed import naming

SECONDS = 60.0  # untouched for so long, a lease has lapsed
_BEING_WRITTEN = 2.0  # seconds that a lease may be empty


class Leases:
    """The leases in one folder, taken and held by this process."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self.folder, self.seconds = folder, seconds

    @contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Hold the lease `name` for the length of the block; False when somebody else holds it."""
        path = self.folder / name
        text = f"{Owner.this_process()}\n{secrets.token_hex(8)}\n"
        if not self._take(path, text):
            yield False
            return
        done = threading.Event()
        beat = threading.Thread(target=self._keep_touching, args=(path, text, done), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            done.set()
            if _text_of(path) == text:
                path.unlink(missing_ok=True)
            beat.join()

    def _take(self, path: Path, text: str) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        if _create(path, text):
            return True
        found = _text_of(path)
        if found is None or not self._has_lapsed(path, found):
            return found is None and _create(path, text)
        aside = self.folder / f".lapsed.{Owner.this_process()}.{secrets.token_hex(4)}"
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        if _text_of(aside) != found:  # somebody took it anew between our look and our rename: give it back
            os.rename(aside, path)
            return False
        aside.unlink(missing_ok=True)
        return _create(path, text)

    def _has_lapsed(self, path: Path, text: str) -> bool:
        owner = Owner.parse(text.partition("\n")[0])
        if owner is not None and owner.is_dead():
            return True
        try:
            age = self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return False
        return age > (self.seconds if owner is not None else _BEING_WRITTEN)

    def _now(self) -> float:
        """The file system's own clock: that of another machine may go wrong."""
        mark = self.folder / f".clock.{Owner.this_process()}.{secrets.token_hex(4)}"
        mark.touch()
        try:
            return mark.stat().st_mtime
        finally:
            mark.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what the dead have left, and the folder when nothing else is in it."""
        for path in self.folder.glob("*"):
            named = path.name.split(".")[2] if path.name.startswith(".") else (_text_of(path) or "").partition("\n")[0]
            owner = Owner.parse(named)
            if owner is not None and owner.is_dead():
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _keep_touching(self, path: Path, text: str, done: threading.Event) -> None:
        while not done.wait(self.seconds / 6):
            if _text_of(path) == text:
                with suppress(FileNotFoundError):
                    os.utime(path)


def _create(path: Path, text: str) -> bool:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with naming(path):
            os.write(file, text.encode())
    except BaseException:  # an empty lease would be waited for
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    return True


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
