"""DistributedDataParallel on rounds: a communication hook, for users of native torch.

DDP gives its hook the gradient in buckets. Here all of them are one contribution: the hook keeps
each bucket until the last is in, goes through one round, and answers them all. So a rank is in a
round with its whole gradient, or late with its whole gradient.
"""

import os
import socket
import weakref
from typing import Any, cast

import torch
from torch import distributed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from hvd_backup.collectives import operations
from hvd_backup.config import RoundOptions
from hvd_backup.rounds.arguments import check_weight
from hvd_backup.rounds.exchange import Exchange
from hvd_backup.rounds.reports import Round, Stats
from hvd_backup.torch import owners
from hvd_backup.torch.buckets import Buckets
from hvd_backup.torch.device import by_device, check_devices
from hvd_backup.torch.layout import GradientLayout
from hvd_backup.world import runtime


def set_torchrun_env(port: int | None = None) -> None:
    """Set the environment variables that torchrun would set, from this world's ranks.

    They are RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
    ``torch.distributed.init_process_group`` reads them, and so do libraries that make a process
    group of their own (Accelerate, the Trainer of Transformers). All ranks call this together.

    Args:
        port: A port of rank 0's host. None: a free one.

    Raises:
        NotInitialized: ``init()`` was not called.
        RoundTimeout: A rank did not come in time; the text names it.
        PeerFailed: Another rank died, left or failed.
    """
    world = runtime.current()
    there = (socket.gethostname(), port or _free_port()) if world.rank == 0 else None
    host, port = operations.broadcast_object(there, 0)
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_WORLD_SIZE=str(world.local_size),
        MASTER_ADDR="127.0.0.1" if host == socket.gethostname() else host,
        MASTER_PORT=str(port),
    )


