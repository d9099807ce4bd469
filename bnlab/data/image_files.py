"""What lies in a folder of images: splits, classes and files, and what is passed over, with the reason.

`path/CLASS/...`, or `path/train/CLASS/...` with such a folder for validation, for testing, or both. Images at any depth
below the folder of a class are of that class. Links to folders are not followed, so a loop of them ends at once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bnlab.data.decode import printable
from bnlab.errors import ConfigError, DataError, did_you_mean

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm"}
)
SPLITS = {"train": "train(ing)?", "valid": "val(id(ation)?)?", "test": "test(ing)?"}
LEFT_BEHIND = frozenset(  # by systems and storage servers; some hold thumbnails
    {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
NAMED = 10  # faults, classes, or kinds of files that a message names; then a count
LONGEST_SUFFIX = 10  # characters; what follows the last dot of a longer one is a part of the name


@dataclass(frozen=True)
class Listing:
    """The image files below `root` in a fixed order, split by split; a label is a place in `classes`."""

    root: str
    classes: tuple[str, ...]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # by split, in the order of `paths`
    passed_over: dict[str, int] = field(default_factory=dict)  # by reason
    doubts: list[str] = field(default_factory=list)  # what is odd, though it can be used


def list_images(path: str) -> Listing:
    """Find splits, classes and images. Errors: ConfigError; DataError naming everything that cannot be used."""
    if not os.path.isdir(path):
        raise ConfigError(f"data.path={printable(path)}: no such folder")
    tree = _Tree.read(os.path.realpath(path))
    parts = _parts(path, tree)
    tree.depth = 1 if parts["train"] == "" else 2
    faults: list[str] = []
    folders = {split: _class_folders(part, tree, faults) for split, part in parts.items()}
    classes = sorted(folders["train"])
    if len(classes) < 2 and not faults:
        raise DataError(_too_few(path, parts["train"], folders["train"], tree))
    listing = Listing(tree.root, tuple(map(printable, classes)))
    of_class = tree.by_class()
    for split, part in parts.items():
        images = {name: of_class.get(folder, []) for name, folder in folders[split].items()}
        for label, name in enumerate(classes):
            listing.paths.extend(images.get(name, []))
            listing.labels.extend([label] * len(images.get(name, [])))
        listing.sizes[split] = len(listing.paths) - sum(listing.sizes.values())
        empty = [name for name in classes if not images.get(name)]
        if split == "train":
            faults += tree.empty([folders[split][name] for name in empty])
            continue
        for name in (name for name in images if images[name] and name not in classes):
            hint = did_you_mean(printable(name), listing.classes)
            faults.append(f"{printable(folders[split][name])}: no such class for training{hint}")
        if len(empty) == len(classes):
            faults.append(f"{printable(part)}: no images in folders of classes")
        elif empty:
            named = shortened([printable(name) for name in empty])
            listing.doubts.append(f"{printable(part)} has no images of {len(empty)} of {len(classes)} classes: {named}")
    used = {folder for part in folders.values() for folder in part.values()}
    faults += [f"{printable(name)}: {why}" for name, why in sorted(tree.faults.items()) if tree.class_of(name) in used]
    if faults:
        refuse(tree.root, faults)
    listing.doubts.extend(_differ_in_capitals(classes))
    passed = Counter(tree.passed.values())
    passed["outside the class folders"] = sum(tree.class_of(name) not in used for name in (*tree.images, *tree.faults))
    listing.passed_over.update(_largest(passed))
    return listing


def refuse(root: str, faults: Sequence[str]) -> None:
    """Raise the DataError that names what is wrong below `root`."""
    more = [f"... and {len(faults) - NAMED:,} more"] if len(faults) > NAMED else []
    head = f"folder: {printable(root)} cannot be used, faults found: {len(faults):,}; mend them:"
    raise DataError("\n".join([head, *faults[:NAMED], *more]))


def shortened(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


@dataclass
class _Tree:
    """Everything below a folder, by its path relative to that."""

    root: str
    depth: int = 1  # of the folders of classes
    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders
    faults: dict[str, str] = field(default_factory=dict)  # of what should be an image
    passed: dict[str, str] = field(default_factory=dict)  # over, with the reason

    @classmethod
    def read(cls, root: str) -> _Tree:
        """List what lies below `root`. Errors: DataError where a folder cannot be read."""
        tree, waiting = cls(root), [""]
        try:
            while waiting:
                folder = waiting.pop()
                with os.scandir(os.path.join(root, folder) if folder else root) as entries:
                    for entry in entries:
                        path = f"{folder}/{entry.name}" if folder else entry.name
                        if tree._is_folder(entry, path):
                            waiting.append(path)
        except OSError as error:
            raise DataError(f"data.path: cannot read {printable(str(error.filename))}: {error.strerror}") from error
        tree.images.sort()
        tree.folders.sort()
        return tree

    def _is_folder(self, entry: os.DirEntry[str], path: str) -> bool:
        """Put an entry where it belongs, and return whether it is a folder to look into."""
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            self.passed[path] = "hidden"
        elif entry.is_dir(follow_symlinks=False):
            if entry.name.casefold() not in LEFT_BEHIND:
                self.folders.append(path)
                return True
            self.passed[path] = f"folder {entry.name}"
        elif entry.is_symlink() and os.path.isdir(entry.path):
            self.links.append(path)
            self.passed[path] = "link to a folder"
        elif suffix not in SUFFIXES:
            self.passed[path] = printable(suffix) if 1 < len(suffix) <= LONGEST_SUFFIX else "without a suffix"
        elif fault := _file_fault(entry, self.root):
            self.faults[path] = fault
        else:
            self.images.append(path)
        return False

    def class_of(self, path: str) -> str:
        """Return the folder that would be the class of what lies at `path`."""
        return "/".join(path.split("/", self.depth)[: self.depth])

    def by_class(self) -> Mapping[str, list[str]]:
        """Return the images by the folder that would be their class."""
        images = defaultdict(list)
        for image in self.images:
            images[self.class_of(image)].append(image)
        return images

    def empty(self, folders: Sequence[str]) -> Iterator[str]:
        """Say of each class without images what lies there instead; nothing where its images are faults themselves."""
        broken = {self.class_of(path) for path in self.faults}
        passed: dict[str, Counter[str]] = defaultdict(Counter)
        for path, why in self.passed.items() if folders else ():
            passed[self.class_of(path)][why] += 1
        for folder in folders:
            if folder not in broken:
                there = ", ".join(f"{count:,} {why}" for why, count in _largest(passed[folder]).items())
                yield f"{printable(folder)}: no images in this class{f', but {there}' if there else ''}"


def _file_fault(file: os.DirEntry[str], root: str) -> str | None:
    if file.is_symlink():
        if _outside(file.path, root):
            return "a link that leads out of the folder"
        return None if os.path.isfile(file.path) else "a link to nothing"
    return None if file.is_file() else "not a file"


def _outside(path: str, root: str) -> bool:
    real = os.path.realpath(path)
    return os.path.commonpath([real, root]) != root


def _split_of(name: str) -> str | None:
    """Return the split that a folder is named after: `Train`, `val`, `test_set`."""
    return next((s for s, word in SPLITS.items() if re.fullmatch(f"({word})([ _-]?set)?", name, re.IGNORECASE)), None)


def _parts(path: str, tree: _Tree) -> dict[str, str]:
    """Return the folder of each split; "" for training alone where the classes lie in `path` itself.

    A folder named after a split is one when its images lie in folders of their own, and a class when they do not.
    Errors: DataError where that does not decide.
    """
    holding = {os.path.dirname(image) for image in tree.images}
    deep = {folder.split("/")[0] for folder in holding if "/" in folder}
    top = [folder for folder in tree.folders if "/" not in folder]
    named = {folder: split for folder in top if (split := _split_of(folder))}
    others = [folder for folder in top if folder not in named and folder in holding | deep]
    if not named or (others and deep.isdisjoint(named)):
        return {"train": ""}
    parts = {split: folder for folder, split in named.items()}
    told = f"data.path={printable(path)}: {shortened([printable(name) for name in named])}"
    if others and (len(parts) == 1 or not holding.isdisjoint(named)):
        raise DataError(
            f"{told}: a split by the name, but {shortened([printable(name) for name in others])} "
            f"{'lies' if len(others) == 1 else 'lie'} beside it\n"
            "if it is a class, rename it, to train_ for example; if it is a split, move the others out of the folder"
        )
    if len(parts) < len(named):
        raise DataError(f"{told}: two folders for one split\nkeep one of them there")
    if "train" not in parts:
        if link := next((link for link in tree.links if "/" not in link and _split_of(link) == "train"), None):
            raise DataError(
                f"{told}: {printable(link)} is a link to a folder, which is not followed\nmove that folder there"
            )
        raise DataError(
            f"{told}: a split by the name, but there is no train folder\n"
            "name the folder with the training images train; if these are classes, rename them, to test_ for example"
        )
    return {split: parts[split] for split in SPLITS if split in parts}


def _class_folders(part: str, tree: _Tree, faults: list[str]) -> dict[str, str]:
    """Return the folders of classes in that of a split, by name: composed, since a Mac writes accents apart."""
    classes: dict[str, str] = {}
    for folder in tree.folders:
        if os.path.dirname(folder) == part:
            name = unicodedata.normalize("NFC", os.path.basename(folder))
            if name in classes:
                faults.append(f"{printable(folder)}: there twice, its accents written in two ways; make it one folder")
            classes[name] = folder
    for link in tree.links:
        if os.path.dirname(link) == part or (part and _split_of(link)):
            away = _outside(os.path.join(tree.root, link), tree.root)
            why = "a link that leads out of the folder" if away else "a link to a folder, which is not followed"
            faults.append(f"{printable(link)}: {why}")
    return classes


def _too_few(path: str, part: str, folders: Mapping[str, str], tree: _Tree) -> str:
    """Return the message for a folder of one class or none, which often is the one around that of the classes."""
    place = printable(os.path.join(path, part).rstrip(os.sep))
    told = f"data.path={printable(path)}: {len(folders)} class folders in {place}"
    told += f"; at least 2 are needed, as {place}/CLASS/*.jpg"
    for folder in folders.values():
        if len({os.path.dirname(image) for image in tree.images if image.startswith(f"{folder}/")} - {folder}) > 1:
            told += (
                f"\nif the classes lie in {printable(folder)}, set data.path={printable(os.path.join(path, folder))}"
            )
    return told


def _differ_in_capitals(classes: Sequence[str]) -> Iterator[str]:
    same = Counter(name.casefold() for name in classes)
    if alike := [printable(name) for name in classes if same[name.casefold()] > 1]:
        yield f"{len(alike)} classes differ from another in capitals only: {shortened(alike)}"


def _largest(counts: Counter[str]) -> dict[str, int]:
    """Return the largest counts, and the sum of the others."""
    ranked = sorted((+counts).items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in ranked[NAMED:])
    return dict(ranked[:NAMED]) | ({"of other kinds": rest} if rest else {})
