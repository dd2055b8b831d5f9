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

    The positional arguments are those of Horovod 0.28.1, in its order. Returns `optimizer` itself,
    with its class, state, schedulers and hooks, and these besides:

    - ``synchronize()``: the round now instead of in ``step()``, to clip the agreed mean, say; then
      step ``with optimizer.skip_synchronize():``.
    - ``set_backward_passes_per_step(n)``.
    - ``attempt()``: a context for forward and backward that is left early once the round is sealed
      without this rank; see ``Attempt``.
    - ``last_round``: the ``Round`` of the last step, None before the first.
    - ``weight``: how much this rank's gradient counts (1.0; set it to the batch size, say). With 0
      the rank abstains: it counts for the quorum and not in the mean.
    - ``stats()``: this rank's ``Stats``.
    - ``close()``: take the hooks away again.

    The arguments:

    - `named_parameters`: ``model.named_parameters()``, names for errors.
    - `compression`: the dtype in which gradients travel: ``Compression.none``, ``.fp16``,
      ``.bf16``, or a class with ``compress`` and ``decompress``.
    - `backward_passes_per_step`: how many backward passes add to a gradient before ``step()``. They
      are summed; scale the loss for their mean. One more raises AssertionError.
    - `op`: ``Average``, or ``Sum``: the weighted sum over the contributors, that is Horovod's
      without backups, and of R - b gradients with them.
    - `gradient_predivide_factor`, `num_groups`, `groups`: checked as in Horovod. They change
      nothing: means are added up in float32 or wider, and a round takes the whole gradient.
    - `sparse_as_dense`: find the rows of a sparse result by looking for what is not zero.
    - `process_set`: whose rounds these are; they count the set's ranks from 0. On a rank outside of
      it ``step()`` is the optimizer's own.
    - `backup_workers`: b of R ranks; R - b gradients close a round (default: HVD_BACKUP_WORKERS,
      else 0: every rank counts, as in Horovod).
    - `late`: what becomes of a gradient that misses its round: "drop", or "carry" it into the next.
    - `grace`, `timeout`: seconds.
    - `window`: how many results are kept for late ranks, and so how many rounds a rank may fall
      behind before the others wait for it.
    - `on_nonfinite`: what to do with a gradient that has NaN or inf: "contribute" it, "abstain"
      from the round, or "raise" FloatingPointError before anything is sent.
    - `sparse_mean`: a sparse gradient's rows are the mean over all "contributors", or over those
      that touched the row ("rows").
    - `gradient_as_bucket_view`: let ``p.grad`` lie in the memory that ranks share (CPU only). It
      saves two copies of the gradient per step, but a tensor that was got from ``p.grad`` changes
      with the next ``backward()`` or ``step()``: keep none. Without it such a tensor changes only
      where it would in torch alone: ``step()`` gives ``p.grad`` another tensor, unless it is still
      the one that the last ``step()`` left.

    All ranks construct it with the same arguments; the first ``step()`` sets it up. Every rank
    makes the same number of steps.

    Raises ValueError, TypeError or NotImplementedError for arguments that cannot be. ``step()``
    raises Mismatch when ranks disagree, RoundTimeout, which names the missing ranks, and
    PeerFailed.
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
        for former in owners.owners_of(
            p for group in optimizer.param_groups for p in group["params"]
        ):
            former.hand_over(optimizer)
        rounds = Outside(optimizer)
    # Instance attributes, not a subclass: isinstance, pickling and schedulers see what they saw.
    extended: dict[str, Any] = vars(optimizer)
    extended.update({name: getattr(rounds, name) for name in _METHODS})
    extended.update(last_round=None, weight=1.0)
    extended["synchronize"] = torch.compiler.disable(rounds.synchronize)  # type: ignore[no-untyped-call]
    extended["_parameter_names"] = parameter_names(optimizer, pairs)  # Horovod's name
    return cast("DistributedOptimizerType", optimizer)


_METHODS = (
    *("attempt", "close", "set_backward_passes_per_step", "skip_synchronize", "stats"),
    *("synchronize", "zero_grad"),
)

if TYPE_CHECKING:

    class DistributedOptimizerType(torch.optim.Optimizer):
        """What DistributedOptimizer returns, as type checkers see it."""

        last_round: Round | None
        weight: float

        def attempt(self) -> Attempt: ...
        def close(self) -> None: ...
        def set_backward_passes_per_step(self, passes: int) -> None: ...
        def skip_synchronize(self) -> AbstractContextManager[None]: ...
        def stats(self) -> Stats: ...
        def synchronize(self) -> None: ...
