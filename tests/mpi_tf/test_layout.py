"""Where gradients lie, and what ranks agree on; each rank by itself."""

import numpy as np
import pytest
import tensorflow as tf
from mpi_tf import models  # noqa: F401, sets TensorFlow up

from hvd_backup import Mismatch
from hvd_backup.tensorflow.layout import GradientSpec, Layout, Memory, agree, is_table

pytestmark = pytest.mark.mpi

DENSE, SPARSE, SCALAR = (
    GradientSpec("float32", (3, 5)),
    GradientSpec("float32", (4, 2), True),
    GradientSpec("float16", ()),
)
NAMES = ["kernel", "table", "gain"]


def test_a_variable_is_a_table_if_at_first_its_gradients_were_sparse_and_none_was_dense():
    assert is_table([True, None], (4, 2), by_rows=False)
    assert not is_table([True, False], (4, 2), by_rows=False)
    assert not is_table([None, None], (4, 2), by_rows=False)
    assert is_table([None, None], (4, 2), by_rows=True)
    assert not is_table([None, None], (), by_rows=True)
    assert not is_table([False, None], (4, 2), by_rows=True)


def test_ranks_with_other_gradients_are_told_which():
    words = r"variable 1, table: rank 0: float16\[4, 2\], rank 1: float32\[4, 2\], rank 2: none"
    forms = [[DENSE, GradientSpec(dtype, (4, 2)), SCALAR] for dtype in ("float16", "float32")]
    with pytest.raises(Mismatch, match=words):
        agree(NAMES, [*forms, [DENSE, None, SCALAR]])
    agree(NAMES, [forms[0], forms[0]])


def test_views_do_not_overlap_are_aligned_and_have_their_shapes():
    layout = Layout([DENSE, SPARSE, SCALAR, None, DENSE])
    assert [dtype for dtype, _ in layout.flats] == ["float32", "float16", "float32"]
    flats = [np.zeros(n * np.dtype(dtype).itemsize, np.uint8) for dtype, n in layout.flats]
    views = layout.gradients(flats)
    assert [None if v is None else v.shape for v in views] == [(3, 5), (4, 2), (), None, (3, 5)]
    for i, view in enumerate(views):
        if view is not None:
            view[...] = i + 1
    for i, view in enumerate(views):
        assert view is None or (view == i + 1).all()
    layout.present(flats)[:] = 1
    touched = layout.touched(flats)
    assert {i: rows.shape for i, rows in touched.items()} == {1: (4,)}
    assert not touched[1].any()
    copies = layout.dense_copies(flats)
    assert copies[1] is None
    for i in (0, 2, 4):
        assert copies[i].ctypes.data % 64 == 0
        assert not np.shares_memory(copies[i], views[i])
        np.testing.assert_array_equal(copies[i], views[i])


def test_memory_is_aligned_and_used_again_only_when_no_view_of_it_is_left():
    assert all(Memory().take(n).ctypes.data % 64 == 0 for n in range(1, 300, 7))
    memory = Memory()
    first, second = memory.take(400), memory.take(400)
    assert not np.shares_memory(first, second)
    address, view = first.ctypes.data, first.view(np.float32)[10:20].reshape(2, 5)
    del first
    assert memory.take(400).ctypes.data != address  # the view is left
    del view
    assert memory.take(400).ctypes.data == address
    tensor = tf.function(lambda: tf.numpy_function(lambda: memory.take(400), [], tf.uint8))()
    taken = [memory.take(400) for _ in range(3)]
    value = np.array(tensor)
    for block in taken:
        block[:] = ~value[0]
    np.testing.assert_array_equal(tensor, value)
