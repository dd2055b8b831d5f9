"""What DistributedOptimizer refuses, and in which words."""

import inspect

import pytest
import torch

import hvd_backup.torch as hvd
from hvd_backup.rounds import arguments
from hvd_backup.torch import arguments as torch_arguments
from hvd_backup.torch.compression import probe

HOROVODS = (
    *("optimizer", "named_parameters", "compression", "backward_passes_per_step", "op"),
    *("gradient_predivide_factor", "num_groups", "groups", "sparse_as_dense", "process_set"),
)


def test_the_positional_arguments_are_horovods():
    parameters = inspect.signature(hvd.DistributedOptimizer).parameters.values()
    assert tuple(p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD) == HOROVODS
    ours = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert ours >= {"backup_workers", "late", "grace", "window", "timeout", "on_nonfinite"}
    defaults = {p.name: p.default for p in parameters}
    assert defaults["compression"] is hvd.Compression.none
    assert defaults["backward_passes_per_step"] == 1
    assert defaults["op"] == hvd.Average
    assert defaults["gradient_predivide_factor"] == 1.0
    assert (defaults["num_groups"], defaults["groups"]) == (0, None)
    assert defaults["sparse_as_dense"] is False


def test_what_cannot_compress_is_refused_and_a_third_positional_backup_workers_is_explained():
    with pytest.raises(TypeError, match=r"compression=1 has no compress\(\).*by its name"):
        arguments.check_compression(1)
    arguments.check_compression(hvd.Compression.bf16)
    arguments.check_compression(hvd.Compression.fp16())  # an object does as well


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (("Adasum", 1.0, "contributors"), NotImplementedError, "op=Adasum is not here"),
        (
            ("Max", 1.0, "contributors"),
            ValueError,
            "op='Max': op currently only supports Average and Sum",
        ),
        (("Sum", 2.0, "contributors"), ValueError, "not supported with op != Average"),
        (("Average", 0.0, "contributors"), ValueError, "gradient_predivide_factor=0.0"),
        (("Average", float("nan"), "contributors"), ValueError, "gradient_predivide_factor=nan"),
        (
            ("Average", 1.0, "columns"),
            ValueError,
            "sparse_mean='columns': use 'contributors' or 'rows'",
        ),
        (("Sum", 1.0, "rows"), ValueError, "sparse_mean='rows' is a mean, and op=Sum is not"),
    ],
)
def test_an_op_that_cannot_be_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        arguments.check_op(*call)


@pytest.mark.parametrize("passes", [0, -1, 1.5, True])
def test_a_number_of_passes_that_cannot_be_is_refused(passes):
    with pytest.raises(ValueError, match=f"backward_passes_per_step must be > 0, not {passes}"):
        arguments.check_passes(passes)


def test_groups_are_checked_as_in_horovod():
    one, two = torch.zeros(1), torch.zeros(1)
    for groups in (None, 1, 3, [[one], [two]], [[one, two]], []):
        arguments.check_groups(0, groups, torch.Tensor, "torch.Tensor")
    for groups in (0, -1, 2.5):
        with pytest.raises(ValueError, match="groups should be a non-negative integer or a list"):
            arguments.check_groups(0, groups, torch.Tensor, "torch.Tensor")
    with pytest.raises(ValueError, match=r"groups must consist of torch\.Tensor"):
        arguments.check_groups(0, [["weight"]], torch.Tensor, "torch.Tensor")
    with pytest.raises(ValueError, match="A parameter can only appear once in groups"):
        arguments.check_groups(0, [[one], [two, one]], torch.Tensor, "torch.Tensor")
    with pytest.warns(DeprecationWarning, match="`num_groups` has been replaced by `groups`"):
        arguments.check_groups(2, None, torch.Tensor, "torch.Tensor")


def test_a_word_that_is_none_for_what_is_not_finite_is_refused():
    with pytest.raises(
        ValueError, match="on_nonfinite='drop': use one of contribute, abstain, raise"
    ):
        torch_arguments.check_on_nonfinite("drop")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("compression", "sent"),
    [(hvd.Compression.fp16, torch.float16), (hvd.Compression.bf16, torch.bfloat16)],
)
def test_compression_is_to_16_bits_and_back_to_what_it_was(compression, sent, dtype):
    compressed, ctx = compression.compress(torch.tensor([1.5, -2.0], dtype=dtype))
    assert compressed.dtype == (dtype if dtype.itemsize == sent.itemsize else sent)
    back = compression.decompress(compressed, ctx)
    assert back.dtype == dtype
    assert back.tolist() == [1.5, -2.0]


def test_no_compression_gives_back_the_very_tensor():
    tensor = torch.ones(3)
    compressed, ctx = hvd.Compression.none.compress(tensor)
    assert compressed is tensor
    assert hvd.Compression.none.decompress(compressed, ctx) is tensor


def test_a_compressor_that_makes_no_dense_tensor_is_refused():
    class Sparse(hvd.Compressor):
        @staticmethod
        def compress(tensor):
            return tensor.to_sparse(), None

    class Bare(hvd.Compressor):
        @staticmethod
        def compress(tensor):
            return tensor

    with pytest.raises(TypeError, match="Sparse makes Tensor of parameter 'w'; only dense"):
        probe(Sparse, "w", torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"Bare.compress returns \(tensor, ctx\), not tensor"):
        probe(Bare, "w", torch.zeros(2, 2))
