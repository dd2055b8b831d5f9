"""What a rank says of the others, in words."""

from hvd_backup.phrases import death, title
from hvd_backup.rounds import reports

PARAMETERS = ", ".join(f"parameter {i}: float32[1000, 1000]" for i in range(100))


def test_a_title_has_no_shapes_of_parameters():
    assert title(f"DistributedOptimizer(SGD, {PARAMETERS})") == "DistributedOptimizer"
    assert title("partial_allreduce(float32[4], name='g')").endswith("name='g')")


def test_a_death_names_the_last_common_round():
    assert "is round 72." in death("rank 1", "rank 0", "round 74 of g", 73)
    assert "is none so far." in death("ranks 1, 2", "rank 0", "round 0 of g", 0)
    assert "round" not in death("rank 1", "rank 0", "barrier()")


def test_a_late_rank_is_named_with_its_share():
    text = reports.late_rank(reports.Share(2, 1, 32), 1, 3, "g")
    assert text.startswith("rank 2 hardly takes part: its gradient is in 1 of the last 32 rounds")
    assert "chance would give 21 (backup_workers=1 of 3 ranks)" in text
