"""What Horovod's calls do with inputs that are not dense float32.

`make test-launchers` runs this against Horovod itself, too.
"""

import pytest
import torch
from mpi.helpers import RANK, SIZE

pytestmark = pytest.mark.mpi

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
LARGE = {torch.int16: 2049, torch.int32: 2049, torch.int64: 70000}  # no half holds these


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.complex64, torch.complex128])
def test_compression_leaves_what_is_not_floating_alone(hvd, dtype):
    tensor = torch.ones(3, dtype=dtype)
    packed, context = hvd.Compression.fp16.compress(tensor)
    assert packed is tensor
    assert hvd.Compression.fp16.decompress(packed, context) is tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compression_of_floats_travels_in_half_and_comes_back(hvd, dtype):
    packed, context = hvd.Compression.fp16.compress(torch.full((3,), 1.5, dtype=dtype))
    assert packed.dtype == torch.float16
    back = hvd.Compression.fp16.decompress(packed, context)
    assert back.dtype == dtype
    assert back.tolist() == [1.5] * 3


@pytest.mark.parametrize(("dtype", "value"), LARGE.items())
def test_compressed_calls_on_integers_are_exact(hvd, dtype, value):
    fp16 = hvd.Compression.fp16
    mine = torch.full((SIZE,), value + RANK, dtype=dtype)
    total = value * SIZE + sum(range(SIZE))
    assert hvd.allreduce(mine, op=hvd.Sum, compression=fp16).tolist() == [total] * SIZE
    grouped = hvd.grouped_allreduce([mine, mine.float()], op=hvd.Sum, compression=fp16)
    assert grouped[0].tolist() == [total] * SIZE
    assert grouped[1].dtype == torch.float32
    assert hvd.reducescatter(mine, op=hvd.Sum, compression=fp16).tolist() == [total]
    (share,) = hvd.grouped_reducescatter([mine], op=hvd.Sum, compression=fp16)
    assert share.tolist() == [total]