def register(
    model: DistributedDataParallel,
    *,
    backup_workers: int | None = None,
    late: str = "drop",
    grace: float | None = None,
    window: int | None = None,
    timeout: float | None = None,
) -> "DdpHook":
    """Make every backward pass of `model` one round: its gradients are the contributors' mean.

    The process group of `model` has the same ranks in the same order as ``init()``; it may be of
    gloo. DDP goes on using it for its set-up: one broadcast in its constructor, and one before the
    second iteration. Optimizer, clipping and schedulers stay local, and are equal on all ranks as
    the gradients are. Passes within ``model.no_sync()`` are not rounds.

    Args:
        model: The wrapped model. Its trainable parameters have any shape and a floating dtype.
        backup_workers: b, how many of the R ranks a round does not wait for. None:
            HVD_BACKUP_WORKERS, else 0.
        late: What becomes of a gradient that misses its round: "drop", or "carry" it into the next.
        grace: Seconds that a round stays open after its quorum. None: HVD_BACKUP_GRACE, else 0.
        window: How many results are kept for late ranks, 1 to 4096, and so how many rounds a rank
            can fall behind before the others wait for it. None: HVD_BACKUP_WINDOW, else by size.
        timeout: Seconds that one wait may take. None: HVD_BACKUP_TIMEOUT, else 600.

    Returns:
        The ``DdpHook`` of the model.

    Raises:
        TypeError: `model` is not a DistributedDataParallel, or a parameter cannot be averaged.
        ValueError: An option is out of range, the process group has other ranks, or with backup
            workers DDP would wait for every rank: `broadcast_buffers` of a model with buffers,
            `find_unused_parameters`, a SyncBatchNorm.
        NotInitialized: ``init()`` was not called.
        DeviceError: A parameter is on a GPU that this build or its driver cannot use.

        ``backward()`` raises Mismatch, RoundTimeout and PeerFailed; with backup workers
        RuntimeError within ``model.join()``.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"register takes a DistributedDataParallel, not {type(model).__name__}")
    world = runtime.current()
    options: dict[str, Any] = {
        "backup_workers": backup_workers,
        "late": late,
        "grace": grace,
        "window": window,
        "timeout": timeout,
    }
    resolved = RoundOptions.resolve(world.config, world=world.size, nbytes=0, **options)
    _check_group(model)
    if resolved.backup_workers > 0:
        _check_no_hidden_barriers(model)
    hook = DdpHook(model, resolved.backup_workers, options)
    model.register_comm_hook(hook, DdpHook.take)
    return hook


class DdpHook:
    """The rounds of one model, made by ``register``.

    Attributes:
        backup_workers: b, how many ranks a round does not wait for.
        last_round: The ``Round`` of the last backward pass; None before the first.
    """

    def __init__(
        self, model: DistributedDataParallel, backup_workers: int, options: dict[str, Any]
    ) -> None:
        named = _reduced(model)
        self._names = [name for name, _ in named]
        self._params = [param for _, param in named]
        for name, param in named:
            if backup_workers > 0 and (why := owners.needs_every_rank(param)):
                raise ValueError(
                    f"backup_workers={backup_workers}, but parameter {name!r} is of a {why}"
                )
        names = {id(param): name for name, param in named}
        self._layout = GradientLayout(self._params, self._names, rows=False)
        check_devices(self._params, lambda param: names[id(param)])
        gpus = [device for device in by_device(self._params) if device.type != "cpu"]
        self._devices: list[int | str | torch.device] = [*gpus]
        # Weak: DDP's reducer holds the hook where Python's collector cannot see it.
        self._model = weakref.ref(model)
        self._options = options
        self._exchange: Exchange | None = None
        self._buckets: Buckets
        self._waiting: list[tuple[Future[torch.Tensor], Any]] = []
        self._retired = False
        self._missing = self._all = {id(param) for param in self._params}
        self._weight = 1.0
        self.backup_workers = backup_workers
        self.last_round: Round | None = None
        """The round of the last backward pass."""
        for former in owners.owners_of(self._params):
            former.hand_over(None)
        for param in self._params:
            owners.take(param, self)

    @property
    def weight(self) -> float:
        """How much this rank's gradient counts in the mean: its batch size, say. 0 abstains.

        Setting it raises TypeError for what is not a number, and ValueError for one that is neither
        0 nor between 1e-30 and 1e30: an error amid ``backward()`` would be the end of DDP's model.
        """
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = check_weight(value, "hook.weight")

    def stats(self) -> Stats:
        """The rounds of this rank.

        Returns:
            Its ``Stats``; without rounds before the first backward pass.
        """
        return self._exchange.stats if self._exchange is not None else Stats()

    def close(self) -> None:
        """End the rounds. DDP keeps its hook: drop the wrapped model, and wrap the module anew."""
        for param in self._params:
            owners.give_back(param, self)
        owners.forget(self)
        if self._exchange is not None:
            self._buckets.settle()
            self._exchange.close()

    def hand_over(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Let a DistributedOptimizer, or the hook of a model wrapped later, take over.

        The package calls it.

        Args:
            optimizer: The optimizer that takes over; None: a hook does.
        """
        self._retired = True
        self.close()

    # DDP compares these annotations with the types: no strings here.
    def take(self, bucket: distributed.GradBucket) -> Future[torch.Tensor]:  # type: ignore[name-defined]
        """DDP's communication hook. DDP calls it once for each bucket.

        Args:
            bucket: Gradients of some parameters, as a flat tensor of shape [elements] and a
                floating dtype.

        Returns:
            A future of the agreed mean, in a tensor of the same shape and dtype. It is set when the
            last bucket has come.

        Raises:
            RuntimeError: What needs gradients has changed since DDP was constructed, or a
                DistributedOptimizer has taken over.
            Mismatch: The ranks' options or parameters differ; on every rank.
            RoundTimeout: The quorum did not come in time; the text names the missing ranks.
            PeerFailed: Another rank died, left or failed.
        """
        exchange = self._prepared()
        params = {id(param) for param in bucket.parameters()}
        if not params <= self._missing:  # the last pass has ended early, by an exception
            self._missing = self._all
            self._waiting.clear()
        self._missing = self._missing - params
        for param, grad in zip(bucket.parameters(), bucket.gradients(), strict=True):
            self._buckets.put(param, grad)
        # With devices, who waits for the answer has its streams wait for ours.
        answer: Future[torch.Tensor] = Future(devices=self._devices)
        self._waiting.append((answer, bucket))
        # Not bucket.is_last(), which no bucket is in the first pass of a static graph.
        if not self._missing:
            self._missing = self._all
            self._go_through_a_round(exchange)
        elif bucket.is_last():
            lacking = [
                n for n, p in zip(self._names, self._params, strict=True) if id(p) in self._missing
            ]
            raise RuntimeError(
                f"DistributedDataParallel has no bucket for {', '.join(map(repr, lacking))}: wrap "
                "the model anew, and register the hook, after what needs gradients has changed"
            )
        return answer

    def _go_through_a_round(self, exchange: Exchange) -> None:
        waiting, self._waiting = self._waiting, []
        self._buckets.stage()
        self.last_round = exchange.arrive_and_wait(self.weight)
        self._buckets.load()
        for answer, bucket in waiting:
            answer.set_result(bucket.buffer())

    def _prepared(self) -> Exchange:
        if self._retired:
            raise RuntimeError(
                "a DistributedOptimizer, or a DDP hook registered later, has taken over parameters "
                "of this hook's model: each gradient would be averaged twice; use one of them, and "
                "for the hook wrap the model in DistributedDataParallel anew"
            )
        model = self._model()
        if getattr(model, "_join_config", None) is not None:
            joins = cast("Any", model)._join_config.enable  # noqa: SLF001 (no public name)
            if joins and self.backup_workers > 0:
                raise RuntimeError(
                    "model.join() lets every iteration wait for every rank, so that backup workers "
                    "would have nothing to save; give all ranks as many batches, or use weight=0 "
                    "on those that have none"
                )
        if self._exchange is None:
            what = ", ".join(f"{n}: {d}{list(s)}" for n, d, s, _ in self._layout.signature)
            exchange = Exchange(
                self._layout.flats,
                name=f"DDP hook({what})",
                signature=self._layout.signature,
                **self._options,
            )
            with runtime.current().failing_together():
                self._buckets = Buckets(self._params, self._layout, exchange)
            self._exchange = exchange
        return self._exchange


