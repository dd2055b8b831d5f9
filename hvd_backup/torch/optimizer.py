"""DistributedOptimizer: any torch optimizer, stepping in rounds with the other ranks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch

from hvd_backup.collectives.group import Group
from hvd_backup.rounds import arguments
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.torch import owners
from hvd_backup.torch.arguments import check_on_nonfinite, names_of, parameter_names
from hvd_backup.torch.attempt import Attempt
from hvd_backup.torch.compression import Compresses, Compression
from hvd_backup.torch.encoding import Encoding
from hvd_backup.torch.outside import Outside
from hvd_backup.torch.rounds import Rounds
from hvd_backup.torch.stepping import check_can_be_extended
from hvd_backup.world.wire import Average, Sum


def DistributedOptimizer(  # noqa: N802 (Horovod's name)
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: Compresses = Compression.none,
    backward_passes_per_step: int = 1,
    op: str = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | list[list[torch.Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: Any = None,
    *,
    backup_workers: int | None = None,
    late: str = "drop",
    grace: float | None = None,
    window: int | None = None,
    timeout: float | None = None,
    on_nonfinite: str = "contribute",
    sparse_mean: str = "contributors",
    gradient_as_bucket_view: bool = False,
) -> DistributedOptimizerType:
    """Make every ``optimizer.step()`` one round: it applies the mean over the round's contributors.

    A round closes when R - b of R ranks have contributed their gradients. A late rank applies the
    same mean; what becomes of its own gradient is said by `late`. All ranks construct the optimizer
    with the same arguments and make the same number of steps. The first ``step()`` sets the rounds
    up.

    Horovod's ``DistributedOptimizer``, with its positional arguments in the order of 0.28.1, and
    backup workers as in Chen et al., "Revisiting Distributed Synchronous SGD" (2016).

    Args:
        optimizer: Any torch optimizer. Its parameters have any shape and a floating dtype; where a
            rank has no gradient, it contributes zeros.
        named_parameters: ``model.named_parameters()``. Errors use the names, and ranks compare
            them.
        compression: The dtype in which gradients travel: ``Compression.none``, ``.fp16``,
            ``.bf16``, or a class with ``compress`` and ``decompress``.
        backward_passes_per_step: How many backward passes add to a gradient before ``step()``. They
            are summed: scale the loss for their mean. One more pass raises AssertionError.
        op: Average, or Sum: the weighted sum over the contributors, that is over R - b gradients.
        gradient_predivide_factor: Checked as in Horovod; without effect, as sums are made in
            float32 or wider.
        num_groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        groups: Checked as in Horovod; without effect, as a round takes the whole gradient.
        sparse_as_dense: Find the rows of a sparse result by looking for what is not zero.
        process_set: The ranks whose rounds these are, counted from 0 in them. On other ranks
            ``step()`` is the optimizer's own. Default: all ranks.
        backup_workers: b, how many of the R ranks a round does not wait for. None:
            HVD_BACKUP_WORKERS, else 0.
        late: What becomes of a gradient that misses its round: "drop", or "carry" it into the next.
        grace: Seconds that a round stays open after its quorum. None: HVD_BACKUP_GRACE, else 0.
        window: How many results are kept for late ranks, 1 to 4096, and so how many rounds a rank
            can fall behind before the others wait for it. None: HVD_BACKUP_WINDOW, else by size.
        timeout: Seconds that one wait may take. None: HVD_BACKUP_TIMEOUT, else 600.
        on_nonfinite: What to do with a gradient that has NaN or inf: "contribute" it, "abstain"
            from the round, or "raise" FloatingPointError before anything is sent.
        sparse_mean: A sparse gradient's rows are the mean over all "contributors", or over those
            that touched the row ("rows").
        gradient_as_bucket_view: Let ``p.grad`` lie in memory that ranks share (CPU only). That
            saves two copies per step, but a tensor that was got from ``p.grad`` then changes with
            the next ``backward()`` or ``step()``.

    Returns:
        `optimizer` itself, with its class, state, schedulers and hooks, and with the methods and
        attributes of ``DistributedOptimizerType``: ``synchronize()``, ``skip_synchronize()``,
        ``set_backward_passes_per_step()``, ``attempt()``, ``stats()``, ``close()``, ``last_round``
        and ``weight``.

    Raises:
        TypeError: `optimizer` is not a torch optimizer or its ``step`` cannot be replaced, a
            parameter cannot be averaged, or an argument is of the wrong type.
        ValueError: An argument is out of range, names leave a doubt, or a parameter belongs to a
            layer that needs every rank (SyncBatchNorm) and there are backup workers.
        NotImplementedError: `op` is Adasum.
        NotInitialized: ``init()`` was not called.
        DeviceError: A parameter is on a GPU that this build or its driver cannot use.

        ``step()`` raises Mismatch, on every rank, when the ranks' arguments or parameters differ;
        RoundTimeout, which names the missing ranks; and PeerFailed.

    Example:
        >>> import torch
        >>> import hvd_backup.torch as hvd
        >>> hvd.init()
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters())
        >>> hvd.broadcast_parameters(model.state_dict())
        >>> hvd.broadcast_optimizer_state(optimizer)
        >>> for step in range(2):
        ...     with optimizer.attempt():  # left early when the round is over without this rank
        ...         optimizer.zero_grad()
        ...         model(torch.ones(3, 2)).sum().backward()
        ...     optimizer.step()
        >>> optimizer.last_round.number
        1
    """
    check_can_be_extended(optimizer)
    arguments.check_compression(compression)
    arguments.check_passes(backward_passes_per_step)
    arguments.check_op(op, gradient_predivide_factor, sparse_mean)
    arguments.check_groups(num_groups, groups, torch.Tensor, "torch.Tensor")
    check_on_nonfinite(on_nonfinite)
    group = Group(process_set)
    options = {
        "backup_workers": backup_workers,
        "late": late,
        "grace": grace,
        "window": window,
        "timeout": timeout,
    }
    b = group.check(options).backup_workers
    pairs = None if named_parameters is None else list(named_parameters)
    names = names_of(optimizer, pairs)
    rounds: Rounds | Outside
    if group.included:
        rounds = Rounds(
            optimizer,
            names,
            Encoding(compression, sparse_as_dense, sparse_mean),
            options,
            group,
            backup_workers=b,
            add=op == Sum,
            passes=backward_passes_per_step,
            on_nonfinite=on_nonfinite,
            view=gradient_as_bucket_view,
        )
    else:
        params = (p for group in optimizer.param_groups for p in group["params"])
        for former in owners.owners_of(params):
            former.hand_over(optimizer)
        rounds = Outside(optimizer)
    _extend(optimizer, rounds)
    vars(optimizer)["_parameter_names"] = parameter_names(optimizer, pairs)  # Horovod's name
    return cast("DistributedOptimizerType", optimizer)


_METHODS = (
    *("attempt", "close", "set_backward_passes_per_step", "skip_synchronize", "stats"),
    *("synchronize", "zero_grad"),
)


def _extend(optimizer: torch.optim.Optimizer, rounds: Rounds | Outside) -> None:
    """Give the optimizer what DistributedOptimizerType has.

    In instance attributes, not by a subclass: isinstance, pickling and schedulers see no change.
    """
    extended: dict[str, Any] = vars(optimizer)
    extended.update({name: getattr(rounds, name) for name in _METHODS})
    extended.update(last_round=None, weight=1.0)
    extended["synchronize"] = torch.compiler.disable(rounds.synchronize)  # type: ignore[no-untyped-call]


if TYPE_CHECKING:

    class DistributedOptimizerType(torch.optim.Optimizer):
        """What DistributedOptimizer returns, as type checkers see it."""

        last_round: Round | None
        """The ``Round`` of the last step; None before the first."""
        weight: float
        """How much this rank's gradient counts (1.0): set it to the batch size, say. 0 abstains."""

        def attempt(self) -> Attempt:
            """Begin the computation of one gradient, which is left once it can no longer count.

            Returns:
                A context; see ``Attempt``.

            Raises:
                RuntimeError: It is used within another attempt, or another optimizer has taken
                    over.
            """

        def close(self) -> None:
            """Take all hooks away: the optimizer is a local one again."""

        def set_backward_passes_per_step(self, passes: int) -> None:
            """Change how many backward passes add to a gradient before ``step()``, on all ranks.

            Args:
                passes: The number of passes, 1 or more.

            Raises:
                ValueError: `passes` is not such a number.
            """

        def skip_synchronize(self) -> AbstractContextManager[None]:
            """Make ``step()`` apply what ``synchronize()`` has left in ``p.grad``, without a round.

            Returns:
                A context. ``step()`` in it raises RuntimeError without ``synchronize()`` before it.
            """

        def stats(self) -> Stats:
            """The rounds of this rank.

            Returns:
                Its ``Stats``; without rounds before the first step.
            """

        def synchronize(self) -> None:
            """Go through the round now: ``p.grad`` is then the agreed mean, the same on every rank.

            Then step ``with optimizer.skip_synchronize():``; without it ``step()`` makes a further
            round.

            Raises:
                RuntimeError: It is within ``attempt()``, or another optimizer has taken over.
                Mismatch: The ranks' arguments or parameters differ; on every rank.
                RoundTimeout: The quorum did not come in time; the text names the missing ranks.
                PeerFailed: Another rank died, left or failed.
            """
