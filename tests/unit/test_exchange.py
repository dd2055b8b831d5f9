"""How a contribution is cut into chunks, which between nodes are messages."""

import pytest

from hvd_backup.rounds.exchange import chunk_bytes

KB = 1024


def layout(nbytes, dtype="float32"):
    return [(dtype, nbytes // {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype])]


@pytest.mark.parametrize("nbytes", [1 << 20, 16 << 20, 1 << 30])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_between_hosts_a_sum_is_less_than_tcp_sends_at_once(nbytes, dtype):
    for nodes in (2, 3, 16):
        chunk = chunk_bytes(layout(nbytes, dtype), nodes, hosts=nodes)
        assert chunk * (2 if "16" in dtype else 1) < 64 * KB
        assert chunk % 4096 == 0


def test_one_dtype_of_two_bytes_halves_the_chunks_of_all():
    mixed = [*layout(1 << 20), *layout(1 << 20, "float16")]
    assert chunk_bytes(mixed, 2, hosts=2) == chunk_bytes(layout(2 << 20, "float16"), 2, hosts=2)


def test_between_nodes_of_one_host_messages_are_larger():
    assert chunk_bytes(layout(16 << 20), 4, hosts=1) == 256 * KB
    assert chunk_bytes(layout(16 << 20), 4, hosts=2) == 256 * KB  # some nodes share one


@pytest.mark.parametrize("hosts", [1, 4])
def test_every_node_owns_a_chunk_of_what_is_not_tiny(hosts):
    for nbytes in (64 * KB, 100 * KB, 240 * KB, 1 << 20):
        assert nbytes / chunk_bytes(layout(nbytes), 4, hosts) > 3


def test_nodes_and_hosts_do_not_matter_to_one_node():
    assert chunk_bytes(layout(1 << 20), 1, hosts=1) == 64 * KB
    assert chunk_bytes(layout(5 << 20), 1, hosts=1) == 256 * KB
