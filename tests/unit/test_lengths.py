"""tests/lengths.py finds what is too long."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("lengths", Path(__file__).parents[1] / "lengths.py")
lengths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lengths)


def function(lines, docstring=0):
    doc = "\n".join(['    """A docstring.', *["    More."] * (docstring - 2), '    """'])
    body = "\n".join(["    pass"] * (lines - 1))
    return f"def f():\n{doc}\n{body}\n" if docstring else f"def f():\n{body}\n"


def found(name, text):
    return list(lengths.too_long(name, text))


def test_a_function_of_61_lines_is_too_long_and_one_of_60_is_not():
    assert found("a.py", function(60)) == []
    assert found("a.py", function(61)) == ["a.py:1: f() has 61 lines, at most 60"]


def test_a_function_within_a_class_is_found_with_its_line():
    inner = "".join(f"    {line}\n" for line in function(70).splitlines())
    assert found("a.py", f"class C:\n{inner}") == ["a.py:2: f() has 70 lines, at most 60"]


def test_docstrings_do_not_count():
    assert found("a.py", function(60, docstring=30)) == []
    assert found("a.py", function(61, docstring=30)) == ["a.py:1: f() has 61 lines, at most 60"]
    assert found("a.py", "x = 1\n" * 398 + function(2, docstring=50)) == []


def test_a_file_of_401_lines_is_too_long_in_any_language():
    for name in ("a.py", "a.cpp"):
        assert found(name, "x = 1;\n" * 400) == []
        assert found(name, "x = 1;\n" * 401) == [f"{name}:1: 401 lines, at most 400"]


def test_the_exit_status_tells(tmp_path, capsys):
    long = tmp_path / "a.py"
    long.write_text(function(61))
    assert lengths.main(str(long)) == 1
    assert capsys.readouterr().out.endswith("f() has 61 lines, at most 60\n")
    long.write_text(function(6))
    assert lengths.main(str(long)) == 0
    assert capsys.readouterr().out == ""
