"""The data sets of the demo: written here in their formats, and the real ones if at hand."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from hvd_backup.study.data import DataError, Images, load_images, read_idx, recognize

REAL = Path(__file__).parents[3] / "shared" / "data"


def cifar_records(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 3072), np.uint8)
    return np.concatenate([np.arange(count, dtype=np.uint8)[:, np.newaxis] % 10, pixels], axis=1)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_mnist(folder: Path, *, packed: bool, train: int = 12, test: int = 4) -> np.ndarray:
    images = np.random.default_rng(1).integers(0, 256, (train, 28, 28), np.uint8)
    contents = {
        "train-images-idx3-ubyte": images,
        "train-labels-idx1-ubyte": np.arange(train, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": images[:test],
        "t10k-labels-idx1-ubyte": np.arange(test, dtype=np.uint8) % 10,
    }
    for name, array in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return images


def check(images: Images, shape: tuple[int, ...]) -> None:
    assert images.train_x.shape[1:] == images.test_x.shape[1:] == shape
    assert images.train_x.dtype == images.test_x.dtype == np.uint8
    assert images.train_y.dtype == np.int64
    assert len(images.train_x) == len(images.train_y)
    assert len(images.test_x) == len(images.test_y)


def test_without_a_folder_the_digits_of_scikit_learn_are_loaded():
    images = load_images()
    check(images, (1, 8, 8))
    assert images.name == "digits"
    assert len(images.train_y) + len(images.test_y) == 1797
    assert images.train_x.max() == 255
    assert np.bincount(images.test_y).min() >= 34  # a fifth of each class


def test_the_digits_are_split_the_same_way_every_time():
    assert np.array_equal(load_images().test_x, load_images().test_x)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_binary_records_are_read(tmp_path, packed):
    parts = {"data_batch_1.bin": (7, 1), "data_batch_2.bin": (5, 2), "test_batch.bin": (3, 3)}
    for name, (count, seed) in parts.items():
        content = cifar_records(count, seed).tobytes()
        if packed:
            (tmp_path / f"{name}.xz").write_bytes(lzma.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    images = load_images(tmp_path)
    check(images, (3, 32, 32))
    assert (len(images.train_x), len(images.test_x)) == (12, 3)
    second = cifar_records(5, 2)
    assert images.train_y[7:].tolist() == second[:, 0].tolist()
    assert images.train_x[7, 1, 0, 5] == second[0, 1 + 1024 + 5]  # green plane, first row


def test_a_packed_file_beside_its_unpacked_twin_counts_once(tmp_path):
    content = cifar_records(4, 1).tobytes()
    (tmp_path / "train.bin").write_bytes(content)
    (tmp_path / "train.bin.xz").write_bytes(lzma.compress(content))
    (tmp_path / "test.bin").write_bytes(content)
    assert len(load_images(tmp_path).train_x) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_idx_files_are_read(tmp_path, packed):
    written = write_mnist(tmp_path, packed=packed)
    images = load_images(tmp_path)
    check(images, (1, 28, 28))
    assert np.array_equal(images.train_x[:, 0], written)
    assert images.test_y.tolist() == [0, 1, 2, 3]


def test_a_folder_is_recognized_without_reading_it(tmp_path):
    write_mnist(tmp_path, packed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    assert recognize(tmp_path)[0].dataset == "mnist"


def test_an_unknown_folder_is_an_error_that_names_what_was_looked_for(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError) as error:
        load_images(tmp_path)
    for words in (str(tmp_path), "data_batch_*.bin", "train-images-idx3-ubyte", "holiday.jpg"):
        assert words in str(error.value)


def test_a_missing_folder_is_an_error():
    with pytest.raises(DataError, match="/does/not/exist is not a folder"):
        load_images(Path("/does/not/exist"))


def test_half_a_data_set_is_an_error(tmp_path):
    write_mnist(tmp_path, packed=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no data set found"):
        load_images(tmp_path)


def test_a_cut_cifar_file_is_an_error(tmp_path):
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(cifar_records(2, 1).tobytes()[:-1])
    with pytest.raises(DataError, match=r"train\.bin: 6145 bytes .* records of 3073 bytes"):
        load_images(tmp_path)


def test_labels_beyond_ten_classes_are_an_error(tmp_path):
    records = cifar_records(2, 1)
    records[1, 0] = 10
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(records.tobytes())
    with pytest.raises(DataError, match="labels"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "not an idx file"),  # float32
        (idx(np.zeros((2, 2), np.uint8)), "not an idx file"),  # two dimensions
        (idx(np.zeros(5, np.uint8))[:-1], "header says 5 bytes, there are 4"),
    ],
)
def test_a_broken_idx_file_is_an_error(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, dimensions=1)


def test_a_file_that_is_not_packed_as_its_name_says_is_an_error(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(b"plain")
    with pytest.raises(DataError, match=r"labels\.gz"):
        read_idx(path, dimensions=1)


def test_as_many_images_as_labels_are_needed(tmp_path):
    write_mnist(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match=r"12 images, but .* 11 labels"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [("mnist", (1, 28, 28), (60000, 10000)), ("cifar10", (3, 32, 32), (20000, 5000))],
)
def test_the_real_data_sets_are_read(name, shape, counts):
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    images = load_images(folder)
    check(images, shape)
    assert images.name == name
    assert (len(images.train_x), len(images.test_x)) == counts
    assert np.bincount(images.train_y).min() > counts[0] / 10 * 0.9
