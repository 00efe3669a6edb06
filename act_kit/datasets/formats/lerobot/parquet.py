"""Reader of untrusted Parquet files: a column at a time, in batches, after a check of the sizes that it declares.

A Parquet file of some kilobytes can declare pages of gigabytes, and a column can repeat one long value for every row.
PyArrow allocates what a page header declares, so the headers are read here first. A damaged footer can abort the
process (PyArrow 26 does not catch the error of an unknown codec), so all footers are read in another process before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from act_kit.datasets.damage import as_dataset_error
from act_kit.errors import DatasetError, install_hint
from act_kit.files import require_regular

_MAX_ROWS = 50_000_000
"""Maximum number of rows of a file; LeRobot begins another one after 100 MB."""
_MAX_PAGE_BYTES = 2**29
"""Maximum size of a page: 1,024 uncompressed images of 400x400 pixels."""
_MAX_DICTIONARY_BYTES = 2**22
"""Maximum size of the values that a column chunk may repeat; by default, writers stop at 1 MiB."""
_MAX_WIDTHS = {"BYTE_ARRAY": 16}
"""Maximum number of values in a row: of texts and images these, of numbers 1,024."""
_MAX_VALUES = 2**28
"""Maximum number of values of a column in a row group."""
_HEADER_BYTES = 2**16
_NUMBERS_PER_BATCH, _CELLS_PER_BATCH = 1024, 16
"""Number of rows that are decoded at a time, of numbers, and of texts or images."""


_READ_FOOTERS = """
import json, sys
import pyarrow.parquet as pq
for path in json.load(sys.stdin):
    print(path, flush=True)
    try:
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                metadata.row_group(group).column(column).to_dict()
    except Exception:
        pass  # the reader reports it
"""
_FOOTERS_TIMEOUT_S = 600.0


def check_footers(paths: Sequence[Path]) -> None:
    """Read the footers of Parquet files in another process.

    Raises:
        DatasetError: That process died, at the file that the message names.
    """
    command = [sys.executable, "-c", _READ_FOOTERS]
    given = json.dumps(list(map(str, paths)))
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=_FOOTERS_TIMEOUT_S, check=False)
    if done.returncode < 0:
        read = done.stdout.splitlines()
        raise DatasetError(
            f"{read[-1] if read else 'A Parquet file'} is damaged: PyArrow cannot read its footer. Fix: copy the "
            "dataset again."
        )


class ParquetFile:
    """A Parquet file, opened; errors name it.

    Attributes:
        path: Path of the file.
        num_rows: Number of rows.
        columns: Names of the columns.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            DatasetError: PyArrow is not installed, or the file is missing or damaged.
        """
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise DatasetError(f"LeRobot datasets are Parquet files: {install_hint('lerobot')}") from error
        self.path = path
        with as_dataset_error(f"{path} is damaged or not Parquet", "copy the dataset again."):
            self._num_bytes = require_regular(path).st_size
            self._file = pq.ParquetFile(path, buffer_size=2**20)
            self.columns: list[str] = self._file.schema_arrow.names
            self._metadata = self._file.metadata
            self.num_rows = int(self._metadata.num_rows)
            self._group_ends = np.cumsum([self._metadata.row_group(i).num_rows for i in range(self._num_groups)])
            if self._num_groups and (
                self._group_ends[-1] != self.num_rows or min(np.diff(self._group_ends), default=0) < 0
            ):
                raise ValueError("its row groups do not have the number of rows that it declares")
        if not 0 <= self.num_rows <= _MAX_ROWS:
            raise DatasetError(f"{path} declares {self.num_rows} rows; at most {_MAX_ROWS} were expected.")
        self._cursors: dict[str, _Cursor] = {}

    @property
    def _num_groups(self) -> int:
        return int(self._metadata.num_row_groups)

    def numbers(self, name: str, begin: int, end: int) -> np.ndarray:
        """Return rows ``begin`` to ``end`` of a column of numbers, (N,) or (N, D).

        Raises:
            DatasetError: The column is missing, damaged, or not of numbers, or its rows differ in length.
        """
        with as_dataset_error(f"{self.path}: {name} is damaged"):
            return _to_numpy(self._rows(name, begin, end, _NUMBERS_PER_BATCH))

    def cells(self, name: str, begin: int, end: int) -> Iterator[Any]:
        """Yield the values of rows ``begin`` to ``end`` of a column of texts, lists of texts or images.

        Raises:
            DatasetError: The column is missing or damaged.
        """
        for first in range(begin, end, _CELLS_PER_BATCH):
            with as_dataset_error(f"{self.path}: {name} is damaged"):
                values = self._rows(name, first, min(first + _CELLS_PER_BATCH, end), _CELLS_PER_BATCH).to_pylist()
            yield from values

    def _rows(self, name: str, begin: int, end: int, batch_rows: int) -> Any:
        if name not in self._cursors:
            if self.columns.count(name) != 1:
                raise DatasetError(f"{self.path} lacks the column {name}, or has it twice.")
            self._cursors[name] = _Cursor(self._file, name, self._check(name), self._group_ends, batch_rows)
        return self._cursors[name].take(begin, end)

    def _check(self, name: str) -> list[str]:
        """Check the pages of a column; return the paths of its leaves, of an image only that of its bytes."""
        leaves: dict[int, str] = {}
        for i in range(len(self._file.schema)):
            path = self._file.schema.column(i).path
            if path == name or path.startswith(f"{name}."):
                leaves[i] = path
        is_image = f"{name}.bytes" in leaves.values()
        used = [path for path in leaves.values() if not is_image or path == f"{name}.bytes"]
        with self.path.open("rb") as opened:
            for group in map(self._metadata.row_group, range(self._num_groups)):
                for i in leaves:
                    _check_pages(opened, group.column(i), group.num_rows, self._num_bytes)
        return used


class _Cursor:
    """Position in a column that is read in order of its rows; going back begins again at the row group."""

    def __init__(self, file: Any, name: str, leaves: list[str], group_ends: np.ndarray, batch_rows: int) -> None:
        self._file, self._name, self._leaves = file, name, leaves
        self._group_ends, self._batch_rows = group_ends, batch_rows
        self._batches: Iterator[Any] = iter(())
        self._first = 0
        self._batch: Any = None

    def take(self, begin: int, end: int) -> Any:
        """Return rows ``begin`` to ``end``, a PyArrow array."""
        import pyarrow as pa

        group = int(np.searchsorted(self._group_ends, begin, side="right"))
        group_begin = int(self._group_ends[group - 1]) if group else 0
        if self._batch is None or begin < self._first or group_begin > self._first + len(self._batch):
            groups = range(group, len(self._group_ends))
            self._batches = self._file.iter_batches(self._batch_rows, groups, self._leaves, use_threads=False)
            self._first, self._batch = group_begin, self._next()
        parts = []
        while True:
            stop = self._first + len(self._batch)
            low = max(begin, self._first)
            if low < min(end, stop):
                parts.append(self._batch.slice(low - self._first, min(end, stop) - low))
            if stop >= end:
                return pa.concat_arrays(parts)
            self._first, self._batch = stop, self._next()

    def _next(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError("rows are missing")
        return batch.column(self._name)


def _to_numpy(array: Any) -> np.ndarray:
    """Return a PyArrow array of numbers, or of lists of numbers of equal length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    shape, types = [len(array)], pa.types
    while types.is_nested(array.type):
        if types.is_fixed_size_list(array.type):
            width = array.type.list_size
        elif types.is_list(array.type) or types.is_large_list(array.type):
            lengths = pc.min_max(pc.list_value_length(array)).as_py()
            width = lengths["max"] or 0
            if lengths["min"] != lengths["max"]:
                raise ValueError(f"its rows have {lengths['min']} to {lengths['max']} numbers")
        else:
            raise ValueError(f"it is {array.type}; numbers were expected")
        if array.null_count:
            raise ValueError(f"{array.null_count} values are missing (null)")
        shape.append(width)
        array = array.flatten()
    if not (types.is_floating(array.type) or types.is_integer(array.type) or types.is_boolean(array.type)):
        raise ValueError(f"it is {array.type}; numbers were expected")
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing (null)")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)