def _reduced(model: DistributedDataParallel) -> list[tuple[str, torch.Tensor]]:
    """The parameters that DDP has buckets for, with their names."""
    ignored = getattr(model, "parameters_to_ignore", ())
    return [
        (name, param)
        for name, param in model.module.named_parameters()
        # DDP's own names begin with a dot for parameters of the module itself.
        if param.requires_grad and not {name, f".{name}"} & set(ignored)
    ]


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _check_group(model: DistributedDataParallel) -> None:
    group = model.process_group
    ranks = distributed.get_process_group_ranks(group)
    mine = distributed.get_rank(group)
    if len(ranks) != runtime.size() or mine != runtime.rank():
        raise ValueError(
            f"the model's process group has rank {mine} of {len(ranks)} here, hvd_backup has rank "
            f"{runtime.rank()} of {runtime.size()}; pass rank=hvd.rank(), world_size=hvd.size() to "
            "torch.distributed.init_process_group"
        )


def _check_no_hidden_barriers(model: DistributedDataParallel) -> None:
    unless = "would make backup workers useless; pass"
    if model.broadcast_buffers and any(True for _ in model.module.buffers()):
        raise ValueError(
            "DistributedDataParallel(broadcast_buffers=True), the default, sends rank 0's buffers "
            f"to all ranks before each forward pass: it waits for every rank, and {unless} "
            "broadcast_buffers=False (forward_sync_buffers=False in newer torch)"
        )
    if model.find_unused_parameters:
        raise ValueError(
            "DistributedDataParallel(find_unused_parameters=True) asks all ranks in each backward "
            f"pass which parameters they used: it waits for every rank, and {unless} "
            "find_unused_parameters=False"
        )
