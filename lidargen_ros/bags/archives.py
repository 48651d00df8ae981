# SPDX-License-Identifier: Apache-2.0
"""Reads tar and npz members from untrusted files: sizes are checked before memory is taken.

Data sets are downloaded and passed around, so every size that a file states is only a claim. Pickled content
is never loaded. Members are read by name into memory; nothing is extracted, so no path inside an archive ever
reaches the file system.
"""

import io
import math
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

MIB = 1 << 20
MAX_MEMBERS = 200_000  # 20 s of three cameras at 30 Hz are 1800; a day would not fit in one clip
MAX_MEMBER_BYTES = 64 * MIB
_BLOCK = 512
_NPZ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)


def parse_npy(data: bytes, where: str, max_bytes: int = MAX_MEMBER_BYTES) -> NDArray:
    """Array of a ``.npy`` file held in ``data``; ``where`` names it in errors.

    Raises:
        DataError: no npy file, objects inside, more than ``max_bytes``, or not as long as its header says.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"{where}: npy version {version} is not known; save it as 1.0")
        shape, fortran, dtype = readers[version](stream)
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, TokenError) as error:
        raise DataError(f"{where}: not a readable npy array ({error}); write it again with numpy") from error
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects, which are never loaded; store plain numbers or text")
    if any(side < 0 for side in shape) or dtype.itemsize == 0:
        raise DataError(f"{where}: shape {shape} of {dtype} is impossible; write the array again")
    size = math.prod(shape) * dtype.itemsize
    if size > max_bytes:
        raise DataError(f"{where}: {size} bytes once loaded, more than the {max_bytes} allowed; not loaded")
    held = len(data) - stream.tell()
    if held != size:
        raise DataError(f"{where}: {held} bytes of content where its header says {size}; the file is damaged")
    flat = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    # A copy, so that callers may write to it and the archive's bytes can be freed.
    return flat.reshape(shape, order="F" if fortran else "C").copy()


def parse_npz(source: bytes | Path, where: str, max_bytes: int = MAX_MEMBER_BYTES) -> dict[str, NDArray]:
    """All arrays of an npz archive, by key; together at most ``max_bytes`` when decompressed.

    Raises:
        DataError: naming ``where`` and the array, for anything that cannot be read safely and completely.
    """
    arrays: dict[str, NDArray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
            if claimed > max_bytes:
                raise DataError(
                    f"{where}: {claimed} bytes once decompressed, {max_bytes} are allowed; not loaded"
                )
            for info in archive.infolist():
                key, dot, suffix = info.filename.rpartition(".")
                if suffix != "npy" or not dot or key in arrays:
                    raise DataError(f"{where}: unexpected entry {info.filename!r}; an npz holds npy files")
                with archive.open(info) as member:
                    data = member.read(info.file_size)
                    if member.read(1):  # reading to the end also checks the CRC
                        raise DataError(f"{where}: {key} is longer than it claims; the file is damaged")
                arrays[key] = parse_npy(data, f"{where}: {key}", max_bytes)
    except _NPZ_ERRORS as error:
        raise DataError(f"{where}: not a readable npz archive ({error}); copy or write it again") from error
    return arrays


class TarMembers:
    """The regular files of one uncompressed tar, read by name.

    Args:
        path: the tar; kept open until ``close``.
        max_members: more members than this are refused.

    Raises:
        DataError: missing, truncated or damaged tar; links, devices, absolute or ``..`` names; doubled names.
    """

    def __init__(self, path: Path, max_members: int = MAX_MEMBERS) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
        try:
            self._members = self._index(max_members)
        except BaseException:
            self._file.close()
            raise

    def _index(self, max_members: int) -> dict[str, tuple[int, int]]:
        members: dict[str, tuple[int, int]] = {}
        end = 0
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                for info in archive:
                    if len(members) >= max_members:
                        raise DataError(f"{self.path}: more than {max_members} members; split the clip")
                    end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                    name = PurePosixPath(info.name)
                    if name.is_absolute() or ".." in name.parts or "\\" in info.name:
                        raise DataError(f"{self.path}: member {info.name!r} points elsewhere; refused")
                    if info.isdir():
                        end = info.offset_data
                        continue
                    if not info.isreg() or info.issparse():
                        raise DataError(f"{self.path}: member {info.name!r} is not a plain file; refused")
                    if name.as_posix() in members:
                        raise DataError(f"{self.path}: member {info.name!r} occurs twice; write it again")
                    members[name.as_posix()] = (info.offset_data, info.size)
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            raise DataError(f"{self.path}: not a readable tar ({error}); copy it again") from error
        # tarfile takes a damaged header for the end of the archive, so the real end mark is looked for here.
        self._file.seek(end)
        if self._file.read(_BLOCK) != bytes(_BLOCK):
            last = next(reversed(members), "its start")
            raise DataError(f"{self.path}: cut off or damaged after {last}; copy it again")
        return members

    @property
    def names(self) -> list[str]:
        """Member names in the order of the tar, without a leading ``./``."""
        return list(self._members)

    def read(self, name: str, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
        """Bytes of one member, at most ``max_bytes``."""
        if name not in self._members:
            raise DataError(f"{self.path}: no member {name}; the clip is incomplete")
        offset, size = self._members[name]
        if size > max_bytes:
            raise DataError(f"{self.path}: member {name} has {size} bytes, more than the {max_bytes} allowed")
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise DataError(f"{self.path}: member {name} is cut off; copy the file again")
        return data

    def close(self) -> None:
        self._file.close()
