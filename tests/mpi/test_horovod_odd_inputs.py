"""What Horovod's calls do with inputs that are not dense float32.

`make test-launchers` runs this against Horovod itself, too.
"""

import pytest
import torch
from mpi.helpers import RANK, SIZE

pytestmark = pytest.mark.mpi

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
LARGE = {torch.int32: 2049, torch.int64: 70000}  # no half holds these


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


def test_reducescatter_by_another_operation_is_an_internal_error_in_horovods_words(hvd):
    words = "Reducescatter currently only supports AVERAGE and SUM"
    for op in (hvd.Adasum, hvd.Min, hvd.Max, hvd.Product):
        for call in (
            lambda op=op: hvd.reducescatter(torch.ones(SIZE), op=op),
            lambda op=op: hvd.reducescatter_async(torch.ones(SIZE), op=op),
            lambda op=op: hvd.grouped_reducescatter([torch.ones(SIZE)], op=op),
        ):
            with pytest.raises(hvd.HorovodInternalError, match=words):
                call()
    after = hvd.reducescatter(torch.ones(SIZE), op=hvd.Sum, name="after")
    assert after.tolist() == [SIZE]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.float16, torch.float64])
def test_broadcast_parameters_sends_buffers_of_every_shape_and_dtype(hvd, dtype):
    ours = [torch.full(shape, RANK).to(dtype) for shape in [(), (1,), (3, 2)]]
    hvd.broadcast_parameters([(f"t{i}", t) for i, t in enumerate(ours)], root_rank=SIZE - 1)
    for tensor in ours:
        assert torch.equal(tensor, torch.full(tensor.shape, SIZE - 1).to(dtype))


def fresh_optimizers():
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2)), frozen]
        yield params, make(params, lr=0.1)


def test_a_fresh_optimizers_gradients_are_zeros_after_its_state_was_broadcast(hvd):
    for params, opt in fresh_optimizers():
        hvd.broadcast_optimizer_state(opt, root_rank=0)
        for param in params[:2]:
            assert torch.equal(param.grad, torch.zeros_like(param))
        assert params[2].grad is None


def test_a_fresh_optimizers_gradients_are_sparse_where_its_own_are(hvd):
    table = torch.nn.Embedding(4, 2, sparse=True)
    for opt in (torch.optim.SparseAdam([table.weight]), torch.optim.SGD([table.weight], lr=0.1)):
        table.weight.grad = None
        hvd.broadcast_optimizer_state(opt, root_rank=0, model=table)
        assert table.weight.grad.is_sparse
        assert table.weight.grad.to_dense().tolist() == [[0.0, 0.0]] * 4


def test_a_distributed_optimizers_gradients_are_zeros_after_its_state_was_broadcast(hvd):
    p = torch.nn.Parameter(torch.ones(3))
    opt = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=0.1), named_parameters=[("p", p)])
    hvd.broadcast_optimizer_state(opt, root_rank=0)
    assert p.grad.tolist() == [0.0] * 3
    (p * (RANK + 1)).sum().backward()
    opt.step()
    mean = sum(range(1, SIZE + 1)) / SIZE
    torch.testing.assert_close(p.detach(), torch.ones(3) - 0.1 * mean)


def test_the_gradients_of_an_optimizer_with_a_state_stay_as_they_are(hvd):
    p = torch.nn.Parameter(torch.ones(3))
    opt = torch.optim.Adam([p])
    p.sum().backward()
    opt.step()
    hvd.broadcast_optimizer_state(opt, root_rank=0)
    assert p.grad.tolist() == [1.0] * 3


def test_a_distributed_optimizer_knows_its_parameters_names(hvd):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    named = list(model.named_parameters())
    opt = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), iter(named))
    assert opt._parameter_names == {param: name for name, param in named}
    assert list(opt._parameter_names.values()) == ["0.bias", "0.weight", "1.weight"]
    p, q = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    unnamed = hvd.DistributedOptimizer(torch.optim.SGD([{"params": [p]}, {"params": [q]}], lr=0.1))
    assert unnamed._parameter_names == {p: "allreduce.noname.0.0", q: "allreduce.noname.1.0"}
