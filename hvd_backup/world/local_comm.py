"""What stands in for mpi4py.MPI when ``hvd-backup run --no-mpi`` has started this process.

Its communicators have that part of mpi4py's interface that this package uses; other names are
refused in words. All they do is one thing: every member gives some bytes and gets those of all.
The bytes travel by the launcher, to which every rank has a socket, and by shared memory if they are
many. The launcher knows who has ended: what can never be complete raises PeerFailed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from hvd_backup import errors
from hvd_backup._core import Segment
from hvd_backup.world import launch
from hvd_backup.world.frames import Frame
from hvd_backup.world.local_link import Link

T = TypeVar("T")
Array: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]

# mpi4py's names
COMM_TYPE_SHARED = 1
UNDEFINED = -32766
IDENT, CONGRUENT, SIMILAR, UNEQUAL = range(4)
SUM, PROD, MIN, MAX = np.add, np.multiply, np.minimum, np.maximum

_BY_SOCKET = 64 * 1024  # bytes that go through the launcher; more go by shared memory
# Seconds after which a barrier that will never be complete raises. A rank that looks at the notice
# board meanwhile can say more.
_SAY_LATER_S = 0.5
_LOOK_S = 0.05  # at most so long does one thread keep the others from looking


class Group:
    """Ranks of the world, in an order; what communicators are made from."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = list(ranks)
        self.size = len(self.ranks)

    def Incl(self, ranks: Sequence[int]) -> Group:  # noqa: N802 (mpi4py's name)
        """Those members only, in that order."""
        if any(not 0 <= rank < self.size for rank in ranks):
            raise ValueError(f"ranks {list(ranks)} are not all in a group of {self.size}")
        return Group([self.ranks[rank] for rank in ranks])

    def Translate_ranks(self, ranks: Sequence[int], group: Group) -> list[int]:  # noqa: N802
        """The ranks that these have in `group`; UNDEFINED for those that are not in it."""
        places = {rank: place for place, rank in enumerate(group.ranks)}
        return [places.get(self.ranks[rank], UNDEFINED) for rank in ranks]


class Request:
    """A barrier that is under way, or an exchange of bytes."""

    def __init__(self, comm: Intracomm, tag: str) -> None:
        self._comm = comm
        self._tag = tag
        self._broken_at: float | None = None
        self._done = False
        self.parts: list[bytes] = []
        """What the members gave, by rank, once all have."""

    def Test(self) -> bool:  # noqa: N802 (mpi4py's name)
        """Whether all have come. Raises PeerFailed if that cannot be any more."""
        if self._done:
            return True
        reply = self._comm._link.take(self._tag, 0.0)  # noqa: SLF001
        if reply is not None and "missing" not in reply.header:
            self._done = True
            self.parts = _parts(reply)
        elif reply is not None:
            self._broken_at = time.monotonic()
            self._broken = reply
        if self._broken_at is not None and time.monotonic() - self._broken_at > _SAY_LATER_S:
            self._comm._refuse(self._broken)  # noqa: SLF001
        return self._done


