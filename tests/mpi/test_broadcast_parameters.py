"""broadcast_parameters and in-place calls with tensors of unusual kinds."""

import pytest
import torch
from mpi.helpers import RANK, SIZE
from torch import nn

import hvd_backup.torch as hvd

# torch warns of kinds that are in beta.
pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore::UserWarning")]

LAST = SIZE - 1


class Holder(nn.Module):
    """A module with one buffer: its ``state_dict()`` has an alias of it, not the buffer itself."""

    def __init__(self, buffer):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        nn.init.constant_(self.fc.weight, RANK)
        self.register_buffer("odd", buffer)


def matrix(rank):
    return torch.tensor([[0.0, 1.0 + rank, 0.0], [2.0, 0.0, 0.0]])


def in_inference_mode(rank):
    with torch.inference_mode():
        return torch.full((3,), float(rank))


def quantized_per_channel(rank):
    values, scales = torch.full((2, 3), float(rank)), torch.tensor([0.5, 0.25])
    return torch.quantize_per_channel(values, scales, torch.tensor([0, 3]), 0, torch.qint8)


def uncoalesced(rank):
    return torch.sparse_coo_tensor([[0, 0, 1]], [1.0 + rank, 2.0, 3.0], (4,))


KINDS = {
    "sparse rows": lambda r: matrix(r).to_sparse(1),
    "not coalesced": uncoalesced,
    "csr": lambda r: matrix(r).to_sparse_csr(),
    "csc": lambda r: matrix(r).to_sparse_csc(),
    "bsr": lambda r: torch.full((4, 4), 1.0 + r).to_sparse_bsr((2, 2)),
    "expanded": lambda r: torch.full((2, 1, 3), float(r)).expand(2, 4, 3),
    "expanded scalar": lambda r: torch.tensor(float(r)).expand(3, 2),
    "expanded float8": lambda r: torch.full((1, 3), float(r)).to(torch.float8_e5m2).expand(4, 3),
    "expanded conj": lambda r: torch.full((1, 3), 1j * (r + 1)).conj().expand(4, 3),
    "expanded neg": lambda r: torch.full((1, 3), 1j * (r + 1)).conj().imag.expand(4, 3),
    "windows": lambda r: torch.arange(8.0).add(r).unfold(0, 4, 2),
    "transposed": lambda r: torch.full((3, 4), float(r)).t()[::2],
    "float8": lambda r: torch.full((2, 2), float(r)).to(torch.float8_e4m3fn),
    "float16": lambda r: torch.full((2, 2), float(r)).half(),
    "bool": lambda r: torch.full((3,), r % 2 == 1),
    "uint16": lambda r: torch.full((3,), 65535 - r, dtype=torch.uint16),
    "uint64": lambda r: torch.full((3,), 2**63 + r, dtype=torch.uint64),
    "complex32": lambda r: torch.full((3,), float(r)).to(torch.complex32),
    "complex128": lambda r: torch.full((3,), complex(r, 1), dtype=torch.complex128),
    "conj": lambda r: torch.full((2, 3), 1j * (r + 1)).conj().t(),
    "neg": lambda r: torch.full((3,), 1j * (r + 1)).conj().imag,
    "inference": in_inference_mode,
    "inference expanded": lambda r: in_inference_mode(r).expand(2, 3),
    "quint8": lambda r: torch.quantize_per_tensor(torch.full((3,), r / 2), 0.5, 1, torch.quint8),
    "quantized per channel": quantized_per_channel,
    "empty": lambda r: torch.empty(0, 3),
    "empty expanded": lambda r: torch.empty(0, 1).expand(0, 3),
    "scalar": torch.tensor,
}


def plain(tensor):
    """The values in a dense tensor that can be compared."""
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_of_every_kind_become_the_roots(kind):
    model = Holder(KINDS[kind](RANK))
    hvd.broadcast_parameters(model.state_dict(), root_rank=LAST)
    assert torch.equal(plain(model.odd), plain(KINDS[kind](LAST)))
    assert model.odd.layout == KINDS[kind](LAST).layout
    assert model.fc.weight.tolist() == [[LAST] * 2] * 2


def unsendable():
    return {
        "lazy": nn.LazyLinear(3).weight,
        "meta": torch.empty(2, device="meta"),
        "mkldnn": torch.ones(2).to_mkldnn(),
        "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "text": "no tensor",
    }


