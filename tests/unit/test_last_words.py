"""Tracebacks of several ranks that are not mixed line by line."""

import sys

import pytest

from hvd_backup.world import last_words


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


class Pieces:
    """A standard error that keeps what is written at a time."""

    def __init__(self):
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)

    def flush(self):
        pass


def end_with(error):
    try:
        raise error
    except type(error) as caught:
        sys.excepthook(type(caught), caught, caught.__traceback__)


def test_a_traceback_is_one_write(monkeypatch):
    pieces = Pieces()
    monkeypatch.setattr(sys, "stderr", pieces)
    last_words.print_in_one_piece()
    end_with(KeyError("x"))
    (text,) = pieces.pieces
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("KeyError: 'x'\n")


def test_a_hook_of_the_users_stays(monkeypatch):
    def own(*_):
        pass

    monkeypatch.setattr(sys, "excepthook", own)
    last_words.print_in_one_piece()
    assert sys.excepthook is own


def test_without_a_standard_error_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    last_words.print_in_one_piece()
    end_with(KeyError("x"))
