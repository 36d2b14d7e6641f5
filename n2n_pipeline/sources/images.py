"""Movies in many files: a folder or pattern of images in natural order, Gatan's in-situ folders, even/odd folders.

Every file is opened once beforehand, so that one that does not fit is named before work starts, and again when its
frames are read, so that thousands of files never stay open.
"""

from __future__ import annotations

import contextlib
import glob
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from n2n_pipeline import buffers
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.formats import SUFFIXES, has_pattern, open_file
from n2n_pipeline.sources.movie import Counts, MovieInfo, MovieSource
from n2n_pipeline.sources.raw import check_range

_SAME_KIND = {".mrcs": ".mrc", ".tiff": ".tif"}
_SAME_PIXEL_SIZE = 0.01
_MAX_LISTED = 20


class Member(NamedTuple):
    """Where one frame of a movie in many files is."""

    path: Path
    frame: int
    """Which frame of that file."""


class ImageMovie:
    """Frames that lie in many files.

    Parameters
    ----------
    path : pathlib.Path
        The folder or pattern, as the user named it.
    info : MovieInfo
        What the movie is; all files are known to agree with it.
    members : sequence of Member
        Where each frame is.
    options : IngestConfig
        How to read each file.
    """

    def __init__(self, path: Path, info: MovieInfo, members: Sequence[Member], options: IngestConfig) -> None:
        self.path = path
        self.info = info
        self._members = members
        self._options = options

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        frames = buffers.frames.empty((stop - start, *self.info.shape[1:]), self.info.dtype)
        opened: dict[Path, MovieSource] = {}
        with contextlib.ExitStack() as stack:
            for frame, (path, t) in zip(frames, self._members[start:stop], strict=True):
                if path not in opened:
                    opened[path] = stack.enter_context(contextlib.closing(open_file(path, self._options)))
                    _check_alike(path, opened[path].info, self.info, self._options)
                frame[...] = opened[path].read_frames(t, t + 1)[0]
        return frames

    def close(self) -> None:
        """Do nothing: no file stays open."""


def open_images(path: Path, options: IngestConfig) -> MovieSource:
    """Open a folder or pattern of images, or folders ``even`` and ``odd``, as one movie.

    Parameters
    ----------
    path : pathlib.Path
        A folder, or a pattern such as ``frames/*.tif``.
    options : IngestConfig
        How to read each file.

    Raises
    ------
    InputError
        If there is no image, or the images differ.
    """
    if (path / "even").is_dir() and (path / "odd").is_dir():
        return _open_pairs(path, options)
    files = list_images(path)
    if len(files) == 1:
        return open_file(files[0], options)
    infos = _survey(files, options)
    if max(info.shape[0] for info in infos) > 1:
        raise InputError(path, f"holds {len(files)} movies", "name one of them, or several with -o FOLDER")
    info = replace(infos[0], shape=(len(files), *infos[0].shape[1:]), format="images")
    return ImageMovie(path, info, [Member(file, 0) for file in files], options)


def list_images(path: Path) -> list[Path]:
    """List the images of a folder or pattern in natural order: ``f2`` comes before ``f10``.

    Raises
    ------
    InputError
        If there are none, several kinds, or links that lead out of the folder.
    """
    files = _glob(path) if has_pattern(path) else _list_folder(path)
    if not files:
        looked = ", ".join(SUFFIXES)
        raise InputError(path, f"no movie found (looked for {looked})", code=ExitCode.NO_INPUT)
    kinds = Counter(_SAME_KIND.get(file.suffix.lower(), file.suffix.lower()) for file in files)
    if len(kinds) > 1:
        found = " and ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        kind = kinds.most_common(1)[0][0]
        raise InputError(path, f"holds {found} files", f"say which: '{path}/*{kind}'")
    return sorted(files, key=natural_key)


