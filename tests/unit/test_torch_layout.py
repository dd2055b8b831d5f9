"""Where gradients lie in flat buffers."""

import numpy as np
import pytest
import torch

from hvd_backup.torch.layout import GradientLayout


def layout_of(*tensors):
    return GradientLayout(list(tensors), [f"p{i}" for i in range(len(tensors))])


def buffers(layout):
    sizes = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
    return [np.zeros(sizes[dtype] * count, np.uint8) for dtype, count in layout.flats]


def test_there_is_one_buffer_per_dtype_and_one_for_presence():
    layout = layout_of(
        torch.zeros(3), torch.zeros(5, dtype=torch.float64), torch.zeros(2), torch.zeros(2).half()
    )
    assert [dtype for dtype, _ in layout.flats] == ["float32", "float64", "float16", "float32"]
    assert layout.flats[-1] == ("float32", 4)


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


def test_presence_is_the_last_buffer():
    layout = layout_of(torch.zeros(3), torch.zeros(4).double())
    flats = buffers(layout)
    layout.presence(flats)[:] = [1, 0]
    assert flats[-1].view(np.float32).tolist() == [1, 0]


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