class Intracomm:
    """A communicator of ranks of this host; see mpi4py.MPI.Intracomm for what is not said here."""

    def __init__(self, link: Link, ranks: Sequence[int], name: str) -> None:
        self._link = link
        self._ranks = list(ranks)  # of the members, in the world
        self._name = name
        self._calls = 0  # exchanges begun; alike on all members
        self._children = 0
        self._groups: dict[tuple[int, ...], int] = {}
        self.rank = self._ranks.index(link.rank)
        self.size = len(self._ranks)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a communicator of {launch.LOCAL} has no {name!r}; start with mpirun to have all of "
            "mpi4py's"
        )

    def Get_rank(self) -> int:  # noqa: N802
        return self.rank

    def Get_size(self) -> int:  # noqa: N802
        return self.size

    @property
    def group(self) -> Group:
        return Group(self._ranks)

    def Get_group(self) -> Group:  # noqa: N802
        return self.group

    def Create_group(self, group: Group) -> Intracomm:  # noqa: N802
        """The members of `group` call it, which this rank is one of; the others do not."""
        ranks = tuple(group.ranks)
        if not {self._link.rank, *ranks} <= {*self._ranks} & {*ranks}:
            raise ValueError(
                f"Create_group() of ranks {list(ranks)} of the world, on rank {self._link.rank}: "
                f"only its members call it, and they are of the communicator's {self._ranks}"
            )
        number = self._groups[ranks] = self._groups.get(ranks, 0) + 1
        named = "-".join(map(str, ranks))
        return Intracomm(self._link, ranks, f"{self._name}.of{named}.{number}")

    def Dup(self) -> Intracomm:  # noqa: N802
        return Intracomm(self._link, self._ranks, self._child())

    def Split(self, color: int = 0, key: int = 0) -> Intracomm | None:  # noqa: N802
        """The members with this rank's color, by key; None where mpi4py has COMM_NULL."""
        name = self._child()
        everybody = self.allgather((color, key))
        mine = [rank for rank in range(self.size) if everybody[rank][0] == color]
        if color == UNDEFINED:
            return None
        mine.sort(key=lambda rank: (everybody[rank][1], rank))
        return Intracomm(self._link, [self._ranks[rank] for rank in mine], f"{name}/{color}")

    def Split_type(self, split_type: int, key: int = 0) -> Intracomm | None:  # noqa: N802
        if split_type != COMM_TYPE_SHARED:
            raise ValueError(f"{launch.LOCAL} splits by COMM_TYPE_SHARED only, not {split_type}")
        return self.Split(0, key)  # all ranks are on one host

    def watch(self, look: Callable[[], None]) -> None:
        self._link.look = look  # now and then while this process waits: what it raises ends that

    def Free(self) -> None:  # noqa: N802
        """There is nothing to free."""

    def Barrier(self) -> None:  # noqa: N802
        self._gather(b"")

    barrier = Barrier

    def Ibarrier(self) -> Request:  # noqa: N802
        return Request(self, self._post(b""))

    def iallgather_bytes(self, mine: bytes) -> Request:
        """Begins to exchange bytes, of any number; ``Request.parts`` has them by rank.

        mpi4py has no such name.
        """
        return Request(self, self._post(mine))

    def Abort(self, errorcode: int = 1) -> NoReturn:  # noqa: N802
        """End all ranks; the launcher's exit status is `errorcode`."""
        self._link.send(Frame({"abort": errorcode}))
        time.sleep(60)  # the launcher kills this process
        os._exit(errorcode)

    def allgather(self, sendobj: T) -> list[T]:
        with self._spread(pickle.dumps(sendobj, pickle.HIGHEST_PROTOCOL)) as everybody:
            return [pickle.loads(data) for data in everybody]

    def bcast(self, obj: T, root: int = 0) -> T:
        self._check_root(root)
        mine = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL) if self.rank == root else b""
        with self._spread(mine) as everybody:
            sent: T = pickle.loads(everybody[root])
        return sent

    def alltoall(self, sendobj: Sequence[T]) -> list[T]:
        """sendobj[k] goes to rank k; what came, by rank."""
        if len(sendobj) != self.size:
            raise ValueError(f"alltoall() of {len(sendobj)} objects among {self.size} ranks")
        return [row[self.rank] for row in self.allgather(list(sendobj))]

    def Bcast(self, buf: Array, root: int = 0) -> None:  # noqa: N802
        self._check_root(root)
        flat = _flat(buf)
        with self._spread(flat if self.rank == root else b"") as everybody:
            if self.rank != root:
                _fill(flat, [everybody[root]])

    def Allgatherv(  # noqa: N802
        self, sendbuf: Array, recvbuf: tuple[Array, Sequence[int]]
    ) -> None:
        """`recvbuf` is an array and how many of its elements come from each rank."""
        result, counts = recvbuf
        with self._spread(_flat(sendbuf)) as everybody:
            for rank, (data, count) in enumerate(zip(everybody, counts, strict=True)):
                if len(data) != count * result.itemsize:
                    raise ValueError(
                        f"rank {rank} sent {len(data)} bytes, {count * result.itemsize} expected"
                    )
            _fill(_flat(result), everybody)

    def Alltoallv(  # noqa: N802
        self, sendbuf: tuple[Array, Sequence[int]], recvbuf: tuple[Array, Sequence[int]]
    ) -> None:
        """Both are an array and how many of its elements go to, or come from, each rank."""
        source, counts = sendbuf
        result, expected = recvbuf
        cuts = self.allgather([count * source.itemsize for count in counts])
        with self._spread(_flat(source)) as everybody:
            parts = []
            for rank, (data, cut) in enumerate(zip(everybody, cuts, strict=True)):
                first = sum(cut[: self.rank])
                parts.append(data[first : first + cut[self.rank]])
                if len(parts[-1]) != expected[rank] * result.itemsize:
                    raise ValueError(
                        f"rank {rank} sent {len(parts[-1])} bytes, "
                        f"{expected[rank] * result.itemsize} expected"
                    )
            _fill(_flat(result), parts)

    def Allreduce(self, sendbuf: Array, recvbuf: Array, op: Any = SUM) -> None:  # noqa: N802
        """`op` is one of this module's; operands are taken in ascending order of rank."""
        if op not in (SUM, PROD, MIN, MAX):
            raise ValueError(f"{launch.LOCAL} combines with its SUM, PROD, MIN and MAX, not {op!r}")
        # Sent as bytes: the caller's arrays may be one and the same.
        with self._spread(_flat(sendbuf)) as everybody:
            arrays = [np.frombuffer(data, recvbuf.dtype) for data in everybody]
            total = arrays[0].copy()
            for array in arrays[1:]:
                op(total, array, out=total)
        recvbuf[...] = total.reshape(recvbuf.shape)

    @contextlib.contextmanager
    def _spread(self, mine: bytes | Bytes) -> Iterator[list[memoryview]]:
        """The bytes of all members, by rank; they can be read within the block only."""
        view = mine.data if isinstance(mine, np.ndarray) else memoryview(mine)
        segment = None
        if len(view) > _BY_SOCKET:
            segment = Segment.create(len(view))
            segment.bytes()[...] = np.frombuffer(view, np.uint8)
            message = b"s" + pickle.dumps((segment.path, len(view)))
        else:
            message = b"i" + view
        messages = self._gather(message)
        yield [_opened(one) for one in messages]
        if any(one[:1] == b"s" for one in messages):
            self._gather(b"")  # all have read: the memory may go

    def _gather(self, mine: bytes) -> list[bytes]:
        tag = self._post(mine)
        while (reply := self._link.take(tag, _LOOK_S)) is None:
            self._link.look()
        if "missing" in reply.header:
            self._refuse(reply)
        return _parts(reply)

    def _post(self, mine: bytes) -> str:
        self._calls += 1
        tag = f"{self._name}:{self._calls}"
        self._link.send(Frame({"tag": tag, "members": self._ranks}, mine))
        return tag

    def _refuse(self, reply: Frame) -> NoReturn:
        gone = ", ".join(map(str, reply.header["missing"]))
        raise errors.PeerFailed(
            f"rank{'s' if ',' in gone else ''} {gone} ended before a call that all ranks make "
            "together; start again from the last checkpoint"
        )

    def _child(self) -> str:
        self._children += 1
        return f"{self._name}.{self._children}"

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"root={root} is no rank of a communicator of {self.size}")


