"""What a rank says of the others, in words."""

from hvd_backup import phrases
from hvd_backup.phrases import title
from hvd_backup.rounds import reports

PARAMETERS = ", ".join(f"parameter {i}: float32[1000, 1000]" for i in range(100))


def test_a_title_has_no_shapes_of_parameters():
    assert title(f"DistributedOptimizer(SGD, {PARAMETERS})") == "DistributedOptimizer"
    assert title("partial_allreduce(float32[4], name='g')").endswith("name='g')")


def test_a_death_names_the_last_common_round():
    def death(dead, where, completed):
        last_round = phrases.last_round(completed, "all ranks", "g")
        return phrases.death(dead, "rank 0", where, last_round)

    known = " The last round of g that all ranks are known to have completed is "
    assert f"{known}round 72. What rank 1" in death("rank 1", "round 74 of g", 73)
    assert f"{known}none so far. What ranks" in death("ranks 1, 2", "round 0 of g", 0)
    assert "round" not in phrases.death("rank 1", "rank 0", "barrier()", "")


def test_a_failure_names_the_moment_and_what_to_do():
    assert phrases.moment("the last round is 7").endswith("; the last round is 7")
    assert phrases.moment("").startswith("at ")
    assert ";" not in phrases.moment("")
    assert phrases.failure(1, "KeyError: 'boom' (at 12:00:00)") == (
        "rank 1 failed with KeyError: 'boom' (at 12:00:00); what rank 1 printed says why; then "
        "start again from the last checkpoint"
    )


def test_a_late_rank_is_named_with_its_share():
    text = reports.late_rank(reports.Share(2, 1, 32), 1, 3, "g")
    assert text.startswith("rank 2 hardly takes part: its gradient is in 1 of the last 32 rounds")
    assert "chance would give 21 (backup_workers=1 of 3 ranks)" in text