@pytest.mark.parametrize("kind", ["lazy", "meta", "mkldnn", "nested", "text"])
def test_what_cannot_be_sent_is_named_and_the_rest_is_sent(kind):
    weights = [torch.full((2,), float(RANK)) for _ in range(2)]
    params = {"a": weights[0], "culprit": unsendable()[kind], "z": weights[1]}
    with pytest.raises(TypeError, match=r"all but these: 'culprit' (is|has) "):
        hvd.broadcast_parameters(params, root_rank=LAST)
    assert [w.tolist() for w in weights] == [[LAST] * 2] * 2


@pytest.mark.mpi(min_size=2)
def test_what_one_rank_cannot_send_is_an_error_on_all():
    culprit = torch.empty(2, device="meta" if RANK == 0 else "cpu")
    with pytest.raises(hvd.Mismatch, match="culprit: is on the meta device"):
        hvd.broadcast_parameters({"culprit": culprit})


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("what", ["count", "coalesced", "scale", "scales"])
def test_bits_that_mean_something_else_are_a_mismatch(what):
    odd = RANK == LAST
    values = torch.full((2, 2), 1.0)
    tensor = {
        "count": (values if odd else torch.eye(2)).to_sparse_csr,
        "coalesced": lambda: uncoalesced(0) if odd else uncoalesced(0).coalesce(),
        "scale": lambda: torch.quantize_per_tensor(values, 0.5 + odd, 0, torch.qint8),
        "scales": lambda: torch.quantize_per_channel(
            values, torch.tensor([0.5, 1.0 + odd]), torch.tensor([0, 0]), 0, torch.qint8
        ),
    }[what]()
    with pytest.raises(hvd.Mismatch, match="t: "):
        hvd.broadcast_parameters({"t": tensor})


class WithState(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), float(RANK)))
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_extra_state_that_all_ranks_share_needs_no_sending():
    model = nn.Sequential(WithState({"scale": 2}))
    hvd.broadcast_parameters(model.state_dict(), root_rank=LAST)
    assert model[0].weight.tolist() == [LAST] * 2


@pytest.mark.mpi(min_size=2)
def test_extra_state_that_differs_is_named_with_the_way_out():
    model = nn.Sequential(WithState({"scale": RANK}))
    with pytest.raises(TypeError, match=r"'0\._extra_state' differs.*hvd\.broadcast_object"):
        hvd.broadcast_parameters(model.state_dict(), root_rank=LAST)
    assert model[0].weight.tolist() == [LAST] * 2
    model.load_state_dict(hvd.broadcast_object(model.state_dict(), root_rank=LAST))
    assert model[0].state == {"scale": LAST}


def test_calls_in_place_take_tensors_that_share_memory_or_were_made_for_inference():
    for make in (
        lambda: torch.full((1, 3), float(RANK)).expand(2, 3),
        lambda: in_inference_mode(RANK),
    ):
        total, root = make(), make()
        assert hvd.allreduce_(total, op=hvd.Sum) is total
        hvd.broadcast_(root, LAST)
        assert set(total.reshape(-1).tolist()) == {float(sum(range(SIZE)))}
        assert set(root.reshape(-1).tolist()) == {float(LAST)}


def test_values_that_disagree_where_elements_share_memory_are_an_error():
    tensor = torch.zeros(1, 2).expand(3, 2)
    source = torch.arange(6.0).reshape(3, 2) if RANK == LAST else tensor
    if RANK == LAST:
        assert torch.equal(hvd.broadcast_(source, LAST), torch.arange(6.0).reshape(3, 2))
    else:
        with pytest.raises(ValueError, match="share memory"):
            hvd.broadcast_(tensor, LAST)


def test_a_conjugate_is_sent_as_its_values():
    conj = torch.full((2,), complex(RANK, 1)).conj()
    assert torch.equal(hvd.broadcast(conj, LAST), torch.full((2,), complex(LAST, -1)))
    assert hvd.allreduce(conj.imag, op=hvd.Sum).tolist() == [-float(SIZE)] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_optimizer_state_of_every_kind_becomes_the_roots(dtype):
    p = nn.Parameter(torch.ones(3))
    opt = torch.optim.SGD([p], lr=0.1)
    if RANK == LAST:
        opt.state[p] = {
            "code": torch.full((1, 3), 1.5).to(dtype).expand(2, 3),
            "rows": matrix(RANK).to_sparse(),
        }
    hvd.broadcast_optimizer_state(opt, root_rank=LAST)
    assert plain(opt.state[p]["code"]).tolist() == [[1.5] * 3] * 2
    assert torch.equal(opt.state[p]["rows"].to_dense(), matrix(LAST))
