"""The states of a DistributedOptimizer between two steps, and what may follow each. Pure."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where an optimizer is in its cycle of one round and one step."""

    COMPUTING = "the user's code computes gradients, or may"
    ATTEMPTING = "within the block of attempt()"
    OVERTAKEN = "the block was left early: this rank goes through the round without a gradient"
    AGREED = "p.grad is the round's result, to be stepped with"
    STEPPING = "within the optimizer's own step()"
    RETIRED = "another has taken over the parameters"
    CLOSED = "the optimizer is a local one again"


_OVER = (State.RETIRED, State.CLOSED)


class Cycle:
    """The state of one DistributedOptimizer, and its transitions.

    A cycle is COMPUTING (or ATTEMPTING, then COMPUTING or OVERTAKEN), AGREED, STEPPING, COMPUTING.
    RETIRED and CLOSED are for good, but that a retired one may be closed.

    Raises:
        RuntimeError: From a method that does not fit the state. The state stays.
    """

    def __init__(self) -> None:
        self.state = State.COMPUTING
        self._retired_by = ""

    def is_in(self, *states: State) -> bool:
        """Whether the state is one of these."""
        return self.state in states

    def begin_attempt(self) -> None:
        """The user enters the block of ``attempt()``."""
        self.check_not_retired()
        if self.state is State.ATTEMPTING:
            raise RuntimeError("attempt() within attempt(); one block per step")
        self._become(State.ATTEMPTING)

    def end_attempt(self, *, overtaken: bool) -> None:
        """The block is left, early if its round was over."""
        if self.state is State.ATTEMPTING:
            self._become(State.OVERTAKEN if overtaken else State.COMPUTING)

    def begin_round(self, call: str) -> bool:
        """`call` makes a round. Whether this rank contributes to it.

        If the round raises, the gradients are this rank's own still: the state is COMPUTING.
        """
        self.check_not_attempting(call)
        contributes = self.state is not State.OVERTAKEN
        self._become(State.COMPUTING)
        return contributes

    def end_round(self) -> None:
        """``p.grad`` is the result."""
        self._become(State.AGREED)

    def begin_step(self) -> None:
        """The optimizer's own step begins."""
        self._become(State.STEPPING)

    def end_step(self) -> None:
        """It has ended, or there is none in this cycle."""
        self._become(State.COMPUTING)

    def start_anew(self) -> None:
        """The optimizer's state was loaded."""
        self._become(State.COMPUTING)

    def retire(self, why: str) -> None:
        """Another has taken over. `why` is the text of the error that ``step()`` raises now."""
        self._become(State.RETIRED)
        self._retired_by = why

    def close(self) -> None:
        """The user wants a local optimizer."""
        self.state = State.CLOSED

    def check_not_retired(self) -> None:
        """Raises RuntimeError if another has taken over."""
        if self.state is State.RETIRED:
            raise RuntimeError(self._retired_by)

    def check_not_attempting(self, call: str) -> None:
        """Raises RuntimeError if `call` is made in the block of ``attempt()``, or after the end."""
        self.check_not_retired()
        if self.state is State.ATTEMPTING:
            raise RuntimeError(f"{call} belongs after the attempt() block, not into it")

    def _become(self, state: State) -> None:
        if self.state not in _OVER:
            self.state = state
