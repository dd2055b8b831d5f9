"""Images to train on: scikit-learn's digits, or a folder in a standard format.

A folder is recognized by the files in it, see `LAYOUTS`. Nothing is downloaded.
"""

import gzip
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
CIFAR_RECORD = 1 + 3 * 32 * 32  # one label byte, then red, green and blue planes
IDX_UINT8 = 0x08


class DataError(ValueError):
    """The folder given as `--data` holds no data set that we know, or a broken one."""


@dataclass(frozen=True)
class Images:
    """A labeled data set in memory.

    `train_x`, `test_x`: uint8 [images, channels, height, width], 0 to 255.
    `train_y`, `test_y`: int64 [images], 0 to 9.
    """

    name: str
    train_x: Bytes
    train_y: NDArray[np.int64]
    test_x: Bytes
    test_y: NDArray[np.int64]

    def __post_init__(self) -> None:
        for labels in (self.train_y, self.test_y):
            if not labels.size or labels.min() < 0 or labels.max() > 9:
                raise DataError(f"{self.name}: labels must be there and lie in 0 to 9")


@dataclass(frozen=True)
class Layout:
    """How a data set lies in a folder: glob patterns for each part, and what reads the parts.

    A part's first pattern is the name shown to the user.
    """

    name: str
    dataset: str
    parts: dict[str, Sequence[str]]
    read: Callable[[dict[str, list[Path]]], Images]

    def find(self, folder: Path) -> dict[str, list[Path]]:
        """The files of each part, sorted by name; an empty list where there is none."""
        return {
            part: _unpacked_first([path for pattern in patterns for path in folder.glob(pattern)])
            for part, patterns in self.parts.items()
        }


def _unpacked_first(paths: list[Path]) -> list[Path]:
    """Sorted by name, each file once: `x.bin` hides the `x.bin.xz` that it came from."""
    by_name = {p.name.removesuffix(".gz").removesuffix(".xz"): p for p in sorted(paths)[::-1]}
    return [by_name[name] for name in sorted(by_name)]


def load_images(folder: Path | None = None) -> Images:
    """Load the data set in `folder`; scikit-learn's digits when it is None.

    Raises DataError, naming what was looked for, when the folder holds neither layout.
    """
    if folder is None:
        return load_digits()
    layout, files = recognize(folder)
    return layout.read(files)


def recognize(folder: Path) -> tuple[Layout, dict[str, list[Path]]]:
    """Find which layout `folder` has, and its files, without reading them."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    for layout in LAYOUTS:
        files = layout.find(folder)
        if all(files.values()):
            return layout, files
    raise DataError(_nothing_found(folder))


def _nothing_found(folder: Path) -> str:
    wanted = "\n".join(
        f"  {layout.name}: " + " and ".join(patterns[0] for patterns in layout.parts.values())
        for layout in LAYOUTS
    )
    there = sorted(path.name for path in folder.iterdir())
    seen = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
    return (
        f"no data set found in {folder}. Looked for (also packed as .gz or .xz)\n{wanted}\n"
        f"The folder holds: {seen or 'nothing'}"
    )


def load_digits() -> Images:
    """The 1,797 images of 8x8 pixels inside scikit-learn, a fifth of each class for the test."""
    # Here, not above: seconds to import, and only this data set needs it.
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    y = digits.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=0
    )
    return Images("digits", train_x, train_y, test_x, test_y)


def _read_cifar(files: dict[str, list[Path]]) -> Images:
    train_x, train_y = _cifar_records(files["train"])
    test_x, test_y = _cifar_records(files["test"])
    return Images("cifar10", train_x, train_y, test_x, test_y)


def _cifar_records(paths: list[Path]) -> tuple[Bytes, NDArray[np.int64]]:
    records = np.concatenate([_one_cifar_file(path) for path in paths])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _one_cifar_file(path: Path) -> Bytes:
    content = read_bytes(path)
    if not content.size or content.size % CIFAR_RECORD:
        raise DataError(
            f"{path}: {content.size} bytes are not a whole number of CIFAR-10 records "
            f"of {CIFAR_RECORD} bytes"
        )
    return content.reshape(-1, CIFAR_RECORD)


def _read_idx(files: dict[str, list[Path]]) -> Images:
    train_x, train_y = _idx_pair(files["train images"][0], files["train labels"][0])
    test_x, test_y = _idx_pair(files["test images"][0], files["test labels"][0])
    return Images("mnist", train_x, train_y, test_x, test_y)


def _idx_pair(images: Path, labels: Path) -> tuple[Bytes, NDArray[np.int64]]:
    x, y = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if len(x) != len(y):
        raise DataError(f"{images}: {len(x)} images, but {labels}: {len(y)} labels")
    return x[:, np.newaxis], y.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read an idx file of unsigned bytes: two zeros, the type, the rank, the sizes, the data."""
    content = read_bytes(path)
    header = 4 + 4 * dimensions
    if content.size < header or content[:4].tolist() != [0, 0, IDX_UINT8, dimensions]:
        raise DataError(f"{path}: not an idx file of unsigned bytes in {dimensions} dimensions")
    shape = content[4:header].view(">u4").astype(np.int64)
    if content.size - header != shape.prod():
        raise DataError(
            f"{path}: the header says {'x'.join(map(str, shape))} bytes, "
            f"there are {content.size - header}"
        )
    return content[header:].reshape(shape)


def read_bytes(path: Path) -> Bytes:
    """The content of a file, unpacked when its name ends in .gz or .xz."""
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    try:
        return np.frombuffer(unpack(path.read_bytes()), np.uint8)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: {error}") from error


LAYOUTS = (
    Layout(
        "CIFAR-10 binary records",
        "cifar10",
        {
            "train": ("data_batch_*.bin", "data_batch_*.bin.?z", "train*.bin", "train*.bin.?z"),
            "test": ("test*.bin", "test*.bin.?z"),
        },
        _read_cifar,
    ),
    Layout(
        "MNIST idx files",
        "mnist",
        {
            "train images": ("train-images-idx3-ubyte", "train-images?idx3-ubyte*"),
            "train labels": ("train-labels-idx1-ubyte", "train-labels?idx1-ubyte*"),
            "test images": ("t10k-images-idx3-ubyte", "t10k-images?idx3-ubyte*"),
            "test labels": ("t10k-labels-idx1-ubyte", "t10k-labels?idx1-ubyte*"),
        },
        _read_idx,
    ),
)
