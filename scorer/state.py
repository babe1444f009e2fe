r"""The format of a checkpoint: a header and arrays as bytes, and back.

Owns the layout and everything that can be told from the bytes alone: that they are a checkpoint, whole, undamaged,
and of a version that this code knows. Never knows what the arrays mean (`RandomCutForest.from_bytes` does), never
touches a file or a database.

    magic      8 bytes   b"TAILRCF\0"
    version    u32       2; little-endian, as all numbers
    length     u32       bytes of the header
    header     JSON      {"values": {name: number}, "arrays": [{"name", "dtype", "shape"}]}, UTF-8
    arrays     raw       one after the other, C order, little-endian
    checksum   32 bytes  SHA-256 of everything before it
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np

from scorer import kernels
from scorer.errors import CheckpointRefused

VERSION = 2
_MAGIC = b"TAILRCF\0"
_PREFIX = struct.Struct("<8sII")
_CHECKSUM_BYTES = 32
_RETRAIN = "Use an earlier checkpoint, or train the model again."
_DTYPES = {"tree": kernels.TREE, "node": kernels.NODE, "slot": kernels.SLOT, "<f4": np.dtype("<f4")}
_DTYPES |= {"<f8": np.dtype("<f8"), "<i8": np.dtype("<i8"), "u1": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def pack(values: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Checkpoint of named plain values and named arrays; equal input gives equal bytes."""
    table = [{"name": name, "dtype": _NAMES[array.dtype], "shape": array.shape} for name, array in arrays.items()]
    header = json.dumps({"values": values, "arrays": table}, separators=(",", ":")).encode()
    parts = [_PREFIX.pack(_MAGIC, VERSION, len(header)), header, *(array.tobytes() for array in arrays.values())]
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return b"".join([*parts, checksum.digest()])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The values and arrays of a checkpoint; the arrays are read-only views of `data`.

    Raises:
        CheckpointRefused: with what is wrong, and what to do about it.
    """
    if len(data) < _PREFIX.size + _CHECKSUM_BYTES:
        raise CheckpointRefused("The checkpoint is too short to be one.", bytes=len(data), hint=_RETRAIN)
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise CheckpointRefused("These bytes are not a checkpoint of a forest.", hint=_RETRAIN)
    if version != VERSION:
        raise CheckpointRefused(
            f"The checkpoint has format version {version}, this program knows version {VERSION}.",
            hint="Run the version that wrote it, or train the model again.",
        )
    body = memoryview(data)[:-_CHECKSUM_BYTES]
    if hashlib.sha256(body).digest() != data[-_CHECKSUM_BYTES:]:
        raise CheckpointRefused("The checksum does not match: the checkpoint is damaged or cut short.", hint=_RETRAIN)
    try:
        header = json.loads(bytes(body[_PREFIX.size : _PREFIX.size + length]))
        values, table = header.pop("values"), header.pop("arrays")
        arrays, start = {}, _PREFIX.size + length
        for entry in table:
            dtype, shape = _DTYPES[entry.pop("dtype")], tuple(entry.pop("shape"))
            count = int(np.prod(shape, dtype=np.int64))
            arrays[entry.pop("name")] = np.frombuffer(body, dtype, count, start).reshape(shape)
            start += count * dtype.itemsize
            header.update(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused("The header of the checkpoint cannot be read.", hint=_RETRAIN) from error
    if header or start != len(body):
        raise CheckpointRefused("The checkpoint holds more than this program knows.", unknown=sorted(header), hint=_RETRAIN)
    return values, arrays
