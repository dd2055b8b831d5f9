"""Collectives on TensorFlow's tensors, eagerly and in tf.function, and their gradients."""

import numpy as np
import pytest
import tensorflow as tf
from mpi.helpers import RANK, SIZE, same_everywhere
from mpi4py import MPI
from mpi_tf import models  # noqa: F401, sets TensorFlow up

import hvd_backup.tensorflow as hvd

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]

RANKS = range(SIZE)


def mine(rank=RANK, rows=3, dtype="float32"):
    return np.arange(rows * 2).reshape(rows, 2).astype(dtype) + 10 * rank


def both_ways(program):
    """The program's results, eagerly and in a graph, which must be the same."""
    eager = program()
    graph = tf.function(program)()
    for a, b in zip(tf.nest.flatten(eager), tf.nest.flatten(graph), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    return eager


OPS = [(hvd.Sum, np.sum), (hvd.Min, np.min), (hvd.Max, np.max), (hvd.Product, np.prod)]


def test_allreduce_combines_every_dtype_with_every_operation():
    everybody = np.stack([mine(rank) for rank in RANKS])

    def program():
        results = [hvd.allreduce(mine(), op=op) for op, _ in OPS]
        results += [hvd.allreduce(mine(dtype=d), op=hvd.Sum) for d in ("int64", "float64")]
        results.append(hvd.allreduce(tf.cast(mine(), tf.bfloat16)))
        results.append(hvd.allreduce(mine(dtype="float16"), prescale_factor=0.5))
        results.append(hvd.allreduce(mine(), compression=hvd.Compression.fp16, op=hvd.Sum))
        results.append(hvd.allreduce(mine(dtype="int32"), op=hvd.Sum, postscale_factor=2.0))
        return results

    results = both_ways(program)
    for (_, combine), result in zip(OPS, results, strict=False):
        np.testing.assert_allclose(result, combine(everybody, axis=0), rtol=1e-6)
    total, mean = everybody.sum(0), everybody.mean(0)
    for result, expected in zip(
        results[len(OPS) :], [total, total, mean, mean / 2, total, 2 * total], strict=True
    ):
        np.testing.assert_allclose(tf.cast(result, tf.float32), expected, rtol=1e-2)
    assert [r.dtype.name for r in results[len(OPS) :]] == [
        *("int64", "float64", "bfloat16", "float16", "float32", "int32")
    ]
    same_everywhere([np.asarray(r).tobytes() for r in results])


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_compressed_calls_on_integers_are_exact(name):
    compression = getattr(hvd.Compression, name)
    for value, dtype in ((70000, "int64"), (2049, "int32")):
        source = tf.constant([value + RANK] * SIZE, dtype)

        def program(source=source):
            total = hvd.allreduce(source, op=hvd.Sum, compression=compression)
            return [total, hvd.reducescatter(source, op=hvd.Sum, compression=compression)]

        for result in both_ways(program):
            assert set(np.asarray(result).tolist()) == {SIZE * value + sum(RANKS)}
    for dtype in ("bool", "uint8", "complex64"):
        untouched, context = compression.compress(tf.ones(2, dtype))
        assert untouched.dtype == dtype
        assert compression.decompress(untouched, context).dtype == dtype


def test_gather_broadcast_scatter_and_exchange_rows():
    rows = [rank + 1 for rank in RANKS]
    everybody = np.concatenate([mine(rank, rows[rank]) for rank in RANKS])
    mean = np.mean([mine(rank, SIZE + 1) for rank in RANKS], axis=0)
    first = RANK + (RANK > 0)
    root = SIZE - 1

    def program():
        return [
            hvd.allgather(mine(rows=rows[RANK])),
            hvd.allgather(mine(rows=0)),
            hvd.broadcast(mine(dtype="float16"), root),
            hvd.reducescatter(mine(rows=SIZE + 1)),
            hvd.alltoall(mine(rows=SIZE)),
            *hvd.alltoall(mine(rows=RANK + 1), splits=[RANK + 1] + [0] * (SIZE - 1)),
        ]

    gathered, nothing, sent, part, swapped, uneven, counts = both_ways(program)
    np.testing.assert_array_equal(gathered, everybody)
    assert nothing.shape == (0, 2)
    np.testing.assert_array_equal(sent, mine(root, dtype="float16"))
    np.testing.assert_allclose(part, mean[first : first + 1 + (RANK == 0)])
    np.testing.assert_array_equal(swapped, np.stack([mine(r, SIZE)[RANK] for r in RANKS]))
    np.testing.assert_array_equal(uneven, everybody if RANK == 0 else everybody[:0])
    np.testing.assert_array_equal(counts, rows if RANK == 0 else [0] * SIZE)


def gradient_of(call, rows):
    """d(sum of call(x) * its own values) / dx, eagerly and in a graph."""

    def program():
        x = tf.constant(mine(rows=rows))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
            loss = tf.reduce_sum(y * tf.cast(RANK + 1, y.dtype))
        return [tape.gradient(loss, x)]

    return both_ways(program)[0]


def test_gradients_are_horovods():
    mean_of_factors = np.mean([rank + 1 for rank in RANKS])
    ones = np.ones((SIZE, 2), np.float32)
    cases = [
        (hvd.allreduce, mean_of_factors),
        (lambda x: hvd.allreduce(x, op=hvd.Sum), SIZE * mean_of_factors),
        (hvd.allgather, mean_of_factors),
        (lambda x: hvd.broadcast(x, 0), mean_of_factors if RANK == 0 else 0),
        (lambda x: hvd.grouped_allreduce([x, x])[1], mean_of_factors),
    ]
    for call, factor in cases:
        np.testing.assert_allclose(gradient_of(call, SIZE), factor * ones, rtol=1e-6)
    per_rank = (1 + np.arange(SIZE))[:, None] * ones
    np.testing.assert_allclose(gradient_of(hvd.alltoall, SIZE), per_rank)
    np.testing.assert_allclose(gradient_of(hvd.reducescatter, SIZE), per_rank)
    with pytest.raises(NotImplementedError, match="has no gradient"):
        gradient_of(lambda x: hvd.allreduce(x, op=hvd.Max), SIZE)


def test_sparse_slices_are_gathered():
    slices = tf.IndexedSlices(mine(), tf.constant([RANK, 0, 5]), tf.constant([7, 2]))
    result = hvd.allreduce(slices)
    np.testing.assert_allclose(
        tf.convert_to_tensor(result),
        np.mean(
            [
                tf.convert_to_tensor(
                    tf.IndexedSlices(mine(r), tf.constant([r, 0, 5]), tf.constant([7, 2]))
                )
                for r in RANKS
            ],
            axis=0,
        ),
    )
    with pytest.raises(NotImplementedError, match="Only Sum and Average"):
        hvd.allreduce(slices, op=hvd.Max)


def test_collectives_keep_their_order_within_branches_and_loops():
    @tf.function
    def program(x):
        total = hvd.allreduce(x)
        if tf.reduce_sum(x) > 0:
            total += hvd.allgather(tf.fill([RANK + 1, 2], 1.0))[0]
        for _ in tf.range(3):
            total += hvd.broadcast(x, 0)
        return hvd.allreduce(total, op=hvd.Sum)

    result = program(tf.ones(2))
    np.testing.assert_allclose(result, [5.0 * SIZE] * 2)


def test_variables_and_objects_go_from_one_rank_to_all():
    variables = [tf.Variable(mine()), tf.Variable(RANK), tf.Variable(mine(dtype="float16"))]
    tf.function(lambda: hvd.broadcast_variables(variables, root_rank=SIZE - 1))()
    np.testing.assert_array_equal(variables[0], mine(SIZE - 1))
    assert variables[1].numpy() == SIZE - 1
    assert hvd.broadcast_object_fn(0)({"rank": RANK}) == {"rank": 0}
    assert hvd.broadcast_object(RANK, root_rank=SIZE - 1) == SIZE - 1
    assert hvd.allgather_object(RANK) == list(RANKS)
    with pytest.raises(RuntimeError, match="does not support eager execution"):
        hvd.broadcast_global_variables(0)


def test_arguments_that_cannot_be_are_refused_before_anything_is_sent():
    with pytest.raises(ValueError, match="only one of them"):
        hvd.allreduce(mine(), average=True, op=hvd.Sum)
    with pytest.raises(ValueError, match="root_rank=99"):
        hvd.broadcast(mine(), 99)
    with pytest.raises(TypeError, match="no ProcessSet"):
        hvd.allreduce(mine(), process_set=object())
    with pytest.raises(ValueError, match="greater than the first dimension"):
        hvd.alltoall(mine(rows=1), splits=[2] * SIZE)
    assert hvd.join() in range(SIZE)
    assert hvd.rank_op().numpy() == RANK
    assert hvd.size_op().numpy() == SIZE
    nodes = hvd.allgather_object(hvd.cross_rank())
    assert hvd.is_homogeneous() == (len({nodes.count(node) for node in nodes}) == 1)
    assert hvd.mpi_threads_supported() == (MPI.Query_thread() == MPI.THREAD_MULTIPLE)


def test_a_tape_averages_dense_sparse_and_missing_gradients_in_one_round():
    dense, table = tf.Variable([1.0, 2.0]), tf.Variable(tf.zeros((6, 2)))
    unused, local = tf.Variable(3.0), tf.Variable(1.0)
    sources = [dense, table, unused, local]

    def step(sparse_mean, as_dense):
        with tf.GradientTape() as tape:
            rows = tf.gather(table, [RANK, 5, 5])
            loss = tf.reduce_sum(dense) * (RANK + 1.0) + tf.reduce_sum(rows) + local
        tape = hvd.DistributedGradientTape(tape, sparse_as_dense=as_dense, sparse_mean=sparse_mean)
        tape.register_local_source(local)
        return tape.gradient(loss, sources)

    mean = np.zeros((6, 2), np.float32)
    mean[:SIZE] += 1 / SIZE
    mean[5] += 2
    rows = np.where(mean > 0, 1, 0)
    rows[5] = 2
    for in_graph in (False, True):
        run = tf.function(step) if in_graph else step
        for sparse_mean, as_dense in [("contributors", False), ("rows", False), ("rows", True)]:
            of_dense, of_table, of_unused, of_local = run(sparse_mean, as_dense)
            np.testing.assert_allclose(of_dense, [(SIZE + 1) / 2] * 2)
            assert isinstance(of_table, tf.IndexedSlices) != as_dense
            expected = rows if sparse_mean == "rows" and not as_dense else mean
            np.testing.assert_allclose(tf.convert_to_tensor(of_table), expected, rtol=1e-6)
            assert of_unused is None
            assert of_local.numpy() == pytest.approx(1 / SIZE)


def test_a_tape_without_stragglers_counts_its_rounds_and_checks_its_arguments():
    x = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        y = x * (RANK + 1.0)
    tape = hvd.DistributedGradientTape(
        tape, op=hvd.Sum, compression=hvd.Compression.bf16, timeout=50
    )
    assert tape.gradient(y, x).numpy() == sum(rank + 1 for rank in RANKS)
    assert tape.last_round.contributors == tuple(RANKS)
    for wrong, words in [
        ({"op": hvd.Sum, "gradient_predivide_factor": 2.0}, "not supported with op != Average"),
        ({"op": hvd.Max}, "only supports Average and Sum"),
        ({"sparse_mean": "all"}, "'contributors' or 'rows'"),
        ({"backup_workers": SIZE}, "leaves a quorum of 0"),
        ({"groups": 0}, "groups should be"),
    ]:
        with pytest.raises(ValueError, match=words):
            hvd.DistributedGradientTape(tf.GradientTape(), **wrong)


@pytest.mark.parametrize("in_graph", [False, True])
def test_more_tapes_than_are_kept_give_right_results_step_after_step(in_graph):
    variables = [tf.Variable(float(RANK)) for _ in range(20)]

    def step():
        means = []
        for i, v in enumerate(variables):
            with hvd.DistributedGradientTape(tf.GradientTape()) as tape:
                y = tf.cast(i + RANK, tf.float32) * v
            means.append(tape.gradient(y, v))
        return tf.stack(means)

    run = tf.function(step) if in_graph else step
    for _ in range(2):
        np.testing.assert_allclose(run(), np.arange(20) + np.mean(RANKS), rtol=1e-6)


def test_the_ranks_of_a_process_set_make_calls_among_themselves():
    first = hvd.add_process_set([*RANKS][:-1])
    assert hvd.size_op(first.process_set_id).numpy() == SIZE - 1
    if first.included():

        def program():
            return [
                hvd.allreduce(mine(), op=hvd.Sum, process_set=first),
                hvd.allgather(mine(), process_set=first),
                hvd.broadcast(mine(), 0, process_set=first),
            ]

        total, rows, root = both_ways(program)
        theirs = [mine(rank) for rank in first.ranks]
        np.testing.assert_array_equal(total, sum(theirs))
        np.testing.assert_array_equal(rows, np.concatenate(theirs))
        np.testing.assert_array_equal(root, mine(0))
        assert hvd.allgather_object(RANK, process_set=first) == first.ranks
    else:
        with pytest.raises(ValueError, match="process set"):
            hvd.allreduce(mine(), process_set=first)
    hvd.barrier()
    assert hvd.remove_process_set(first)


def test_strings_travel_in_calls_that_do_not_combine():
    def text(rank=RANK, rows=None):
        rows = rank + 1 if rows is None else rows
        return np.array([[b"a\0" * rank, f"\u00e4{rank}{i}".encode()] for i in range(rows)], object)

    splits = [RANK] + [1] * (SIZE - 1)

    def program():
        return [
            hvd.allgather(tf.constant(text(), tf.string)),
            hvd.broadcast(tf.constant(text(rows=2), tf.string), SIZE - 1),
            hvd.broadcast(tf.constant(f"rank {RANK}"), 0),
            hvd.alltoall(tf.constant(text(rows=SIZE), tf.string)),
            *hvd.alltoall(tf.constant(text(rows=sum(splits) + 1), tf.string), splits),
        ]

    gathered, sent, scalar, swapped, uneven, counts = both_ways(program)
    np.testing.assert_array_equal(gathered, np.concatenate([text(rank) for rank in RANKS]))
    np.testing.assert_array_equal(sent, text(SIZE - 1, 2))
    assert scalar.numpy() == b"rank 0"
    np.testing.assert_array_equal(swapped, [text(rank, SIZE)[RANK] for rank in RANKS])
    theirs = [(rank + RANK - 1, 1) if RANK else (0, rank) for rank in RANKS]
    parts = [text(r, 2 * SIZE)[a : a + n] for r, (a, n) in zip(RANKS, theirs, strict=True)]
    np.testing.assert_array_equal(uneven, np.concatenate(parts))
    np.testing.assert_array_equal(counts, [n for _, n in theirs])
    for call in (hvd.allreduce, hvd.reducescatter):
        with pytest.raises(ValueError, match="strings cannot be combined; allgather and broadcast"):
            call(tf.constant(["a"]))


def test_variables_of_every_dtype_are_sent_or_refused_by_name():
    dtypes = ["bool", "uint8", "int16", "uint32", "int64", "float16", "bfloat16", "float64"]
    dtypes += ["complex64", "float8_e5m2", "float8_e4m3fn"]
    variables = [tf.Variable(tf.cast([1.0 * RANK, 1, 2], dtype)) for dtype in dtypes]
    variables += [tf.Variable(tf.zeros((0, 3))), tf.Variable(f"rank {RANK}")]
    variables.append(tf.Variable(["a" * (1 + RANK), "b"], name="words"))
    hvd.broadcast_variables(variables, SIZE - 1)
    for variable, dtype in zip(variables, dtypes, strict=False):
        assert variable.dtype.name == dtype
        expected = tf.cast([SIZE - 1.0, 1, 2], dtype)
        assert np.asarray(variable).tobytes() == np.asarray(expected).tobytes()
    assert variables[-2].numpy() == f"rank {SIZE - 1}".encode()
    assert variables[-1].numpy().tolist() == [b"a" * SIZE, b"b"]

    quantized = tf.quantization.quantize([0.0, 1.0], 0.0, 1.0, tf.qint8).output
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1, name="vocabulary")
    for entry, words in (
        (
            tf.Variable(quantized, name="small"),
            r"small.* \(number 1\) cannot be sent: its dtype is",
        ),
        (table, r"\(number 1\) cannot be sent: it is no variable, but MutableHashTable"),
    ):
        with pytest.raises(TypeError, match=words):
            hvd.broadcast_variables([variables[0], entry], 0)
    # Nothing was sent: the ranks still agree on what comes next.
    hvd.broadcast_variables(variables, 0)


def test_variables_of_other_kinds_on_other_ranks_are_a_mismatch():
    variable = tf.Variable(["a"]) if RANK else tf.Variable([1])
    if SIZE > 1:
        with pytest.raises(hvd.Mismatch, match="string"):
            hvd.broadcast_variables([variable], 0)
