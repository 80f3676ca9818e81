"""Which pictures a folder has: one directory per class, perhaps below one for each part; no file is opened."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from xpcnn.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp")
TEST_PARTS = ("val", "valid", "validation", "test")


@dataclass
class Listing:
    """The pictures' paths in the folder, sizes in bytes and classes; from ``split`` on they are for testing."""

    root: Path
    classes: tuple[str, ...]
    split: int | None = None
    ignored: int = 0
    paths: list[str] = field(default_factory=list)
    sizes: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))


def list_folder(root: Path) -> Listing:
    """List a folder without opening a file."""
    if not root.is_dir():
        raise DataError(f"the folder {root} {'is a file' if root.exists() else 'does not exist'}.")
    try:
        directories, ignored = _directories(root)
        parts = _part_names(root, directories)
        listing = Listing(root, tuple(_directories(root / parts[0])[0] if parts else directories))
        listing.ignored = ignored
        if len(listing.classes) < 2:
            where = root / parts[0] if parts else root
            have = "only one directory" if listing.classes else "no directories"
            raise DataError(
                f"{where} has {have} of pictures, but two or more classes are needed: put each class's pictures into a "
                f"directory of its own."
            )
        for number, part in enumerate(parts or ("",)):
            if number:
                listing.split = len(listing.paths)
                _check_same_classes(listing, part)
            for label, name in enumerate(listing.classes):
                _list_class(listing, "/".join(filter(None, (part, name))), label)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be listed: {error.strerror or error}.") from None
    return listing


def _part_names(root: Path, directories: list[str]) -> tuple[str, ...]:
    """Return the names of the training and the test part's directories, or nothing if the folder is not so divided."""
    if "train" not in directories or not _directories(root / "train")[0]:
        return ()
    test = next((name for name in TEST_PARTS if name in directories), None)
    if test is None:
        raise DataError(
            f"{root} has train, but none of {', '.join(TEST_PARTS)} beside it; add one, or name {root / 'train'} to "
            f"have a part of it split off."
        )
    return "train", test


def _directories(directory: Path) -> tuple[list[str], int]:
    """Return the names of the directories in a directory, sorted, and the number of other or hidden things."""
    names, others = [], 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not os.path.isdir(entry.path):  # a link in a circle is none
                others += 1
            else:
                names.append(entry.name)
    return sorted(names), others


def _check_same_classes(listing: Listing, part: str) -> None:
    """Raise unless a part has the training part's classes."""
    here = set(_directories(listing.root / part)[0])
    differing = sorted(here ^ set(listing.classes))
    if differing:
        has, lacks = (part, "train") if differing[0] in here else ("train", part)
        raise DataError(
            f"{listing.root / has} has the class {differing[0]}, which {lacks} has not; both need the same directories."
        )


def _list_class(listing: Listing, place: str, label: int) -> None:
    """Add the pictures in a class's directory and below, sorted by path."""
    found, places = [], [place]
    while places:
        here = places.pop()
        with os.scandir(listing.root / here) as entries:
            for entry in entries:
                path = f"{here}/{entry.name}"
                if entry.name.startswith("."):
                    listing.ignored += 1
                elif entry.is_dir(follow_symlinks=False):
                    places.append(path)
                elif entry.name.lower().endswith(SUFFIXES) and (entry.is_symlink() or entry.is_file()):
                    found.append((path, _size(entry)))
                else:
                    listing.ignored += 1
    if not found:
        raise DataError(f"the class {listing.root / place} has no pictures ({', '.join(SUFFIXES)}); fill or remove it.")
    for path, size in sorted(found):
        listing.paths.append(path)
        listing.sizes.append(size)
        listing.labels.append(label)


def _size(entry: os.DirEntry[str]) -> int:
    """Return a file's size, 0 for a link to nothing (reading it will say so)."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0
