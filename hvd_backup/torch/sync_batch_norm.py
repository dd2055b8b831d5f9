"""SyncBatchNorm: batch statistics over the batches of all ranks, as Horovod's."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hvd_backup.torch import owners
from hvd_backup.torch.differentiable import allgather, allreduce
from hvd_backup.world import runtime
from hvd_backup.world.wire import Sum

_WHY = (
    "SyncBatchNorm, whose forward and backward pass wait for every rank: backup workers would have "
    "nothing to save; use torch.nn.BatchNorm2d (GroupNorm, for small batches), or backup_workers=0"
)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose mean and variance, in training, are over the batches of all ranks.

    The input has shape (N, C, …) and dtype float32 or float64; N may differ between ranks. Forward
    and backward pass wait for every rank, in the same order on each. A GPU's statistics travel
    through the host's memory. In evaluation it is torch's BatchNorm. With backup workers
    DistributedOptimizer raises ValueError for its parameters.

    Horovod's ``SyncBatchNorm``. Ioffe, Szegedy, "Batch normalization" (2015), over the union of the
    batches. Variances are merged as in Chan, Golub, LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979).

    Args:
        num_features: C, the number of channels.
        eps: Added to the variance.
        momentum: The share of the newest batch in the running statistics; None: their mean.
        affine: Whether there are a weight and a bias per channel.
        track_running_stats: Whether there are running statistics for evaluation.

    Raises:
        ValueError: In the forward pass: the input has less than two axes.
        RuntimeError: In the forward pass: the layer is a copy or has no parameters, and there are
            backup workers.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        for param in self.parameters():
            owners.mark_needs_every_rank(param, _WHY)

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 (torch's name)
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        batch_statistics = self.training or not self.track_running_stats
        if not batch_statistics or runtime.size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        self._check_no_backups()
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        apply: Any = _Normalize.apply
        normal: torch.Tensor
        normal, mean, variance, count = apply(input, self.eps)
        if self.training and self.track_running_stats:
            self._track(mean, variance * (count / max(count - 1, 1)))
        if not self.affine:
            return normal
        return normal * _wide(self.weight, normal) + _wide(self.bias, normal)

    def _check_no_backups(self) -> None:
        having = [owners.owner(p) for p in self.parameters()]
        backups = [one.backup_workers for one in having if one is not None]
        most = max(backups) if backups else owners.most_backup_workers()
        if most > 0:
            raise RuntimeError(f"backup_workers={most}, but the model has a {_WHY}")

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def _axes(x: torch.Tensor) -> list[int]:
    """All but the channels'."""
    return [axis for axis in range(x.dim()) if axis != 1]


def _wide(channel: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Per channel -> to be combined with `like`."""
    return channel.to(like.dtype).view([1, -1] + [1] * (like.dim() - 2))


def _merge(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """All ranks' (count, means, sums of squared deviations) -> mean, variance, count; float64."""
    channels = (rows.size(1) - 1) // 2
    counts, means, squares = rows[:, :1], rows[:, 1 : channels + 1], rows[:, channels + 1 :]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    deviations = squares.sum(0) + (counts * (means - mean) ** 2).sum(0)
    return mean, deviations / total, float(total)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps), both over all ranks, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> tuple[Any, ...]:
        count = x.numel() // x.size(1)
        wide = x.detach().double()
        mean = wide.mean(_axes(x)) if count else wide.new_zeros(x.size(1))
        squares = ((wide - _wide(mean, wide)) ** 2).sum(_axes(x))
        row = torch.cat([wide.new_tensor([float(count)]), mean, squares])
        mean, variance, total = _merge(allgather(row[None]))
        scale = (variance + eps).rsqrt()
        normal = ((wide - _wide(mean, wide)) * _wide(scale, wide)).to(x.dtype)
        ctx.save_for_backward(normal, scale)
        ctx.total = total
        ctx.mark_non_differentiable(mean, variance)
        return normal, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        normal, scale = ctx.saved_tensors
        grad = gradients[0]
        wide, y = grad.double(), normal.double()
        sums = torch.stack([wide.sum(_axes(grad)), (wide * y).sum(_axes(grad))])
        mean_grad, mean_along = allreduce(sums, op=Sum) / ctx.total
        inner = wide - _wide(mean_grad, wide) - y * _wide(mean_along, wide)
        return (inner * _wide(scale, wide)).to(grad.dtype), None