def list_movie_files(path: Path) -> list[Path]:
    """List every file that a movie is made of, so that it can be told from another."""
    if has_pattern(path):
        return list_images(path)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sorted(files, key=natural_key)


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Order names by the numbers in them.

    Examples
    --------
    >>> [path.name for path in sorted([Path("f10.tif"), Path("f2.tif"), Path("f2b.tif")], key=natural_key)]
    ['f2.tif', 'f2b.tif', 'f10.tif']
    """
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def match_folders(even: Path, odd: Path) -> list[tuple[Path, Path]]:
    """Match the images of two folders by name, whatever the words even and odd in it.

    Parameters
    ----------
    even, odd : pathlib.Path
        Folders whose files show the same moments.

    Returns
    -------
    list of tuple of pathlib.Path
        Pairs ``(even, odd)`` in natural order.

    Raises
    ------
    InputError
        If a file has no partner; every one is named.
    """
    evens, odds = ({_pair_name(file): file for file in list_images(folder)} for folder in (even, odd))
    without_odd = [evens[name] for name in evens if name not in odds]
    without_even = [odds[name] for name in odds if name not in evens]
    if len(evens) != len(odds):
        what = f"{even.name} has {len(evens)} movies, {odd.name} {len(odds)}"
        missing = [("odd", [Path(file.name) for file in without_odd])]
        missing += [("even", [Path(file.name) for file in without_even])]
        todo = "; ".join(f"missing in {name}: {_list_names(files)}" for name, files in missing if files)
        raise InputError(even.parent, what, todo)
    if without_odd:
        what = f"no odd partner for {_list_names([Path('even', file.name) for file in without_odd])}"
        raise InputError(even.parent, what)
    return [(evens[name], odds[name]) for name in evens]


def _pair_name(path: Path) -> str:
    return re.sub("even|odd", "", path.name, flags=re.IGNORECASE)


def _list_names(files: list[Path]) -> str:
    more = f" and {len(files) - _MAX_LISTED} more" if len(files) > _MAX_LISTED else ""
    return ", ".join(str(file) for file in files[:_MAX_LISTED]) + more


def _open_pairs(path: Path, options: IngestConfig) -> ImageMovie:
    """Open folders of even and odd images as a movie in which they take turns."""
    pairs = match_folders(path / "even", path / "odd")
    infos = _survey([file for pair in pairs for file in pair], options)
    members = []
    for (even, odd), even_info, odd_info in zip(pairs, infos[::2], infos[1::2], strict=True):
        if even_info.shape != odd_info.shape:
            raise InputError(even, f"even {_describe(even_info)}, odd {_describe(odd_info)}")
        members += [Member(file, t) for t in range(even_info.shape[0]) for file in (even, odd)]
    note = (
        "frames 0, 2, 4, … are the even images and 1, 3, 5, … the odd: a window of 2 frames is one of their pairs"
    )
    warnings = (*infos[0].warnings, note)
    info = replace(infos[0], shape=(len(members), *infos[0].shape[1:]), format="images", warnings=warnings)
    return ImageMovie(path, info, members, options)


def _list_folder(folder: Path) -> list[Path]:
    """List the images in a folder, or in the Hour/Minute/Second folders of Gatan's in-situ camera."""
    pattern = "Hour_*/Minute_*/Second_*/*" if any(folder.glob("Hour_*")) else "*"
    return _keep_images(folder, list(folder.glob(pattern)))


def _glob(path: Path) -> list[Path]:
    fixed = [part for part in path.parents if not glob.has_magic(str(part))]
    return _keep_images(fixed[0], [Path(name) for name in glob.glob(str(path), recursive=True)])  # noqa: PTH207


def _keep_images(root: Path, candidates: list[Path]) -> list[Path]:
    """Keep files with the names of images; refuse links that lead out of the folder."""
    files = [
        file
        for file in candidates
        if file.suffix[1:].lower() in SUFFIXES and not file.name.startswith(".") and not file.is_dir()
    ]
    for file in files:
        if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
            raise InputError(file, "links out of its folder", "copy the file", ExitCode.REFUSED)
    return files


def _survey(files: list[Path], options: IngestConfig) -> list[MovieInfo]:
    """Open each file once, and check that all are alike."""
    infos: list[MovieInfo] = []
    for file in files:
        with contextlib.closing(open_file(file, options)) as source:
            infos.append(source.info)
        _check_alike(file, infos[-1], infos[0], options)
    return infos


def _check_alike(file: Path, info: MovieInfo, first: MovieInfo, options: IngestConfig) -> None:
    """Refuse a file whose frames differ from the first's in size, type or pixel size."""
    if info.shape[1:] != first.shape[1:]:
        (height, width), (first_height, first_width) = info.shape[1:], first.shape[1:]
        raise InputError(file, f"{height}x{width}, first movie was {first_height}x{first_width}")
    if info.dtype != first.dtype:
        raise InputError(file, f"{info.dtype}, first movie was {first.dtype}")
    if options.pixel_size_angstrom or info.pixel_size is None or first.pixel_size is None:
        return
    if not math.isclose(info.pixel_size, first.pixel_size, rel_tol=_SAME_PIXEL_SIZE):
        what = f"{info.pixel_size:.4g} Å/px, first was {first.pixel_size:.4g}"
        raise InputError(file, what, "give the true one with --pixel-size")


def _describe(info: MovieInfo) -> str:
    return f"({','.join(map(str, info.shape))}) {info.dtype}"