# -- page headers, in Thrift's compact protocol (github.com/apache/parquet-format, parquet.thrift) --------------------

_Struct = dict[int, Any]


def _check_pages(file: BinaryIO, chunk: Any, num_rows: int, num_bytes: int) -> None:
    """Raise ``ValueError`` if a page of a column chunk declares too large a size."""
    offset = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        offset = min(offset, chunk.dictionary_page_offset)
    end, num_values = offset + chunk.total_compressed_size, 0
    if not 0 <= offset <= end <= num_bytes:
        raise ValueError("a column chunk lies outside the file")
    while offset < end:
        file.seek(offset)
        header, length = _Thrift(file.read(_HEADER_BYTES)).parse()
        size, stored = header.get(2, -1), header.get(3, -1)
        most = _MAX_DICTIONARY_BYTES if header.get(1) == 2 else _MAX_PAGE_BYTES
        if not 0 <= size <= most or not 0 <= stored <= num_bytes:
            raise ValueError(f"it declares a page of {size} bytes; at most {most} were expected")
        data_header = header.get(5) or header.get(8)
        num_values += max(0, data_header.get(1, 0)) if isinstance(data_header, dict) else 0
        offset += length + stored
    max_values = min(_MAX_VALUES, num_rows * _MAX_WIDTHS.get(chunk.physical_type, 1024))
    if num_values > max_values:
        raise ValueError(f"it declares {num_values} values; at most {max_values} were expected")


class _Thrift:
    """Parser of one structure in the compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def parse(self) -> tuple[_Struct, int]:
        """Return the fields by number, and the number of bytes read; lists and maps are not supported."""
        return self._struct(depth=0), self._at

    def _struct(self, depth: int) -> _Struct:
        if depth > 4:
            raise ValueError("a page header is nested too deeply")
        fields: _Struct = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind in (7, 8):
            length = 8 if kind == 7 else self._varint()
            self._at += length
            return None
        if kind == 12:
            return self._struct(depth + 1)
        raise ValueError(f"a page header has a field of kind {kind}")

    def _byte(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("a page header is truncated")
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page header has too large a number")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
