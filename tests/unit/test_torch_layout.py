"""Where gradients lie in flat buffers."""

import types

import numpy as np
import pytest
import torch

from hvd_backup import _core, errors
from hvd_backup.torch.ddp_hook import DdpHook
from hvd_backup.torch.device import check_devices
from hvd_backup.torch.layout import GradientLayout


def layout_of(*tensors):
    return GradientLayout(list(tensors), [f"p{i}" for i in range(len(tensors))])


def buffers(layout):
    sizes = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
    return [np.zeros(sizes[dtype] * count, np.uint8) for dtype, count in layout.flats]


def test_there_is_one_buffer_per_dtype_and_one_for_marks():
    layout = layout_of(
        torch.zeros(3), torch.zeros(5, dtype=torch.float64), torch.zeros(2), torch.zeros(2).half()
    )
    assert [dtype for dtype, _ in layout.flats] == ["float32", "float64", "float16", "float32"]
    assert layout.flats[-1] == ("float32", 2 * 4)


def test_gradients_have_the_shapes_of_their_parameters_and_do_not_overlap():
    params = [
        torch.zeros(3),
        torch.zeros(2, 5),
        torch.zeros(()),
        torch.zeros(0, 4),
        torch.zeros(17),
    ]
    layout = layout_of(*params)
    flats = buffers(layout)
    gradients = layout.gradients(flats)
    for i, (param, gradient) in enumerate(zip(params, gradients, strict=True)):
        assert gradient.shape == param.shape
        gradient.fill_(i + 1)
    for i, gradient in enumerate(gradients):
        assert torch.equal(gradient, torch.full_like(gradient, i + 1))
    assert sorted(set(flats[0].view(np.float32))) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_begin_at_cache_lines(dtype):
    layout = layout_of(*[torch.zeros(n, dtype=dtype) for n in (1, 63, 65, 7)])
    views = layout.gradients(buffers(layout))
    first = views[0].data_ptr()
    assert all((view.data_ptr() - first) % 64 == 0 for view in views)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        torch.zeros(3, 4).t(),
        torch.zeros(3, 1, 4),
        torch.zeros(4, 3, 1, 1).to(memory_format=torch.channels_last),
    ],
)
def test_dense_parameters_keep_their_strides(tensor):
    layout = layout_of(tensor)
    assert layout.gradients(buffers(layout))[0].stride() == tensor.stride()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4, 6)[:, ::2], torch.zeros(3, 1).expand(3, 4), torch.zeros(8)[::2]],
)
def test_parameters_with_gaps_get_row_major_gradients(tensor):
    layout = layout_of(tensor)
    gradient = layout.gradients(buffers(layout))[0]
    assert gradient.is_contiguous()
    assert gradient.shape == tensor.shape


def test_the_last_buffer_has_two_marks_per_parameter_and_one_per_row_of_a_table():
    layout = layout_of(torch.zeros(3), torch.zeros(4, 2).double(), torch.zeros(2, 3, 5))
    assert layout.flats[-1] == ("float32", 2 * 3 + 4 + 2)
    flats = buffers(layout)
    marks = layout.marks(flats)
    marks.dense[:] = [1, 0, 0]
    marks.sparse[:] = [0, 1, 0]
    assert marks.rows[0] is None
    marks.rows[1][2] = 5
    marks.rows[2][:] = 7
    assert flats[-1].view(np.float32).tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 7, 7]


def test_what_travels_may_have_another_dtype_and_shape_and_has_no_rows_then():
    params = [torch.zeros(4, 2), torch.zeros(6).double()]
    sent = [torch.zeros(8).half(), params[1]]
    layout = GradientLayout(params, ["a", "b"], sent)
    assert layout.flats == [("float16", 32), ("float64", 8), ("float32", 4)]
    flats = buffers(layout)
    assert [tuple(g.shape) for g in layout.gradients(flats)] == [(8,), (6,)]
    assert layout.marks(flats).rows == [None, None]


def test_a_parameter_that_would_travel_as_something_else_is_named():
    with pytest.raises(TypeError, match=r"'a' travels as torch\.int8; gradients can be one of"):
        GradientLayout([torch.zeros(3)], ["a"], [torch.zeros(3, dtype=torch.int8)])


def test_the_signature_tells_names_dtypes_shapes_and_strides():
    layout = layout_of(torch.zeros(2, 3), torch.zeros(3, 2).t())
    assert layout.signature == [
        ("p0", "float32", (2, 3), (3, 1)),
        ("p1", "float32", (2, 3), (1, 2)),
    ]


def test_a_model_without_parameters_has_a_layout():
    assert layout_of().flats == [("float32", 0)]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float8_e4m3fn])
def test_a_parameter_that_cannot_be_averaged_is_named(dtype):
    with pytest.raises(TypeError, match=rf"'p0' is {dtype}; gradients can be one of float16"):
        layout_of(torch.zeros(3, dtype=dtype))


def test_a_parameter_on_another_device_is_named():
    with pytest.raises(TypeError, match="'p0' is on meta"):
        layout_of(torch.zeros(3, device="meta"))


def test_runs_cover_some_parameters_and_nobody_elses():
    layout = layout_of(
        torch.zeros(3),
        torch.zeros(5, dtype=torch.float64),
        torch.zeros(20),
        torch.zeros(7),
        torch.zeros(2),
    )
    everything = layout.runs(range(5))
    assert [(run.flat, run.offset, run.indices) for run in everything] == [
        (0, 0, [0, 2, 3, 4]),
        (1, 0, [1]),
    ]
    some = layout.runs([0, 1, 3, 4])
    assert [run.indices for run in some] == [[0], [3, 4], [1]]
    flats = buffers(layout)
    gradients = layout.gradients(flats)
    for run in some:
        for i, (first, count) in zip(run.indices, run.slices, strict=True):
            bytes_ = flats[run.flat].ctypes.data + run.offset + first * gradients[i].element_size()
            assert (bytes_, count) == (gradients[i].data_ptr(), gradients[i].numel())


def test_a_gpu_that_cannot_be_used_is_an_error_that_says_why():
    if _core.cuda_status().devices:
        pytest.skip("there is a GPU")
    on_gpu = types.SimpleNamespace(device=torch.device("cuda:0"))
    with pytest.raises(errors.DeviceError, match=r"'w' is on cuda:0, but .*hvd-backup doctor"):
        check_devices([torch.zeros(1), on_gpu], lambda _: "w")


def test_a_device_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="'p0' is on meta; gradients are exchanged from the CPU"):
        layout_of(torch.zeros(3, device="meta"))


def test_the_ddp_hook_takes_no_parameters_of_another_device():
    model = types.SimpleNamespace(module=torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(TypeError, match=r"'weight' is on meta; gradients are exchanged from"):
        DdpHook(model, 0, {})
