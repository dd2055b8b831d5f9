"""The docstrings of public names are whole, and their examples run. Also: what counts them."""

import textwrap

import docstrings
import public_names
import pytest
from docstring_examples import MAIN, MAIN_OF_TENSORFLOW, failures, failures_of

import hvd_backup as hb

SOURCES = public_names.Sources(public_names.ROOT)


def test_docstrings_say_what_a_user_has_to_know():
    found = [*docstrings.count(SOURCES), *docstrings.horovods(SOURCES)]
    report = docstrings.report(found)
    print(report)
    assert all(fact.said for fact in found), report


def test_all_modules_that_users_import_are_counted():
    names = {one.name for one in SOURCES.public()}
    assert {"hvd_backup.init", "hvd_backup.Round", "hvd_backup.torch.allreduce_async"} <= names
    assert {"hvd_backup.tensorflow.keras.callbacks.AttemptCallback", "hvd_backup.ray"} <= names
    assert len(names) > 140


@pytest.fixture
def world():
    hb.init()
    yield
    hb.shutdown()


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("where", MAIN, ids=".".join)
def test_the_example_gives_what_it_says(where):
    assert not failures(where)


@pytest.mark.parametrize("where", MAIN_OF_TENSORFLOW, ids=".".join)
def test_names_of_tensorflow_have_examples(where):
    """They run where TensorFlow is: in tests/mpi_tf."""
    assert ">>> " in SOURCES.find(*where).docs


def test_an_example_that_is_wrong_or_missing_is_told():
    assert not failures_of("right", ">>> 1 + 1\n2\n")
    assert "Got:\n    2" in failures_of("wrong", ">>> 1 + 1\n3\n")
    assert failures_of("none", "No example.") == "none has no example"


# ---- what counts --------------------------------------------------------------------------------

GOOD = '''
    def combine(tensor, weight, *args, timeout=None, **options) -> Tensor:
        """Combine.

        Args:
            tensor: Of any shape, and dtype float32.
            weight: How much it
                counts.
            *args: Passed on.
            timeout: Seconds.
            **options: Passed on.

        Returns:
            A tensor of the same shape and dtype.

        Raises:
            ValueError: The weight is negative.
        """
        if weight < 0:
            raise ValueError(weight)
        return tensor
'''


def missing(tmp_path, source, name="combine"):
    """What the counter misses in a module."""
    (tmp_path / "module.py").write_text(textwrap.dedent(source))
    sources = public_names.Sources(tmp_path)
    found = list(docstrings.facts(sources, sources.find("module", name)))
    assert found
    return {(fact.kind, fact.name.removeprefix("module.")) for fact in found if not fact.said}


def test_a_whole_docstring_lacks_nothing(tmp_path):
    assert missing(tmp_path, GOOD) == set()


@pytest.mark.parametrize(
    ("line", "instead", "lack"),
    [
        ("weight: How much it\n                counts.", "", ("argument", "combine(weight)")),
        (
            "weight: How much it\n                counts.",
            "weight:",
            ("argument", "combine(weight)"),
        ),
        ("*args: Passed on.", "", ("argument", "combine(*args)")),
        ("**options: Passed on.", "", ("argument", "combine(**options)")),
        ("Returns:", "It gives", ("result", "combine")),
        ("ValueError: The", "TypeError: The", ("error", "combine: ValueError")),
        ("any shape, and dtype", "", ("tensor", "combine(tensor): shape")),
        ("dtype float32", "any kind", ("tensor", "combine(tensor): dtype")),
        ("same shape and dtype", "dtype", ("tensor", "combine(): shape")),
        ("Seconds.", "How long.", ("unit", "combine(timeout)")),
    ],
)
def test_what_is_left_out_is_missed(tmp_path, line, instead, lack):
    assert line in GOOD
    assert lack in missing(tmp_path, GOOD.replace(line, instead, 1))


def test_a_function_without_a_docstring_lacks_all(tmp_path):
    kinds = {kind for kind, _ in missing(tmp_path, "def combine(tensor): return tensor")}
    assert kinds == {"docstring", "argument", "result", "tensor"}


def test_what_inner_functions_raise_and_return_is_theirs(tmp_path):
    source = '''
        def combine() -> None:
            """Combine."""
            def inner():
                raise KeyError
                return 1
    '''
    assert missing(tmp_path, source) == set()


def test_methods_attributes_and_constructors_are_counted(tmp_path):
    source = '''
        class Result(NamedTuple):
            """A result."""
            value: Array
            waited_s: float
            """How long it took."""
            _own: int
            def __init__(self, count): raise TypeError
            @property
            def late(self): return False
            def close(self): return None
            def _inner(self): pass
            @classmethod
            def make(cls, array):
                """Make one."""
    '''
    assert missing(tmp_path, source, "Result") == {
        ("docstring", "Result.value"),
        ("tensor", "Result.value: shape"),
        ("tensor", "Result.value: dtype"),
        ("unit", "Result.waited_s"),
        ("argument", "Result(count)"),
        ("error", "Result: TypeError"),
        ("docstring", "Result.late"),
        ("docstring", "Result.close"),
        ("argument", "Result.make(array)"),
        ("tensor", "Result.make(array): shape"),
        ("tensor", "Result.make(array): dtype"),
    }


def test_a_method_inherits_the_docstring_of_what_it_stands_for(tmp_path):
    source = '''
        class Base:
            """A base."""
            def close(self):
                """End it."""
            def open(self): pass

        class Result(Base):
            """A result."""
            def close(self): pass
            def open(self): pass
            def on_train_begin(self, logs): pass
    '''
    assert missing(tmp_path, source, "Result") == {("docstring", "Result.open")}


def test_names_are_followed_through_imports_and_stars(tmp_path):
    (tmp_path / "package").mkdir()
    package = {
        "inner": '"""Inner."""\n__all__ = ["combine"]\ndef combine(): pass\nCONSTANT = 1\n',
        "outer": "from package.inner import *\nfrom package.inner import CONSTANT as one\n"
        "from package.inner import __all__ as _all\n__all__ = [*_all, 'one']\n",
        "__init__": "from package.outer import combine as reduce, one\n",
    }
    for name, text in package.items():
        (tmp_path / f"package/{name}.py").write_text(text)
    sources = public_names.Sources(tmp_path)
    assert sources.names("package.outer") == ["combine", "one"]
    for name in ("reduce", "one"):
        one = sources.find("package", name)
        assert (one.module, one.docs) == ("package.inner", None)
    assert sources.find("package", "inner").docs == "Inner."
    with pytest.raises(LookupError, match=r"package\.nothing has no definition"):
        sources.find("package", "nothing")


def test_the_report_has_shares_and_what_is_missing():
    facts = [
        docstrings.Fact("unit", "f(timeout)", False),
        docstrings.Fact("unit", "f(grace)", True),
    ]
    report = docstrings.report(facts)
    assert "unit: 1 of 2 (50.0 %)\n  missing: f(timeout)" in report
    assert "argument: 0 of 0 (100.0 %)" in report
