"""Where tensors lie in flat buffers, and their marks."""

import numpy as np
import pytest

from hvd_backup.rounds.layout import ALIGN, ITEMSIZE, FlatLayout, MarkLayout


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_tensor_begins_on_a_line_and_none_overlaps(dtype):
    layout = FlatLayout()
    end = 0
    for count in (1, 0, 63, 64, 65, 7):
        place = layout.add(dtype, count)
        assert place.flat == 0
        assert place.offset * ITEMSIZE[dtype] % ALIGN == 0
        assert place.offset >= end
        end = place.offset + count
    [(name, elements)] = layout.flats
    assert name == dtype
    assert elements >= end


def test_each_dtype_has_a_buffer_in_the_order_of_its_first_tensor():
    layout = FlatLayout()
    places = [layout.add(dtype, 3) for dtype in ("float64", "float16", "float64")]
    assert [place.flat for place in places] == [0, 1, 0]
    assert [dtype for dtype, _ in layout.flats] == ["float64", "float16"]


def test_marks_of_tensors_and_rows_do_not_overlap_and_fill_the_buffer():
    marks = MarkLayout([2, 0, 3], kinds=2)
    flat = np.zeros(marks.count, np.float32).view(np.uint8)
    views = [marks.of_kind(flat, 0), marks.of_kind(flat, 1)]
    rows = marks.of_rows(flat)
    assert rows[1] is None
    for number, view in enumerate([*views, rows[0], rows[2]], start=1):
        assert not view.any()
        view[:] = number
    assert flat.view(np.float32).tolist() == [1] * 3 + [2] * 3 + [3] * 2 + [4] * 3
