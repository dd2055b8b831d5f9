"""Horovod's environment variables."""

import logging

import pytest

from hvd_backup import horovod_env
from hvd_backup.config import Config


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
    assert Config.from_env({"HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "0"}).timeout == 600


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
    assert horovod_env.log_level({}) is None
    assert horovod_env.log_level({"HOROVOD_LOG_LEVEL": "WARNING"}) == logging.WARNING
    assert horovod_env.log_level({"HOROVOD_LOG_LEVEL": "trace"}) == logging.DEBUG
    with pytest.raises(ValueError, match="HOROVOD_LOG_LEVEL='loud': use one of trace, debug"):
        horovod_env.log_level({"HOROVOD_LOG_LEVEL": "loud"})