class Comm:
    """mpi4py's name for what is common to communicators."""

    @staticmethod
    def Compare(one: object, other: object) -> int:  # noqa: N802
        if one is other:
            return IDENT
        if not isinstance(one, Intracomm) or not isinstance(other, Intracomm):
            return UNEQUAL
        if one._ranks == other._ranks:  # noqa: SLF001
            return CONGRUENT
        return SIMILAR if sorted(one._ranks) == sorted(other._ranks) else UNEQUAL  # noqa: SLF001


def module_of(comm: object) -> Any:
    """mpi4py.MPI, or this module for a communicator of its own."""
    if isinstance(comm, Intracomm):
        return sys.modules[__name__]
    from mpi4py import MPI

    return MPI


def world(environ: Mapping[str, str]) -> Intracomm:
    """The communicator of all ranks that the launcher has started; one and the same every time."""
    global _world
    if _world is None:
        how = launch.detect(environ)
        if how.launcher != launch.LOCAL or how.rank is None or how.size is None:
            raise errors.LaunchError(f"{launch.LOCAL} has not started this process")
        path, token = environ[launch.LOCAL_SOCKET], environ.get(launch.LOCAL_TOKEN, "")
        _world = Intracomm(Link(path, token, how.rank), range(how.size), "world")
    return _world


_world: Intracomm | None = None


def __getattr__(name: str) -> Any:
    if name == "COMM_WORLD":
        return world(os.environ)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _parts(reply: Frame) -> list[bytes]:
    """The bytes of all members, by rank, from the launcher's reply."""
    parts, first = [], 0
    for size in reply.header["sizes"]:
        parts.append(reply.payload[first : first + size])
        first += size
    return parts


def _flat(array: Array) -> Bytes:
    """The bytes of a contiguous array, not copied."""
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous; pass np.ascontiguousarray(array)")
    flat: Bytes = array.reshape(-1).view(np.uint8)
    return flat


def _fill(result: Bytes, parts: Sequence[memoryview]) -> None:
    have = sum(map(len, parts))
    if have != result.size:
        raise ValueError(f"{have} bytes came for a buffer of {result.size}")
    first = 0
    for part in parts:
        result[first : first + len(part)] = np.frombuffer(part, np.uint8)
        first += len(part)


def _opened(message: bytes) -> memoryview:
    if message[:1] == b"i":
        return memoryview(message)[1:]
    path, size = pickle.loads(message[1:])
    # The view keeps the segment.
    return Segment.open(path, size).bytes().data
