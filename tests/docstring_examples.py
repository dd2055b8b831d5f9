"""The examples in docstrings of what users start from. They hold on every rank of any world."""

import doctest

import public_names

# Module and name, of arrays and PyTorch, and of TensorFlow.
MAIN = (
    ("hvd_backup", "init"),
    ("hvd_backup", "partial_allreduce"),
    ("hvd_backup", "allreduce"),
    ("hvd_backup", "allgather"),
    ("hvd_backup", "broadcast_object"),
    ("hvd_backup", "ProcessSet"),
    ("hvd_backup", "add_process_set"),
    ("hvd_backup", "join"),
    ("hvd_backup.torch", "allreduce"),
    ("hvd_backup.torch", "allgather"),
    ("hvd_backup.torch", "join"),
    ("hvd_backup.torch", "DistributedOptimizer"),
    ("hvd_backup.torch", "Attempt"),
)
MAIN_OF_TENSORFLOW = (
    ("hvd_backup.tensorflow", "allreduce"),
    ("hvd_backup.tensorflow", "allgather"),
    ("hvd_backup.tensorflow", "broadcast_object"),
    ("hvd_backup.tensorflow", "join"),
    ("hvd_backup.tensorflow", "DistributedGradientTape"),
    ("hvd_backup.tensorflow.keras", "DistributedOptimizer"),
    ("hvd_backup.tensorflow.keras", "Attempt"),
)


def failures(where: tuple[str, str]) -> str:
    """Run a docstring's example; what was not as it says, or that there is none."""
    one = public_names.Sources(public_names.ROOT).find(*where)
    return failures_of(one.name, one.docs)


def failures_of(name: str, docs: str | None) -> str:
    """The same of a docstring."""
    example = doctest.DocTestParser().get_doctest(docs or "", {}, name, None, None)
    if not example.examples:
        return f"{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    return "".join(said)
