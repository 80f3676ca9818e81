"""A long list's predictions on their way to a file: kept part by part, so that work that is killed goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from xpcnn.cli.forms import Form, Result
from xpcnn.errors import XpcnnError
from xpcnn.files import check_writable, held, leftovers, write_whole

SUFFIX = ".parts"  # of the folder beside the output
STATE, MERGED = "work.json", "merged"  # in it
MOST, LEAST = 512, 64  # pictures in a part, and parts that there are at least where there are as many pictures
WORDS = {  # what may differ from the work that a folder holds
    "model": "another model", "list": "another list of pictures", "top": "another --top",
    "polarity": "another --polarity", "precision": "another --precision",
}  # fmt: skip


class Parts:
    """The parts of a work, each written whole into a folder beside the output, by whichever process makes it.

    How the list is cut depends on nothing but its length, so that any number of processes can go on with the work.

    Parameters
    ----------
    output : path
        The file that the parts are merged into; ``OUTPUT.parts`` is their folder.
    names : sequence of str
        The pictures.
    settings : dict
        Everything else that the results depend on, in JSON's types: a folder that holds other work is refused.

    Attributes
    ----------
    pictures : int
        How many there are.
    work : dict
        What is compared: the settings, how the list is cut, and its digest.
    """

    def __init__(self, output: str | Path, names: Sequence[str], settings: dict[str, Any]) -> None:
        self.output = Path(output)
        self.directory = self.output.with_name(self.output.name + SUFFIX)
        self.pictures = len(names)
        self._names = names
        self._size = min(MOST, -(-self.pictures // LEAST))
        self.work = settings | {"list": _digest_of_list(names), "pictures": self.pictures, "part": self._size}
        self._key = _digest(json.dumps(self.work, sort_keys=True).encode())
        self._lock: int | None = None

    def __len__(self) -> int:
        return -(-self.pictures // self._size) if self._names else 0

    def names(self, number: int) -> Sequence[str]:
        """Return a part's pictures."""
        return self._names[number * self._size : (number + 1) * self._size]

    def begin(self) -> list[int]:
        """Make the folder, or take up one that is there, and return the numbers of the parts that are to be made.

        Raises
        ------
        XpcnnError
            When there is an output already, another process works on it, or the folder holds something else.
        """
        check_output(self.output)
        self.directory.mkdir(exist_ok=True)
        try:
            self._lock = held(self.directory)
        except BlockingIOError:
            raise XpcnnError(f"another process is writing {self.output}; wait until it ends, or end it.") from None
        for left in leftovers(self.directory, [STATE]) + leftovers(self.output.parent, [self.output.name]):
            left.unlink(missing_ok=True)
        if any(self.directory.iterdir()):
            self._compare()
        else:
            self._note()
        if self._placed() is not None:
            return []
        if self.output.exists():
            raise XpcnnError(f"{self.output} exists; choose another --output.")
        return [number for number in range(len(self)) if self.read(number) is None]

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def visible(self) -> bool:
        """Whether the folder that one process has begun is the one seen here."""
        state = self._state()
        return state is not None and state["work"] == self.work

    def done(self) -> int:
        """Return how many pictures are in the parts that are there."""
        count = sum(entry.name.startswith("part-") for entry in os.scandir(self.directory))
        return min(count * self._size, self.pictures)

    def write(self, number: int, results: list[Result], faults: list[str]) -> None:
        """Write a part: each of its pictures has a result or a fault."""
        body = json.dumps({"results": results, "faults": faults}).encode()
        write_whole(self._path(number), f"{_digest(self._mark(number), body)}\n".encode() + body)

    def read(self, number: int) -> tuple[list[Result], list[str]] | None:
        """Return a part's results and faults, or None where it is not there or damaged."""
        try:
            head, _, body = self._path(number).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if head != _digest(self._mark(number), body).encode():
            return None
        found = json.loads(body)
        return found["results"], found["faults"]

    def finish(self, form: Form, top: int) -> list[str]:
        """Write the output whole, remove the folder and return all faults, in the order of the list.

        Parameters
        ----------
        form : Form
            From `xpcnn.cli.forms`.
        top : int
            How many classes a result has.

        Raises
        ------
        XpcnnError
            When a part is not there.
        """
        faults = self._placed()
        if faults is None:
            faults = []
            with open(self.directory / MERGED, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.writelines(form(self._results(faults), top))
                file.flush()
                os.fsync(file.fileno())
            if self.output.exists():
                raise XpcnnError(f"{self.output} was made by something else meanwhile; move it away and go on.")
            self._note(faults)  # so that the next one knows, should this one end before the folder is gone
            os.replace(self.directory / MERGED, self.output)
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name == STATE):
            path.unlink()
        self.directory.rmdir()
        return faults

    def _results(self, faults: list[str]) -> Iterator[list[Result]]:
        """Yield all parts' results, and note their faults."""
        for number in range(len(self)):
            part = self.read(number)
            if part is None:
                raise XpcnnError(f"{self._path(number)} is missing or damaged; give the same command again to go on.")
            faults += part[1]
            yield part[0]

    def _compare(self) -> None:
        """Raise if the folder holds anything but this work."""
        state = self._state()
        if state is None:
            raise XpcnnError(f"{self.directory} holds no work of predict's; remove it, or choose another --output.")
        names = [name for name, value in self.work.items() if state["work"].get(name) != value]
        if names:
            differ = WORDS.get(names[0], "other work")
            raise XpcnnError(
                f"{self.directory} holds the beginning of {differ}: go on as it was begun, remove it, or choose "
                "another --output."
            )

    def _state(self) -> dict[str, Any] | None:
        """Return what is noted in the folder, or None."""
        try:
            state = json.loads((self.directory / STATE).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        valid = isinstance(state, dict) and isinstance(state.get("work"), dict) and "faults" in state
        return state if valid else None

    def _note(self, faults: list[str] | None = None) -> None:
        """Note whose folder it is and, once all parts are merged, their faults."""
        write_whole(self.directory / STATE, json.dumps({"work": self.work, "faults": faults}, indent=1).encode())

    def _placed(self) -> list[str] | None:
        """Return the faults of a work whose output is in its place, so that only the folder is left to be removed."""
        state = self._state()
        is_merged = (self.directory / MERGED).exists()  # then what is in the output's place is something else
        return state["faults"] if state is not None and self.output.exists() and not is_merged else None

    def _path(self, number: int) -> Path:
        """Return a part's file."""
        return self.directory / f"part-{number:06}"

    def _mark(self, number: int) -> bytes:
        """Return what makes a part one of this work's and of this number."""
        return f"{self._key} {number}\n".encode()


def check_output(path: str | Path) -> None:
    """Raise if a file cannot be written, or is there and is not what a killed process has just put in its place."""
    path = Path(path)
    directory = path.with_name(path.name + SUFFIX)
    check_writable(path)
    if path.exists() and not (directory.is_dir() and any(directory.iterdir())):
        raise XpcnnError(f"{path} exists; choose another --output.")


def _digest_of_list(names: Sequence[str]) -> str:
    """Return the digest of files' names, and of where they are looked for unless all say it."""
    found = [] if all(map(os.path.isabs, names)) else [os.getcwd()]
    return _digest(*(os.fsencode(name) + b"\0" for name in (*found, *names)))


def _digest(*pieces: bytes) -> str:
    """Return the BLAKE2b digest of bytes."""
    state = blake2b(digest_size=16)
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()
