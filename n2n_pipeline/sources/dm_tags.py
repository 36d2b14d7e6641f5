"""The tag tree of Gatan DigitalMicrograph files, versions 3 and 4.

Everything in such a file, pixels too, is a tag. Numbers that give the tree its form are big-endian, values have
the byte order that the file names. Arrays are not read, only located. The tree is never trusted: its depth and
number of tags are bounded, and where it leaves the file, the byte is named.

References
----------
C. B. Boothroyd's description of the formats, https://personal.ntu.edu.sg/cbb/info/dmformat/.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.raw import InputFile

Tags = dict[str, Any]
"""Values by path, as in ``"ImageList/1/ImageData/DataType"``; groups and nameless tags count from 0."""

_WORDS = {3: 4, 4: 8}
"""Bytes of a number that gives the tree its form, by version."""

_GROUP, _DATA = 20, 21
_STRUCT, _STRING, _ARRAY = 15, 18, 20
_TYPES = {
    2: "i2", 3: "i4", 4: "u2", 5: "u4", 6: "f4", 7: "f8", 8: "u1", 9: "i1", 10: "i1", 11: "i8", 12: "u8",
}  # fmt: skip
_MAX_DEPTH = 32
_MAX_TAGS = 1_000_000
_MAX_INFO = 1000  # numbers that describe one value; a struct of ten fields has 23
_BLOCK = 1 << 16


class TagArray(NamedTuple):
    """Where an array lies in the file."""

    offset: int
    length: int
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes."""
        return self.length * self.dtype.itemsize


def read_tags(file: InputFile) -> Tags:
    """Read the tag tree of a DM3 or DM4 file.

    Raises
    ------
    InputError
        If the tree is cut, too deep, or not one.
    """
    return _TreeReader(file).read()


def read_text(file: InputFile, value: Any) -> str:
    """Read a tag that holds text: a string, or an array of UTF-16 units; anything else is empty."""
    if isinstance(value, str):
        return value
    if (
        isinstance(value, TagArray)
        and value.dtype.kind == "u"
        and value.dtype.itemsize == 2
        and value.length < 4096
    ):
        encoding = "utf-16-be" if value.dtype.str[0] == ">" else "utf-16-le"
        return file.read(value.offset, value.n_bytes).decode(encoding, "replace").strip("\0 ")
    return ""


class _TreeReader:
    """A cursor that walks the tree once, from the file's beginning."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._position = 0
        self._block, self._block_start = b"", 0
        version = self._take_number(4)
        if version not in _WORDS:
            raise InputError(file.path, "not a DigitalMicrograph file of version 3 or 4")
        self._word = _WORDS[version]
        self._position += self._word  # length of the root; redundant
        self._order = "<" if self._take_number(4) == 1 else ">"
        self._tags: Tags = {}
        self._n_tags = 0

    def read(self) -> Tags:
        self._read_group("", 0)
        return self._tags

    def _read_group(self, path: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise InputError(self._file.path, f"tags nested more than {_MAX_DEPTH} deep at byte {self._position}")
        self._position += 2  # sorted, open
        for index in range(self._take_number(self._word)):
            self._read_entry(path, index, depth)

    def _read_entry(self, path: str, index: int, depth: int) -> None:
        self._n_tags += 1
        if self._n_tags > _MAX_TAGS:
            raise InputError(self._file.path, f"more than {_MAX_TAGS} tags")
        kind, name_bytes = self._take_number(1), self._take_number(2)
        name = self._take(name_bytes).decode("latin-1").replace("/", "_") or str(index)
        if self._word == 8:
            self._position += 8  # bytes of this tag; redundant
        where = f"{path}/{name}" if path else name
        if kind == _GROUP:
            self._read_group(where, depth + 1)
        elif kind == _DATA:
            self._tags[where] = self._read_value()
        else:
            raise InputError(self._file.path, f"damaged tag tree at byte {self._position}: tag of kind {kind}")

    def _read_value(self) -> Any:
        if self._take(4) != b"%%%%":
            raise InputError(self._file.path, f"damaged tag tree at byte {self._position}: no %%%%")
        n_info = self._take_number(self._word)
        if not 1 <= n_info <= _MAX_INFO:
            raise InputError(
                self._file.path, f"damaged tag tree at byte {self._position}: {n_info} numbers in a tag"
            )
        info = np.frombuffer(self._take(n_info * self._word), f">u{self._word}").tolist()
        if info[0] == _STRING:
            return self._take(info[1]).decode("utf-8", "replace")
        if info[0] == _ARRAY:
            return self._locate(info[1:-1], info[-1])
        array = self._locate(info, 1)
        value = np.frombuffer(self._bytes_at(array.offset, array.n_bytes), array.dtype)[0]
        return tuple(value.tolist()) if array.dtype.fields else value.item()

    def _locate(self, info: list[int], count: int) -> TagArray:
        """Step over `count` values that `info` describes."""
        array = TagArray(self._position, count, self._value_dtype(info))
        self._position += array.n_bytes
        if self._position > self._file.size:
            raise InputError(self._file.path, f"tag tree cut at byte {self._file.size}")
        return array

    def _value_dtype(self, info: list[int]) -> np.dtype[Any]:
        """Turn DigitalMicrograph's description of a number or a struct into a type."""
        try:
            if info[0] == _STRUCT:
                fields = info[4::2]
                return np.dtype([(f"f{i}", self._order + _TYPES[code]) for i, code in enumerate(fields)])
            return np.dtype(self._order + _TYPES[info[0]])
        except (KeyError, IndexError):
            raise InputError(
                self._file.path, f"damaged tag tree at byte {self._position}: value of kind {info}"
            ) from None

    def _take_number(self, n_bytes: int) -> int:
        return int.from_bytes(self._take(n_bytes), "big")

    def _take(self, n_bytes: int) -> bytes:
        data = self._bytes_at(self._position, n_bytes)
        self._position += n_bytes
        return data

    def _bytes_at(self, offset: int, n_bytes: int) -> bytes:
        if offset + n_bytes > self._file.size:
            raise InputError(self._file.path, f"tag tree cut at byte {self._file.size}")
        start = offset - self._block_start
        if not 0 <= start <= len(self._block) - n_bytes:
            self._block, self._block_start, start = self._file.read(offset, max(n_bytes, _BLOCK)), offset, 0
        return self._block[start : start + n_bytes]
