"""Which calls are done, of those that the ranks have registered."""

import pytest

from hvd_backup.phrases import quote_groups
from hvd_backup.world.table import Entry, decide


def entry(name, kind="allreduce", call="", signature="", awaited=False):
    return Entry(name, kind, call or f"{kind}({name})", signature, awaited)


def decided(*lists, rounds=None, ranks=None):
    rounds = rounds or [0] * len(lists)
    ranks = ranks or range(len(lists))
    return decide(list(zip(rounds, lists, strict=True)), list(ranks))


def test_what_all_have_put_down_is_done_in_the_first_ranks_order():
    decision = decided([entry("a"), entry("b"), entry("c")], [entry("c"), entry("a")])
    assert decision == (["a", "c"], {}, "")


def test_what_one_rank_lacks_waits():
    decision = decided([entry("a"), entry("b", awaited=True)], [entry("a", awaited=True)])
    assert decision.run == ["a"]
    assert not decision.stuck


@pytest.mark.parametrize(
    "other", [entry("a", kind="allgather"), entry("a", call="x"), entry("a", signature="x")]
)
def test_calls_of_one_name_that_differ_fail_on_all_and_the_others_are_done(other):
    decision = decided([entry("a"), entry("b")], [other, entry("b")], [entry("a"), entry("b")])
    assert decision.run == ["b"]
    assert list(decision.failed) == ["a"]
    assert decision.failed["a"].startswith("the ranks disagree: rank")


def test_ranks_that_all_wait_for_different_calls_are_told_so():
    decision = decided([entry("a", awaited=True)], [entry("b", awaited=True), entry("c")])
    assert decision.stuck == "the ranks disagree: rank 0: allreduce(a); rank 1: allreduce(b)"


def test_a_rank_that_only_polls_may_still_put_more_down():
    assert decided([entry("a", awaited=True)], [entry("b")]) == ([], {}, "")
    assert decided([entry("a", awaited=True)], []) == ([], {}, "")


def test_ranks_are_named_by_their_number_in_the_world():
    decision = decided([entry("a", awaited=True)], [entry("b", awaited=True)], ranks=[3, 7])
    assert "rank 3: allreduce(a); rank 7: allreduce(b)" in decision.stuck


def test_ranks_that_have_been_through_other_rounds_disagree():
    decision = decided([entry("a", awaited=True)], [entry("a", awaited=True)], rounds=[2, 3])
    assert "rank 0: allreduce(a) after 2 rounds; rank 1: allreduce(a) after 3" in decision.stuck
    assert decision.run == []


JOINED = [entry("join", kind="join", awaited=True)]


def test_who_has_joined_takes_part_in_an_allreduce_of_the_others():
    lists = [[entry("a", awaited=True)], JOINED, [entry("a", awaited=True)]]
    assert decided(*lists) == (["a"], {}, "")


def test_when_all_have_joined_the_join_is_done():
    assert decided([*JOINED, entry("a")], JOINED) == (["join"], {}, "")


def test_other_calls_than_allreduce_fail_while_a_rank_has_joined():
    gather = [entry("a", kind="allgather", awaited=True)]
    decision = decided(gather, JOINED, gather)
    assert decision.run == []
    assert "Allgather is not supported with Join at this time." in decision.failed["a"]
    assert "rank 1" in decision.failed["a"]


def test_the_others_of_a_rank_that_has_joined_may_disagree():
    decision = decided([entry("a", awaited=True)], JOINED, [entry("b", awaited=True)])
    assert "rank 0: allreduce(a); rank 1: allreduce(join); rank 2" not in decision.stuck
    assert "rank 0: allreduce(a)" in decision.stuck


def test_long_descriptions_are_quoted_where_they_differ():
    texts = ["x" * 1000 + "a", "x" * 1000 + "b"]
    quoted = quote_groups(texts, [4, 5])
    assert len(quoted) < 700
    assert "xa; rank 5: …x" in quoted
