"""Labelled sequences, and images read as sequences of one pixel per step: digits and sequential MNIST."""

from __future__ import annotations

import lzma
import os
import stat
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ssmreduce._checks import naming, require_backend
from ssmreduce.errors import DataFileError

CLASSES = 10

_DIGITS_TEST_SHARE = 0.25
_DIGITS_SPLIT_SEED = 0
_SMNIST_SIDE = 28

# What NumPy and zipfile raise on damaged or foreign files: headers that do not parse or promise more
# than fits in memory, compressions that break off or are unknown, encrypted members (RuntimeError).
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    OverflowError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_LARGEST = 2**29
"""Bytes of an archive when unpacked: ten times those of MNIST."""

_PACKED_BY_NUMPY = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
"""What numpy.savez writes: of these zipfile unpacks as much as it is asked for, of others whole blocks."""

_LAYOUT = (
    "train_images (n, 28, 28) uint8, train_labels (n,), test_images (m, 28, 28) uint8, "
    "test_labels (m,)"
)


@dataclass(frozen=True)
class SequenceData:
    """Training and test sequences, and their labels 0 … classes - 1.

    Parameters
    ----------
    name : str
        What the data are, in words.
    train_sequences, test_sequences : (n, L) array
        One number per step, float32.
    train_labels, test_labels : (n,) array
        Class of each sequence, int32.
    classes : int
        How many there are.
    """

    name: str
    train_sequences: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int32]
    test_sequences: npt.NDArray[np.float32]
    test_labels: npt.NDArray[np.int32]
    classes: int = CLASSES


def load_digits() -> SequenceData:
    """Scikit-learn's 8×8 handwritten digits, row by row: 1347 training and 450 test sequences of 64 steps.

    The split is stratified and always the same.

    Raises
    ------
    MissingBackendError
        If scikit-learn is not installed.
    """
    datasets = require_backend("sklearn.datasets", extra="demo")
    selection = require_backend("sklearn.model_selection", extra="demo")
    digits = datasets.load_digits()
    train_x, test_x, train_y, test_y = selection.train_test_split(
        (digits.data / 16.0).astype(np.float32),
        digits.target.astype(np.int32),
        test_size=_DIGITS_TEST_SHARE,
        stratify=digits.target,
        random_state=_DIGITS_SPLIT_SEED,
    )
    return SequenceData("handwritten digits, 64 steps", train_x, train_y, test_x, test_y)


def load_smnist(path: Path) -> SequenceData:
    """Sequential MNIST: 28×28 images of a NumPy archive, row by row, 784 steps.

    Parameters
    ----------
    path : Path
        ``.npz`` file with the arrays ``train_images (n, 28, 28) uint8``, ``train_labels (n,)``,
        ``test_images`` and ``test_labels``, of at most 512 MiB when unpacked. It is never unpickled.

    Raises
    ------
    DataFileError
        If the file is missing, is no regular file or not such an archive, unpacks to more than 512 MiB,
        or holds other arrays.
    """
    try:
        with naming(str(path)):
            # Asked before it is opened: to open a pipe waits for somebody to write.
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
                raise DataFileError(
                    f"cannot be opened (it is {kind}); expected a regular file, a NumPy .npz archive. "
                    "Check the path given to --data."
                )
            # Opened here because NumPy leaves a file open that it opened and could not read.
            with open(path, "rb") as file:
                return _read_smnist(file)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        found = "no such file" if missing else f"cannot be opened ({error.strerror})"
        raise DataFileError(
            f"{path}: {found}; expected a NumPy .npz archive. Check the path given to --data."
        ) from error


def _read_smnist(file: BinaryIO) -> SequenceData:
    try:
        archive = np.load(file, allow_pickle=False)
    except _UNREADABLE as error:
        raise DataFileError(
            f"cannot be read as a NumPy .npz archive ({_reason(error)}); expected "
            f"{_LAYOUT}. Write it with numpy.savez."
        ) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataFileError(
            f"holds a single array; expected an .npz archive with {_LAYOUT}. "
            "Write it with numpy.savez."
        )
    with archive:
        _check_size(zipfile.ZipFile(file).infolist())
        train = _images_and_labels(archive, "train")
        test = _images_and_labels(archive, "test")
    return SequenceData("sequential MNIST, 784 steps", *train, *test)


def _check_size(members: list[zipfile.ZipInfo]) -> None:
    """Refuse what unpacks to too much, by the sizes that the archive declares: zipfile stops at those."""
    size = sum(member.file_size for member in members)
    if size > _LARGEST:
        raise DataFileError(
            f"unpacks to {size} bytes; expected at most {_LARGEST}, ten times those of MNIST. "
            "Look whether it is a damaged file or another set."
        )
    if any(member.compress_type not in _PACKED_BY_NUMPY for member in members):
        raise DataFileError(
            "is packed in a way that NumPy does not write; expected stored or deflated arrays. "
            "Write it with numpy.savez_compressed."
        )


def _images_and_labels(
    archive: np.lib.npyio.NpzFile, part: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    images = _array(archive, f"{part}_images")
    labels = _array(archive, f"{part}_labels")
    size = (_SMNIST_SIDE, _SMNIST_SIDE)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != size or not len(images):
        raise DataFileError(
            f"`{part}_images` is {images.shape} {images.dtype}; expected (n, 28, 28) uint8 with "
            "n ≥ 1. Store the images as grey values 0 … 255."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataFileError(
            f"`{part}_labels` is {labels.shape} {labels.dtype}; expected {images.shape[:1]} integers, "
            f"one per image of `{part}_images`. Check that both were written from the same set."
        )
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise DataFileError(
            f"`{part}_labels` has values {labels.min()} … {labels.max()}; expected "
            f"0 … {CLASSES - 1}. Number the classes from 0."
        )
    sequences = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    return sequences, labels.astype(np.int32)


def _array(archive: np.lib.npyio.NpzFile, name: str) -> npt.NDArray[np.generic]:
    if name not in archive.files:
        found = ", ".join(archive.files) or "no arrays"
        raise DataFileError(
            f"has no array `{name}` (found: {found}); expected {_LAYOUT}. "
            "Write it with numpy.savez."
        )
    try:
        array: npt.NDArray[np.generic] = archive[name]
    except _UNREADABLE as error:
        raise DataFileError(
            f"array `{name}` cannot be read without unpickling, or is damaged "
            f"({_reason(error)}); expected plain numbers. Write it with numpy.savez from a "
            "numeric array."
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataFileError(
            f"`{name}` is not a NumPy array; expected {_LAYOUT}. Write it with numpy.savez."
        )
    return array


def _reason(error: BaseException) -> str:
    """First line of a message; NumPy's advice to unpickle after all is not passed on."""
    message = str(error).partition("\n")[0] or type(error).__name__
    return "pickled or unknown contents" if "pickle" in message else message
