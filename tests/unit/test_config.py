"""Configuration: the environment, the arguments that beat it, and what is refused."""

import inspect
import math
import re

import pytest

from hvd_backup import config
from hvd_backup.config import Config, RoundOptions, default_window, misspelt

NOTHING = {"backup_workers": None, "late": "drop", "grace": None, "window": None, "timeout": None}


def resolve(config=None, *, world=4, nbytes=1000, **options):
    given = {**NOTHING, **options}
    return RoundOptions.resolve(config or Config(), world=world, nbytes=nbytes, **given)


def test_an_empty_environment_gives_the_defaults():
    assert Config.from_env({}) == Config(backup_workers=None, timeout=600, window=None, grace=0)
    assert Config.from_env({"HVD_BACKUP_WORKERS": " "}) == Config()


def test_every_variable_is_read():
    environ = {
        "HVD_BACKUP_WORKERS": "2",
        "HVD_BACKUP_TIMEOUT": "1.5",
        "HVD_BACKUP_WINDOW": "8",
        "HVD_BACKUP_GRACE": "0.25",
        "HVD_BACKUP_DEVICE_PATH": "mapped",
        "HVD_BACKUP_HOST_TIMEOUT": "5",
    }
    assert Config.from_env(environ) == Config(
        backup_workers=2, timeout=1.5, window=8, grace=0.25, device_path="mapped", host_timeout=5
    )
    assert misspelt(environ) == []


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("HVD_BACKUP_WORKERS", "one", "a whole number"),
        ("HVD_BACKUP_WORKERS", "1.5", "a whole number"),
        ("HVD_BACKUP_WINDOW", "1e3", "a whole number"),
        ("HVD_BACKUP_TIMEOUT", "1min", "a number"),
        ("HVD_BACKUP_TIMEOUT", "-3", "a number of seconds, more than 0"),
        ("HVD_BACKUP_GRACE", "nan", "a number of seconds, 0 or more"),
        ("HVD_BACKUP_GRACE", "-", "a number"),
        ("HVD_BACKUP_NODE_SIZE", "0", "a whole number, 1 or more"),
        ("HVD_BACKUP_NODE_SIZE", "-1", "a whole number, 1 or more"),
        ("HVD_BACKUP_NODE_SIZE", "1.5", "a whole number, 1 or more"),
        ("HVD_BACKUP_NODE_SIZE", "abc", "a whole number, 1 or more"),
        ("HVD_BACKUP_DEVICE_PATH", "direct", "staged or mapped"),
    ],
)
def test_a_variable_that_is_no_number_is_named(name, text, kind):
    with pytest.raises(ValueError, match=f"{name}='{text}' is not {kind}"):
        Config.from_env({name: text})


def test_an_argument_beats_the_environment():
    config = Config(backup_workers=1, timeout=5, window=7, grace=0.5)
    assert resolve(config) == RoundOptions(1, "drop", 0.5, 7, 5.0)
    given = {"backup_workers": 0, "grace": 0.0, "window": 2, "timeout": 9}
    assert resolve(config, **given, late="carry") == RoundOptions(0, "carry", 0.0, 2, 9.0)


def test_an_argument_that_contradicts_the_environment_is_told_with_both_numbers():
    told = Config(backup_workers=1).contradicted_by(0)
    assert "backup_workers=0 overrides HVD_BACKUP_WORKERS=1" in told
    assert "leave the argument None" in told
    assert "overrides HVD_BACKUP_WORKERS=0" in Config(backup_workers=0).contradicted_by(1)
    assert Config(backup_workers=1).contradicted_by(1) == ""
    assert Config(backup_workers=1).contradicted_by(None) == ""
    assert Config().contradicted_by(1) == ""


@pytest.mark.parametrize("b", [-1, 4, 5])
def test_a_number_of_backups_that_leaves_no_quorum_is_refused_with_the_limits(b):
    words = f"{{0}}={b} .* among 4 ranks; use 0 <= {{0}} <= 3"
    with pytest.raises(ValueError, match=words.format("backup_workers")):
        resolve(backup_workers=b)
    with pytest.raises(ValueError, match=words.format("HVD_BACKUP_WORKERS")):
        resolve(Config(backup_workers=b))


def test_a_rank_alone_has_no_backups_whatever_the_environment_says():
    assert resolve(Config(backup_workers=2), world=1).backup_workers == 0
    with pytest.raises(ValueError, match="backup_workers=1 leaves a quorum of 0 among 1 ranks"):
        resolve(Config(), world=1, backup_workers=1)


@pytest.mark.parametrize("b", [True, 1.0, "1"])
def test_a_number_of_backups_is_an_int(b):
    with pytest.raises(TypeError, match="backup_workers must be an int"):
        resolve(backup_workers=b)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"late": "keep"}, "late='keep': use 'drop' or 'carry'"),
        ({"window": 0}, "window=0: use 1 <= window <= 4096"),
        ({"window": 4097}, "window=4097"),
        ({"grace": -0.1}, "grace=-0.1: use seconds, 0 or more"),
        ({"grace": math.nan}, "grace=nan"),
        ({"timeout": 0.0}, "timeout=0.0: use seconds, more than 0"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": math.nan}, "timeout=nan"),
    ],
)
def test_options_that_cannot_be_are_refused_with_what_can(options, words):
    with pytest.raises(ValueError, match=words):
        resolve(**options)


def test_for_ever_is_a_time_out():
    assert resolve(timeout=math.inf).timeout == math.inf


def test_the_window_fits_the_size_of_the_results():
    assert default_window(0, 10**6) == 1  # without backups nobody can be ahead
    assert default_window(1, 0) == 64
    assert default_window(1, 10**6) == 64
    assert default_window(1, 100 << 20) == 10
    assert default_window(3, 10**10) == 4
    assert resolve(backup_workers=1, nbytes=100 << 20).window == 10
    assert resolve(backup_workers=1, nbytes=10 << 20, room=1 << 28).window == 25


def test_options_read_well_in_an_error():
    options = resolve(backup_workers=1, timeout=2)
    assert str(options) == "backup_workers=1, late=drop, grace=0.0, window=64, timeout=2.0"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 1.5}, "window must be an int, not 1.5"),
        ({"grace": "x"}, "grace must be a number of seconds, not 'x'"),
        ({"timeout": True}, "timeout must be a number of seconds, not True"),
    ],
)
def test_an_option_of_another_type_is_named(options, words):
    with pytest.raises(TypeError, match=words):
        resolve(**options)


def test_a_misspelt_setting_is_told_with_what_may_be_meant():
    environ = {
        "HVD_BACKUP_WORKER": "1",
        "HVD_BACKUP_BLAH": "1",
        "HVD_BACKUP_TIMEOUT": "1",
        "HVD_BACKUP_LAUNCH_RANK": "0",
        "HOME": "/",
    }
    told = misspelt(environ)
    assert told == ["HVD_BACKUP_BLAH", "HVD_BACKUP_WORKER (did you mean HVD_BACKUP_WORKERS?)"]
    documented = re.findall(r"``(HVD_BACKUP_\w+)``", inspect.getsource(config.Config))
    assert len(documented) > 5
    assert not misspelt(dict.fromkeys(documented, "1"))
