"""Horovod's environment variables."""

import logging
import math

import pytest

from hvd_backup.config import Config, log_level
from hvd_backup.horovod import environment as horovod_env


def test_the_stall_check_is_horovods():
    assert Config.from_env({}).stall_warning == 60
    assert Config.from_env({"HOROVOD_STALL_CHECK_TIME_SECONDS": "5"}).stall_warning == 5
    both = {"HOROVOD_STALL_CHECK_DISABLE": "1", "HOROVOD_STALL_CHECK_TIME_SECONDS": "5"}
    assert Config.from_env(both).stall_warning == 0
    assert Config.from_env({"HOROVOD_STALL_CHECK_DISABLE": "0"}).stall_warning == 60


def test_the_stall_shutdown_is_the_timeout_unless_ours_is_set():
    theirs = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "120"}
    assert Config.from_env(theirs).timeout == 120
    assert Config.from_env(theirs | {"HVD_BACKUP_TIMEOUT": "7"}).timeout == 7
    assert Config.from_env({}).timeout == 600


@pytest.mark.parametrize("never", ["0", "0.0", "-1"])
def test_a_stall_shutdown_of_0_or_less_means_never_as_in_horovod(never):
    theirs = {"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": never}
    assert Config.from_env(theirs).timeout == math.inf
    assert Config.from_env(theirs | {"HVD_BACKUP_TIMEOUT": "7"}).timeout == 7


@pytest.mark.parametrize("text", ["soon", "nan"])
def test_a_stall_shutdown_that_is_no_time_is_refused_by_name(text):
    words = (
        f"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS='{text}' is not a number of seconds, or 0 for never"
    )
    with pytest.raises(ValueError, match=words):
        Config.from_env({"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": text})


def test_the_late_warning_can_be_switched_off():
    assert Config.from_env({}).late_warning
    assert not Config.from_env({"HVD_BACKUP_LATE_WARNING": "0"}).late_warning
    with pytest.raises(ValueError, match="HVD_BACKUP_LATE_WARNING='off' is not 0 or 1"):
        Config.from_env({"HVD_BACKUP_LATE_WARNING": "off"})


def test_what_is_no_number_is_refused_by_name():
    with pytest.raises(ValueError, match="HOROVOD_STALL_CHECK_TIME_SECONDS='soon' is not a number"):
        Config.from_env({"HOROVOD_STALL_CHECK_TIME_SECONDS": "soon"})


def test_variables_without_effect_are_named_those_of_launchers_are_not():
    environ = {
        "HOROVOD_FUSION_THRESHOLD": "1",
        "HOROVOD_CYCLE_TIME": "1",
        "HOROVOD_TIMELINE": "/tmp/x",
        "HOROVOD_RANK": "0",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "30",
        "PATH": "",
    }
    assert horovod_env.without_effect(environ) == ["HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD"]


def test_one_warning_names_them_all(caplog):
    horovod_env.warn_of(["HOROVOD_A", "HOROVOD_B"])
    horovod_env.warn_of([])
    (record,) = caplog.records
    assert record.getMessage().startswith("HOROVOD_A, HOROVOD_B: accepted, and without effect")


def test_log_levels_are_horovods():
    assert log_level({}) is None
    assert log_level({"HOROVOD_LOG_LEVEL": "WARNING"}) == logging.WARNING
    assert log_level({"HOROVOD_LOG_LEVEL": "trace"}) == logging.DEBUG
    with pytest.raises(ValueError, match="HOROVOD_LOG_LEVEL='loud': use one of trace, debug"):
        log_level({"HOROVOD_LOG_LEVEL": "loud"})
