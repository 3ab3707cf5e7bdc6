"""Images from Parquet files in the layout of the Hugging Face Hub, and from any table of that layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exptilt.data.images import ImageStack, refuse_bomb
from exptilt.data.order import rows_of_split
from exptilt.errors import InputError, one_line

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
POINT_COLUMN = "point"

_BATCH_ROWS = 1024


def read_parquet(
    files: list[Path], split: str, limit: int | None, holds_split_only: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read images and labels, or points, from the shards of one table.

    Args:
        files: The shards in order, one or more.
        split: ``"train"`` or ``"test"``.
        limit: Largest number of images; the rest is not decoded.
        holds_split_only: The files are this split; otherwise it is a fixed random part of them.

    Returns:
        Images, uint8 (N, C, H, W), and labels, int64 (N,), or None. Of a table with a column ``point``, those:
        float32 (N, D).

    Raises:
        InputError: A file is damaged, has no image column, or holds something else than images of one size.
    """
    readers = [(file, _open(file)) for file in files]
    for file, reader in readers:
        _require_plausible(file, reader.metadata)
    if all(POINT_COLUMN in reader.schema_arrow.names for _, reader in readers):
        return _read_points(readers, split, limit, holds_split_only), None
    columns = [find_columns(reader.schema_arrow.names, file) for file, reader in readers]
    if len(set(columns)) > 1:
        raise InputError(files[0].parent, "the shards have different columns", "write them from one table")
    total = sum(reader.metadata.num_rows for _, reader in readers)
    source = files[0] if len(files) == 1 else files[0].parent
    rows = rows_of_split(total, split, limit, holds_split_only, source)
    batches = (batch for file, reader in readers for batch in _batches(file, reader, columns[0]))
    return decode_rows(batches, rows, *columns[0])


def find_columns(names: list[str], source: object) -> tuple[str, str | None]:
    """The columns of images and of labels (None if the table has no labels).

    Raises:
        InputError: There is no column of images.
    """
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None:
        raise InputError(
            source,
            f"has no column of images (it has {', '.join(names[:8]) or 'none at all'})",
            f"name the column {' or '.join(IMAGE_COLUMNS)}",
        )
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    for name in filter(None, (image, label)):
        if names.count(name) > 1:
            raise InputError(source, f"has several columns {name!r}", "keep one of them")
    return image, label


def decode_rows(
    batches: Iterable[tuple[str, int, Any]], rows: np.ndarray, image_column: str, label_column: str | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decode the chosen rows of a table that comes in batches.

    Args:
        batches: Name of the source, number of the batch's first row in that source, and a pyarrow batch or table.
        rows: The chosen rows, counted over all batches, in the order of the result; int64 (n,).
        image_column: Column of encoded images: binary, or a struct with a binary field ``bytes``.
        label_column: Column of class numbers, or None.

    Returns:
        Images, uint8 (N, C, H, W), and labels, int64 (N,), or None if the table has none or marks any as missing.

    Raises:
        InputError: A column has another type, or an image is missing, damaged or of another size.
    """
    place_of = {int(row): place for place, row in enumerate(rows)}
    stack = ImageStack(len(rows))
    labels = None if label_column is None else np.full(len(rows), -1)
    last, first = int(rows.max()), 0
    for source, offset, batch in batches:
        chosen = [i for i in range(batch.num_rows) if first + i in place_of]
        if chosen:
            encoded = _encoded_images(batch.column(image_column), source)
            classes = None if label_column is None else _classes(batch.column(label_column), source, label_column)
            for i in chosen:
                place, where = place_of[first + i], f"{source}: row {offset + i}"
                # One at a time: values that repeat in a table take memory once.
                content = encoded[i].as_py()
                if content is None:
                    raise InputError(where, "has no image bytes", "store the images in the table, not their paths")
                stack.put(place, content, where)
                if labels is not None and classes is not None:
                    labels[place] = classes[i]
        first += batch.num_rows
        if first > last:
            break
    # The Hub's convention for "no label" is −1: a set without all its labels counts as unlabelled.
    known = labels is not None and labels.min() >= 0
    return stack.tensor(), torch.from_numpy(labels) if known else None


def _read_points(
    readers: list[tuple[Path, Any]], split: str, limit: int | None, holds_split_only: bool
) -> torch.Tensor:
    """Points, float32 (N, D), from a column of lists of D numbers."""
    import pyarrow
    import pyarrow.types

    parts = []
    for file, reader in readers:
        kind = reader.schema_arrow.field(POINT_COLUMN).type
        if not (pyarrow.types.is_fixed_size_list(kind) and pyarrow.types.is_floating(kind.value_type)):
            fault = f"its column {POINT_COLUMN!r} holds {one_line(ValueError(kind), 60)}"
            raise InputError(file, fault, "store lists of D floats, D fixed")
        try:
            numbers = reader.read([POINT_COLUMN]).column(0).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(file, error) from error
        parts.append(torch.from_numpy(numbers.astype(np.float32)).view(-1, kind.list_size))
        if not bool(parts[-1].isfinite().all()):
            raise InputError(file, "holds NaN or infinite values, or points that are missing", "remove them")
    points = torch.cat(parts)
    source = readers[0][0] if len(readers) == 1 else readers[0][0].parent
    return points[torch.from_numpy(rows_of_split(len(points), split, limit, holds_split_only, source))]


def _open(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
        paths = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
        # As dictionaries: a long value that repeats would else fill the memory, row by row.
        repeated = [path for path in paths if path.removesuffix(".bytes") in IMAGE_COLUMNS]
        return pyarrow.parquet.ParquetFile(
            file, metadata=metadata, page_checksum_verification=True, read_dictionary=repeated
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _require_plausible(file: Path, metadata: Any) -> None:
    size = file.stat().st_size
    # A picture has bytes, so no small file makes for a long list of rows.
    if not 0 <= metadata.num_rows <= size:
        fault = f"claims {metadata.num_rows:,} rows, more than it has bytes"
        raise InputError(file, fault, "download or write it anew")
    # In memory twice: as pages, and as values.
    unpacked = 2 * sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    refuse_bomb(unpacked, size, file)


def _batches(file: Path, reader: Any, columns: tuple[str, str | None]) -> Iterator[tuple[str, int, Any]]:
    import pyarrow

    offset = 0
    batches = reader.iter_batches(batch_size=_BATCH_ROWS, columns=[name for name in columns if name])
    while True:
        try:
            batch = next(batches, None)
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(file, error) from error
        if batch is None:
            return
        yield str(file), offset, batch
        offset += batch.num_rows


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(file, f"not a whole Parquet file ({one_line(error)})", "download or write it anew")


def _encoded_images(column: Any, source: str) -> Any:
    import pyarrow.types

    kind = column.type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = column.flatten()[kind.get_field_index("bytes")]
    stored = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if not (pyarrow.types.is_binary(stored) or pyarrow.types.is_large_binary(stored)):
        raise InputError(
            source, f"its image column holds {one_line(ValueError(kind), 60)}", "store encoded images (PNG or JPEG)"
        )
    return column


def _classes(column: Any, source: str, name: str) -> np.ndarray:
    import pyarrow
    import pyarrow.compute
    import pyarrow.types

    if not pyarrow.types.is_integer(column.type):
        raise InputError(
            source, f"its column {name!r} holds {one_line(ValueError(column.type), 60)}", "store class numbers 0, 1, …"
        )
    try:
        return pyarrow.compute.fill_null(column.cast(pyarrow.int64()), -1).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid as error:
        raise InputError(source, f"its column {name!r} is wrong ({one_line(error)})", "store numbers 0, 1, …") from None
