"""Rounds over a list of gradients, on numpy arrays: what the optimizer and the tape stand on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_backup import collectives, errors
from hvd_backup.collectives.group import Group
from hvd_backup.rounds.arguments import check_op
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.tensorflow.identity import Identity, check_same
from hvd_backup.tensorflow.layout import GradientSpec, GradientSpecs, Kind, Layout, agree, is_table
from hvd_backup.world import wire

Array = npt.NDArray[Any]


class Slices(NamedTuple):
    """A sparse gradient: values [k, ...] at rows indices [k]; a row may come more than once."""

    values: Array
    indices: npt.NDArray[np.int64]


Gradient = Array | Slices | None


class Options(NamedTuple):
    """What the user asked for; the exchange checks the first five."""

    backup_workers: int | None = None
    late: str = "drop"
    grace: float | None = None
    window: int | None = None
    timeout: float | None = None
    op: str = wire.Average
    sparse_mean: str = "contributors"

    def of_exchange(self) -> dict[str, Any]:
        return dict(zip(self._fields[:5], self[:5], strict=True))

    def check(self, group: Group, predivide: float) -> None:
        """Raises ValueError or TypeError for what the group could not follow."""
        group.check(self.of_exchange())
        check_op(self.op, predivide, self.sparse_mean)


class GradientRounds:
    """The rounds of one list of variables. All ranks make the same calls in the same order.

    `specs` are how the variables' gradients travel if they are dense; None for a variable that can
    have none. The layout is made once, for all variables, so that it does not matter to it which
    gradients a rank has in a step.
    """

    def __init__(
        self,
        name: str,
        variables: Sequence[Identity],
        specs: GradientSpecs,
        options: Options,
        group: Group,
    ) -> None:
        self._variables, self._options, self._group = list(variables), options, group
        self._names = [variable.name for variable in variables]
        self._name = name
        self._exchange: Exchange | None = None
        self._mine = list(specs)
        self._layout = Layout([])
        self.differing: list[bool] = []
        """For each variable: whether at first some ranks had a gradient and others had not."""
        self.stats = Stats()
        self.last_round: Round | None = None

    @property
    def specs(self) -> list[GradientSpec | None]:
        """How each variable's gradient travels; empty before ``prepare()``."""
        return self._layout.specs

    @property
    def is_prepared(self) -> bool:
        return self._exchange is not None

    @property
    def backup_workers(self) -> int:
        return self._ready().options.backup_workers

    def prepare(self, kinds: Sequence[Kind], uncompressed: GradientSpecs) -> None:
        """Make room, at the first call, in which all ranks come here.

        `kinds` are those of this rank's gradients, `uncompressed` the specs of tables. Does nothing
        as long as no rank has a gradient. Raises Mismatch when the ranks' variables differ.
        """
        if self._exchange is not None:
            return
        mine = self._variables, self._mine, list(kinds)
        everybody = collectives.allgather_object(mine, process_set=self._group.process_set)
        check_same([variables for variables, _, _ in everybody])
        agree(self._names, [specs for _, specs, _ in everybody])
        if not any(kind is not None for *_, theirs in everybody for kind in theirs):
            return
        by_rows = self._options.sparse_mean == "rows"
        specs: list[GradientSpec | None] = []
        for i, of_variable in enumerate(zip(*(kinds for *_, kinds in everybody), strict=True)):
            spec, plain = self._mine[i], uncompressed[i]
            if spec and plain and is_table(of_variable, plain.shape, by_rows):
                spec = GradientSpec(plain.dtype, plain.shape, sparse=True)
            specs.append(spec)
            self.differing.append(None in of_variable and any(k is not None for k in of_variable))
        # Rank 0's names: Keras' numbers in them may differ.
        self._make_room(specs, _content(everybody[0][0]))

    def _make_room(self, specs: GradientSpecs, content: str) -> None:
        layout = Layout(specs)
        exchange = Exchange(
            layout.flats,
            name=self._name + content,
            signature=(list(specs), self._options),
            add=self._options.op == wire.Sum,
            world=self._group.world(),
            **self._options.of_exchange(),
        )
        exchange.stats = self.stats
        self._layout, self._exchange = layout, exchange
        self._slots = layout.gradients(exchange.slots)
        self._slots_present = layout.present(exchange.slots)
        self._slots_touched = layout.touched(exchange.slots)
        for view in exchange.slots:
            view[:] = 0

    def contribute(
        self, gradients: Sequence[Gradient], weight: float
    ) -> tuple[list[Gradient], Array]:
        """One round: this rank's gradients in, the contributors' out, and which of them are there.

        None stands for a gradient that is not there; it counts as zero if others have one. The
        second result has a bool per variable: whether some contributor had a gradient.
        """
        exchange = self._ready()
        for i, gradient in enumerate(gradients):
            if self.specs[i] is not None:
                self._stage(i, gradient)
        self.last_round = exchange.arrive_and_wait(weight)
        return self._load(exchange)

    def skip(self) -> tuple[list[Gradient], Array]:
        """One round without a gradient of this rank's."""
        exchange = self._ready()
        exchange.skip()
        self.last_round = exchange.wait()
        return self._load(exchange)

    def overtaken(self) -> bool:
        """Whether the next round is closed already, so that computing for it is in vain."""
        return self._exchange is not None and self._exchange.sealed_without_me()

    def close(self) -> None:
        """Nobody waits for this rank in these rounds any more."""
        if self._exchange is not None:
            self._exchange.close()

    def failed(self, error: errors.Error) -> BaseException:
        """`error`, to be raised; the other ranks hear of it, as no round can follow."""
        return self._ready().failed(error)

    def _ready(self) -> Exchange:
        if self._exchange is None:
            raise errors.Error(f"{self._name}: no gradient was exchanged yet; apply one first")
        return self._exchange

    def _stage(self, i: int, gradient: Gradient) -> None:
        slot = self._slots[i]
        assert slot is not None
        self._slots_present[i] = gradient is not None
        touched = self._slots_touched.get(i)
        if touched is not None:
            before = np.flatnonzero(touched)  # also those of a carried contribution
            slot[before] = 0
            touched[before] = 0
        if gradient is None:
            if touched is None:
                slot[...] = 0
        elif isinstance(gradient, Slices):
            assert touched is not None
            self._check_rows(i, gradient.indices, len(slot))
            np.add.at(slot, gradient.indices, gradient.values)
            touched[gradient.indices] = 1
        else:
            self._check_shape(i, gradient.shape, slot.shape)
            slot[...] = gradient
            if touched is not None:
                touched[:] = 1

    def _check_shape(self, i: int, mine: tuple[int, ...], agreed: tuple[int, ...]) -> None:
        if mine != agreed:  # numpy would repeat it
            raise ValueError(
                f"{self._names[i]}: its compressed gradient has the shape {list(mine)}, that of "
                f"zeros {list(agreed)}; a compressor's tensors must have one shape"
            )

    def _check_rows(self, i: int, indices: Array, rows: int) -> None:
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < rows:
            raise ValueError(
                f"{self._names[i]}: its sparse gradient has rows {indices.min()} to "
                f"{indices.max()}, but the variable has {rows}"
            )

    def _load(self, exchange: Exchange) -> tuple[list[Gradient], Array]:
        flats = exchange.results
        results: list[Gradient] = list(self._layout.dense_copies(flats))
        tables = self._layout.gradients(flats)
        for i, touched in self._layout.touched(flats).items():
            table = tables[i]
            assert table is not None
            rows = np.flatnonzero(touched)
            values = table[rows]
            if self._options.sparse_mean == "rows":
                counts = touched[rows].reshape(-1, *[1] * (values.ndim - 1))
                values = (values / counts).astype(values.dtype)
            results[i] = Slices(values, rows)
        return results, self._layout.present(flats) > 0


def _content(variables: Sequence[Identity]) -> str:
    if not variables:
        return "(no variable)"
    more = f" and {len(variables) - 1} more" if len(variables) > 1 else ""
    return f"({variables[0].name}{more})"
