"""The demo's data sets: the fixed split, and refusals of files that are not what they should be."""

from __future__ import annotations

import lzma
import os
import struct
import tokenize
import zipfile
import zlib

import numpy as np
import pytest

from ssmreduce.demo.data import load_digits, load_smnist
from ssmreduce.errors import DataFileError


def arrays(rng, **changes):
    content = {
        "train_images": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "train_labels": np.arange(6, dtype=np.uint8),
        "test_images": rng.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        "test_labels": np.arange(4, dtype=np.uint8),
    }
    content.update(changes)
    return {name: array for name, array in content.items() if array is not None}


def test_digits_are_split_the_same_way_every_time():
    first, second = load_digits(), load_digits()
    assert first.train_sequences.shape == (1347, 64)
    assert first.test_sequences.shape == (450, 64)
    np.testing.assert_array_equal(first.test_sequences, second.test_sequences)
    assert first.train_sequences.min() == 0.0
    assert first.train_sequences.max() == 1.0
    train, test = np.bincount(first.train_labels), np.bincount(first.test_labels)
    assert np.abs(test - 0.25 * (train + test)).max() < 1.0


def test_smnist_reads_images_row_by_row(rng, tmp_path):
    path = tmp_path / "mnist.npz"
    content = arrays(rng)
    np.savez(path, **content)
    data = load_smnist(path)
    assert data.train_sequences.shape == (6, 784)
    assert data.train_sequences.dtype == np.float32
    np.testing.assert_allclose(
        data.test_sequences[1, 28:56], content["test_images"][1, 1] / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(data.train_labels, content["train_labels"])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"test_labels": None}, "no array `test_labels`"),
        ({"train_images": np.zeros((6, 28, 27), np.uint8)}, r"\(6, 28, 27\) uint8"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "float32"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8)}, r"\(0, 28, 28\)"),
        ({"train_labels": np.zeros(5, np.uint8)}, r"`train_labels` is \(5,\)"),
        ({"test_labels": np.zeros(4)}, "float64"),
        ({"test_labels": np.array([0, 1, 2, 10])}, "0 … 10"),
        ({"test_labels": np.array([0, 1, 2, -1])}, "-1 … 2"),
        ({"train_labels": np.array([{}] * 6, dtype=object)}, "`train_labels` cannot be read"),
    ],
)
def test_wrong_arrays_are_refused(rng, tmp_path, changes, found):
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays(rng, **changes))
    with pytest.raises(DataFileError, match=found) as caught:
        load_smnist(path)
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataFileError, match="no such file"):
        load_smnist(tmp_path / "mnist.npz")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataFileError, match="cannot be opened"):
        load_smnist(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_other_files_are_refused_without_unpickling(tmp_path, content):
    path = tmp_path / "mnist.npz"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="cannot be read") as caught:
        load_smnist(path)
    assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("place", ["load", "lib.npyio.NpzFile.__getitem__"])
@pytest.mark.parametrize(
    "error",
    [
        OSError,
        ValueError,
        EOFError,
        SyntaxError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
        OverflowError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ],
)
def test_whatever_numpy_raises_is_a_data_file_error(error, place, rng, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error("no good")

    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays(rng))
    monkeypatch.setattr(f"numpy.{place}", fail)
    with pytest.raises(DataFileError, match="no good"):
        load_smnist(path)


def test_arrays_larger_than_any_memory_are_refused(rng, tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays(rng, train_images=None))
    with zipfile.ZipFile(path, "a") as archive, archive.open("train_images.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**45, 28, 28)}
        np.lib.format.write_array_header_1_0(member, header)
    with pytest.raises(DataFileError, match="train_images"):
        load_smnist(path)


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "mnist.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(DataFileError, match="single array"):
        load_smnist(path)


def test_damaged_members_are_refused(rng, tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays(rng))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(bytes(content))
    with pytest.raises(DataFileError, match="train_images"):
        load_smnist(path)


def test_what_unpacks_to_too_much_is_refused(rng, tmp_path, monkeypatch):
    """A thousand times larger than it is on disk, before anything is unpacked."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **arrays(rng), more=np.zeros(2**20, np.uint8))
    monkeypatch.setattr("ssmreduce.demo.data._LARGEST", 2**19)
    monkeypatch.setattr("numpy.lib.npyio.NpzFile.__getitem__", None)
    with pytest.raises(
        DataFileError, match=r"bomb.npz: unpacks to \d+ bytes; expected at most 524288"
    ):
        load_smnist(path)


def test_an_archive_that_hides_its_size_is_refused(rng, tmp_path):
    """Declared as 1 KiB of images, with a header of more: no more is unpacked than declared."""
    path = tmp_path / "mnist.npz"
    images = np.zeros((2**14, 28, 28), np.uint8)
    np.savez_compressed(path, **arrays(rng, train_images=images))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        true = archive.getinfo("train_images.npy").file_size
    declared = struct.pack("<I", true)
    assert declared in content
    path.write_bytes(content.replace(declared, struct.pack("<I", 1024)))
    with pytest.raises(DataFileError, match="train_images"):
        load_smnist(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_numpy_does_not_write_is_refused(rng, tmp_path, packing):
    """Four KiB of them can unpack to gigabytes at once."""
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays(rng))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", bytes(100), packing)
    with pytest.raises(DataFileError, match="packed in a way"):
        load_smnist(path)


@pytest.mark.skipif(os.name == "nt", reason="no named pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "mnist.npz"
    os.mkfifo(path)
    with pytest.raises(DataFileError, match="it is a pipe or a device"):
        load_smnist(path)
    with pytest.raises(DataFileError, match="/dev/null: cannot be opened"):
        load_smnist("/dev/null")


@pytest.mark.parametrize("length", [10, 500, -30])
def test_a_truncated_file_is_refused(rng, tmp_path, length):
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays(rng))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataFileError, match="cannot be read"):
        load_smnist(path)
