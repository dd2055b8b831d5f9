"""Horovod's collectives for torch. `make test-launchers` runs this against Horovod itself, too."""

import pytest
import torch
from mpi.helpers import RANK, SIZE, same_everywhere

pytestmark = pytest.mark.mpi

REDUCED = [torch.int32, torch.int64, torch.float16, torch.float32, torch.float64]
MOVED = [torch.uint8, torch.int8, torch.int16, *REDUCED]
EVERY_SHAPE = [(1,), (5,), (3, 4), (2, 2, 2)]


def of_rank(rank, dtype=torch.float32, shape=(3, 4)):
    """Small whole numbers: sums are exact in every dtype and order."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 + 3 * rank) % 5 + 1).reshape(shape).to(dtype)


def everybody(dtype=torch.float32, shape=(3, 4)):
    return torch.stack([of_rank(rank, dtype, shape) for rank in range(SIZE)])


def combined(hvd, stack, op):
    if op == hvd.Average:
        mean = stack.double().sum(0) / SIZE
        return (mean.trunc() if not stack.is_floating_point() else mean).to(stack.dtype)
    combine = {
        hvd.Sum: lambda x: x.sum(0),
        hvd.Min: lambda x: x.amin(0),
        hvd.Max: lambda x: x.amax(0),
        hvd.Product: lambda x: x.prod(0),
    }[op]
    return combine(stack).to(stack.dtype)


def close(got, expected):
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if got.dtype == torch.float16 else {}
    torch.testing.assert_close(got, expected, **tolerance)


def ops_of(hvd):
    return [hvd.Sum, hvd.Average, hvd.Min, hvd.Max, hvd.Product]


@pytest.mark.parametrize("dtype", REDUCED)
def test_allreduce_and_its_variants_combine_all_ranks(hvd, dtype):
    for shape in EVERY_SHAPE:
        for op in ops_of(hvd):
            tensor = of_rank(RANK, dtype, shape)
            expected = combined(hvd, everybody(dtype, shape), op)
            close(hvd.allreduce(tensor, op=op), expected)
            close(hvd.synchronize(hvd.allreduce_async(tensor, op=op)), expected)
            assert torch.equal(tensor, of_rank(RANK, dtype, shape))
            in_place = tensor.clone()
            assert hvd.allreduce_(in_place, op=op) is in_place
            close(in_place, expected)
            in_place = tensor.clone()
            assert hvd.synchronize(hvd.allreduce_async_(in_place, op=op)) is in_place
            close(in_place, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float32, torch.float64])
def test_grouped_allreduce_combines_position_by_position(hvd, dtype):
    shapes = [(3,), (2, 2), (1,)]
    mine = [of_rank(RANK, dtype, shape) for shape in shapes]
    for op in ops_of(hvd):
        expected = [combined(hvd, everybody(dtype, shape), op) for shape in shapes]
        got = [
            hvd.grouped_allreduce(mine, op=op),
            hvd.synchronize(hvd.grouped_allreduce_async(mine, op=op)),
            hvd.grouped_allreduce_([t.clone() for t in mine], op=op),
            hvd.synchronize(hvd.grouped_allreduce_async_([t.clone() for t in mine], op=op)),
        ]
        for results in got:
            assert len(results) == 3
            for one, other in zip(results, expected, strict=True):
                close(one, other)


def test_factors_scale_what_goes_in_and_what_comes_out(hvd):
    for dtype in REDUCED:
        tensor = of_rank(RANK, dtype)
        total = everybody(dtype).double().sum(0)
        for before, after in [(2.0, 1.0), (1.0, 3.0), (2.0, 0.5)]:
            got = hvd.allreduce(tensor, op=hvd.Sum, prescale_factor=before, postscale_factor=after)
            close(got, (total * before * after).to(dtype))
    # Integers are scaled in float64 and cut off.
    got = hvd.allreduce(torch.tensor([5, -5]), op=hvd.Sum, prescale_factor=0.5)
    assert got.tolist() == [2 * SIZE, -2 * SIZE]


def test_the_older_argument_average_still_works(hvd):
    tensor = of_rank(RANK)
    with pytest.warns(DeprecationWarning, match="Parameter `average` has been replaced with `op`"):
        close(hvd.allreduce(tensor, average=True), everybody().mean(0))
    with pytest.warns(DeprecationWarning, match="removed in v1.0"):
        close(hvd.allreduce(tensor, False), everybody().sum(0))
    with pytest.raises(ValueError, match="The op parameter supersedes average"):
        hvd.allreduce(tensor, average=True, op=hvd.Sum)


def test_compression_travels_in_half_and_gives_back_the_dtype(hvd):
    tensor = of_rank(RANK)
    got = hvd.allreduce(tensor, op=hvd.Sum, compression=hvd.Compression.fp16)
    assert got.dtype == torch.float32
    close(got, everybody().sum(0))


@pytest.mark.parametrize("dtype", MOVED)
def test_allgather_concatenates_rows_of_any_number(hvd, dtype):
    pieces = [of_rank(rank, dtype, (rank % 3 + 1, 2)) for rank in range(SIZE)]
    expected = torch.cat(pieces)
    assert torch.equal(hvd.allgather(pieces[RANK]), expected)
    assert torch.equal(hvd.synchronize(hvd.allgather_async(pieces[RANK], name="g")), expected)
    first, second = hvd.grouped_allgather([pieces[RANK], pieces[RANK][:1]])
    assert torch.equal(first, expected)
    assert torch.equal(second, torch.cat([piece[:1] for piece in pieces]))
    first, _ = hvd.synchronize(hvd.grouped_allgather_async([pieces[RANK], pieces[RANK]]))
    assert torch.equal(first, expected)


@pytest.mark.parametrize("dtype", MOVED)
def test_broadcast_gives_the_roots_tensor(hvd, dtype):
    for root in {0, SIZE - 1}:
        tensor, expected = of_rank(RANK, dtype), of_rank(root, dtype)
        assert torch.equal(hvd.broadcast(tensor, root_rank=root), expected)
        assert torch.equal(hvd.synchronize(hvd.broadcast_async(tensor, root)), expected)
        assert torch.equal(tensor, of_rank(RANK, dtype))
        in_place = tensor.clone()
        assert hvd.broadcast_(in_place, root) is in_place
        assert torch.equal(in_place, expected)
        in_place = tensor.clone()
        hvd.synchronize(hvd.broadcast_async_(in_place, root, name="b"))
        assert torch.equal(in_place, expected)


@pytest.mark.parametrize("dtype", MOVED)
def test_alltoall_sends_rows_by_splits(hvd, dtype):
    # Rank r sends c + 1 rows of the value r to rank c.
    splits = torch.arange(1, SIZE + 1, dtype=torch.int32)
    tensor = torch.full((int(splits.sum()), 2), RANK).to(dtype)
    expected = torch.arange(SIZE).repeat_interleave(RANK + 1)[:, None].repeat(1, 2).to(dtype)
    got, received = hvd.alltoall(tensor, splits=splits)
    assert torch.equal(got, expected)
    assert received.dtype == torch.int32
    assert received.tolist() == [RANK + 1] * SIZE
    got, received = hvd.synchronize(hvd.alltoall_async(tensor, splits.tolist()))
    assert torch.equal(got, expected)
    assert received.tolist() == [RANK + 1] * SIZE


def test_alltoall_without_splits_shares_equally_and_returns_no_splits(hvd):
    tensor = torch.arange(2 * SIZE) + 100 * RANK
    expected = torch.cat([torch.arange(2 * RANK, 2 * RANK + 2) + 100 * r for r in range(SIZE)])
    got = hvd.alltoall(tensor)
    assert torch.equal(got, expected)


def test_alltoall_may_send_nothing(hvd):
    """Everything goes to rank 0."""
    splits = torch.zeros(SIZE, dtype=torch.int32)
    splits[0] = 2
    got, received = hvd.alltoall(torch.full((2,), float(RANK)), splits=splits)
    assert received.tolist() == [2 if RANK == 0 else 0] * SIZE
    assert got.tolist() == ([r for r in range(SIZE) for _ in "ab"] if RANK == 0 else [])


def test_splits_that_cannot_be_are_refused_in_horovods_words(hvd):
    for splits, words in [
        ([1] * (SIZE + 1), "Number of entries in splits does not equal number of workers"),
        ([3] * SIZE, "Sum of splits entries is greater than the first dimension of tensor"),
    ]:
        with pytest.raises(ValueError, match=words):
            hvd.alltoall(torch.ones(2 * SIZE), splits=torch.tensor(splits, dtype=torch.int32))
    if SIZE > 1:
        with pytest.raises(ValueError, match="not an even multiple of the number of workers"):
            hvd.alltoall(torch.ones(SIZE + 1))
    with pytest.raises(ValueError, match="1D splits tensor"):
        hvd.alltoall(torch.ones(SIZE), splits=torch.ones(SIZE, 1, dtype=torch.int32))


@pytest.mark.parametrize("dtype", REDUCED)
def test_reducescatter_shares_the_rows_the_first_ranks_get_more(hvd, dtype):
    rows = 2 * SIZE + 1
    stack = everybody(dtype, (rows, 2))
    mine = torch.tensor_split(torch.arange(rows), SIZE)[RANK]
    for op in (hvd.Sum, hvd.Average):
        expected = combined(hvd, stack, op)[mine]
        close(hvd.reducescatter(stack[RANK], op=op), expected)
        close(hvd.synchronize(hvd.reducescatter_async(stack[RANK], op=op, name="r")), expected)
        for results in (
            hvd.grouped_reducescatter([stack[RANK], stack[RANK][:SIZE]], op=op),
            hvd.synchronize(
                hvd.grouped_reducescatter_async([stack[RANK], stack[RANK][:SIZE]], op=op)
            ),
        ):
            close(results[0], expected)
            close(results[1], combined(hvd, stack, op)[RANK : RANK + 1])
    got = hvd.reducescatter(stack[RANK], op=hvd.Sum, prescale_factor=2.0, postscale_factor=3.0)
    close(got, combined(hvd, stack, hvd.Sum)[mine] * 6)


# ---- gradients ----------------------------------------------------------------------------------


def gradient_of(call, tensor, upstream):
    tensor = tensor.clone().requires_grad_()
    call(tensor).backward(upstream)
    return tensor.grad


def test_the_gradient_of_allreduce_is_reduced_alike(hvd):
    upstream = of_rank(RANK)
    for op in (hvd.Sum, hvd.Average):
        got = gradient_of(lambda t, op=op: hvd.allreduce(t, op=op), of_rank(RANK), upstream)
        close(got, combined(hvd, everybody(), op))
    scaled = gradient_of(
        lambda t: hvd.allreduce(t, op=hvd.Sum, prescale_factor=0.5), of_rank(RANK), upstream
    )
    close(scaled, everybody().sum(0) / 2)
    grouped = gradient_of(
        lambda t: sum(hvd.grouped_allreduce([t, 2 * t], op=hvd.Sum)), of_rank(RANK), upstream
    )
    close(grouped, 3 * everybody().sum(0))


def test_the_gradient_of_allgather_is_the_ranks_part_of_the_mean(hvd):
    sizes = [rank % 2 + 1 for rank in range(SIZE)]
    total, first = sum(sizes), sum(sizes[:RANK])
    upstream = of_rank(RANK, shape=(total, 2))
    expected = everybody(shape=(total, 2)).mean(0)[first : first + sizes[RANK]]
    tensor = torch.ones(sizes[RANK], 2)
    close(gradient_of(hvd.allgather, tensor, upstream), expected)
    close(gradient_of(lambda t: sum(hvd.grouped_allgather([t, t])), tensor, upstream), 2 * expected)


def test_the_gradient_of_broadcast_is_the_roots_mean(hvd):
    root = SIZE - 1
    got = gradient_of(lambda t: hvd.broadcast(t, root), of_rank(RANK), of_rank(RANK))
    close(got, everybody().mean(0) if root == RANK else torch.zeros(3, 4))


def test_the_gradient_of_alltoall_travels_back(hvd):
    splits = torch.arange(1, SIZE + 1, dtype=torch.int32)
    tensor = torch.ones(int(splits.sum()), 2)
    # What rank c received from all has the gradient c: so it comes back.
    upstream = torch.full(((RANK + 1) * SIZE, 2), float(RANK))
    got = gradient_of(lambda t: hvd.alltoall(t, splits=splits)[0], tensor, upstream)
    back = torch.cat([torch.full((c + 1, 2), float(c)) for c in range(SIZE)])
    close(got, back)


def test_the_gradient_of_reducescatter_is_gathered(hvd):
    rows = 2 * SIZE
    tensor = of_rank(RANK, shape=(rows, 2))
    upstream = torch.full((2, 2), float(RANK + 1))
    gathered = torch.arange(1.0, SIZE + 1).repeat_interleave(2)[:, None].repeat(1, 2)
    for op, factor in ((hvd.Sum, SIZE), (hvd.Average, 1)):
        got = gradient_of(lambda t, op=op: hvd.reducescatter(t, op=op), tensor, upstream.clone())
        close(got, gathered * factor)
    got = gradient_of(
        lambda t: hvd.reducescatter(t, op=hvd.Average, prescale_factor=3.0),
        tensor,
        upstream.clone(),
    )
    close(got, 3 * gathered)


# ---- the rest -----------------------------------------------------------------------------------


def test_sparse_allreduce_gathers_rows(hvd):
    indices = torch.tensor([[0, RANK + 1]])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tensor = torch.sparse_coo_tensor(indices, values, (SIZE + 1, 2))
    stack = torch.zeros(SIZE, SIZE + 1, 2)
    stack[:, 0] = values[0]
    for rank in range(SIZE):
        stack[rank, rank + 1] = values[1]
    for op in (hvd.Sum, hvd.Average):
        handle = hvd.sparse_allreduce_async(tensor, name=f"sparse {op}", op=op)
        result = handle()
        assert result.is_sparse
        close(result.to_dense(), combined(hvd, stack, op))


def test_broadcast_parameters_takes_dicts_and_lists(hvd):
    root = SIZE - 1
    for make in (
        lambda tensors: {f"w{i}": tensor for i, tensor in enumerate(tensors)},
        lambda tensors: [(f"w{i}", tensor) for i, tensor in enumerate(tensors)],
        list,
    ):
        tensors = [of_rank(RANK), of_rank(RANK, torch.float64, (2,))]
        hvd.broadcast_parameters(make(tensors), root_rank=root)
        assert torch.equal(tensors[0], of_rank(root))
        assert torch.equal(tensors[1], of_rank(root, torch.float64, (2,)))
    with pytest.raises(ValueError, match="invalid params of type"):
        hvd.broadcast_parameters(3, root_rank=root)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_broadcast_optimizer_state_into_fresh_optimizers(hvd, name):
    root = SIZE - 1
    model = torch.nn.Linear(3, 2)
    hvd.broadcast_parameters(model.state_dict(), root_rank=root)
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1 * (RANK + 1), **options)
    if root == RANK:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    hvd.broadcast_parameters(model.state_dict(), root_rank=root)
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["lr"] == 0.1 * SIZE
    flat = [
        float(value.double().sum()) if torch.is_tensor(value) else value
        for entry in state["state"].values()
        for value in entry.values()
    ]
    assert len(flat) > 0
    same_everywhere(flat)


def test_objects_are_shared(hvd):
    mine = {"rank": RANK, "text": "x" * RANK}
    assert hvd.broadcast_object(mine, root_rank=SIZE - 1, name="o")["rank"] == SIZE - 1
    shared = hvd.allgather_object(mine, name="all")
    assert [one["rank"] for one in shared] == list(range(SIZE))


def test_join_lets_ranks_with_fewer_batches_take_part_with_zeros(hvd):
    for step in range(RANK + 1):
        active = [rank for rank in range(SIZE) if rank >= step]
        got = hvd.allreduce(torch.full((2,), 1.0 + RANK), op=hvd.Sum, name=f"batch {step}")
        assert got.tolist() == [sum(1.0 + rank for rank in active)] * 2
    assert hvd.join() == SIZE - 1
    after = hvd.allreduce(torch.ones(1), op=hvd.Sum, name="after")
    assert after.item() == SIZE


def test_an_average_counts_the_ranks_that_have_joined(hvd):
    if RANK == SIZE - 1:
        got = hvd.allreduce(torch.full((2,), 6.0), name="alone")
        assert got.tolist() == pytest.approx([6.0 / SIZE] * 2)
    assert hvd.join() in range(SIZE)


def test_a_handle_can_be_polled_and_is_forgotten_when_synchronized(hvd):
    handle = hvd.allreduce_async(of_rank(RANK), name="polled")
    while not hvd.poll(handle):
        pass
    close(hvd.synchronize(handle), everybody().mean(0))
    assert hvd.synchronize(handle) is None


def test_calls_are_matched_by_name_in_whatever_order_ranks_begin_and_end_them(hvd):
    numbers = list(range(6))
    order = numbers[RANK:] + numbers[:RANK] if RANK < 6 else numbers[::-1]
    handles = {
        i: hvd.allreduce_async(torch.full((2,), float(10 * i + RANK)), name=f"t{i}", op=hvd.Sum)
        for i in order
    }
    for i in reversed(order):
        got = hvd.synchronize(handles[i])
        assert got.tolist() == [float(10 * i * SIZE + sum(range(SIZE)))] * 2


def test_a_name_that_is_in_use_is_refused(hvd):
    handle = hvd.allreduce_async(torch.ones(2), name="same")
    with pytest.raises(ValueError, match="same name as another tensor"):
        hvd.synchronize(hvd.allreduce_async(torch.ones(2), name="same"))
    hvd.synchronize(handle)
    hvd.barrier()


def test_a_dtype_that_horovod_does_not_reduce_is_refused_in_its_words(hvd):
    with pytest.raises(ValueError, match=r"Tensor type torch\.BoolTensor is not supported\."):
        hvd.allreduce(torch.ones(2, dtype=torch.bool))


@pytest.mark.mpi(min_size=2)
def test_different_calls_of_one_name_raise_on_every_rank(hvd):
    odd = RANK == SIZE - 1
    for call in (
        lambda: hvd.allreduce(torch.ones(2 + odd), name="n"),
        lambda: hvd.allreduce(torch.ones(2, dtype=[torch.float32, torch.int32][odd]), name="n"),
        lambda: hvd.allreduce(torch.ones(2), op=[hvd.Sum, hvd.Max][odd], name="n"),
        lambda: hvd.allreduce(torch.ones(2), prescale_factor=1.0 + odd, name="n"),
        lambda: hvd.allgather(torch.ones(2, 2 + odd), name="n"),
        lambda: hvd.allgather(torch.ones((2, 2) if odd else (2, 2, 2)), name="n"),
        lambda: hvd.broadcast(torch.ones(2 + odd), 0, name="n"),
        lambda: hvd.broadcast(torch.ones(2), int(odd), name="n"),
        lambda: hvd.alltoall(torch.ones(2 * SIZE, 2 + odd), name="n"),
        lambda: hvd.reducescatter(torch.ones(2 * SIZE, 2 + odd), name="n"),
    ):
        with pytest.raises(hvd.HorovodInternalError, match=r"Mismatched|disagree"):
            call()
    # Named: Horovod's ranks have made different numbers of calls by now.
    close(hvd.allreduce(torch.ones(2), op=hvd.Sum, name="after all"), torch.full((2,), float(SIZE)))
