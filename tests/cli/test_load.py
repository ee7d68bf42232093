"""APP and TASK: what they name, and what is said of those that name nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

APP = """
    from qtasks_pluggy import QueueTasks

    app = QueueTasks("shop", discover=False)
    other = QueueTasks("other", discover=False)

    @app.task
    def price(x=1): return x

    @app.task
    def stock(x=1): return x

    @other.task
    def tax(x=1): return x

    number = 7
"""


@pytest.mark.parametrize(
    ("app", "task"),
    [
        ("shop", "price"),
        ("shop:app", "price"),
        ("shop:other", "tax"),
        ("shop.py", "price"),
        ("shop.py:other", "tax"),
        ("./shop.py", "price"),
        ("inner.shop", "price"),
        ("inner/shop.py:other", "tax"),
    ],
)
def test_app_is_a_module_or_a_file_and_an_attribute(workplace, app, task):
    """The attribute is ``app`` if left out, and the current folder is importable."""
    workplace.write("shop.py", APP)
    workplace.write("inner/__init__.py", "")
    workplace.write("inner/shop.py", APP)

    result = workplace.run("run", app, task)

    assert (0, "1\n") == (result.exit_code, result.stdout), result.stderr


def test_a_file_in_a_package_may_import_relatively(workplace):
    """A file is imported by the name that its package gives it."""
    workplace.write("pack/__init__.py", "")
    workplace.write("pack/values.py", "ONE = 1\n")
    workplace.write("pack/shop.py", f"from .values import ONE\n{dedented(APP)}")

    result = workplace.run("run", "pack/shop.py", "price")

    assert (0, "1\n") == (result.exit_code, result.stdout)
    assert "pack.shop" in sys.modules


def test_a_file_may_import_its_neighbours(workplace):
    """What lies beside the app's file is importable, as it is for a script."""
    workplace.write("far/neighbour_of_shop.py", "ONE = 1\n")
    workplace.write("far/shop.py", f"import neighbour_of_shop\n{dedented(APP)}")

    assert workplace.run("run", "far/shop.py", "price").exit_code == 0


@pytest.mark.parametrize("app", ["far/shop.py", "shop"])
def test_what_lies_beside_an_app_stands_behind_the_standard_library(workplace, app):
    """A ``secrets.py`` in its folder is never taken for Python's own; other modules are found."""
    for folder in ("", "far/"):
        workplace.write(f"{folder}secrets.py", "raise AssertionError('not the standard library')")
        workplace.write(f"{folder}beside.py", "ONE = 1\n")
        source = f"import secrets\nimport beside\n{dedented(APP)}"
        workplace.write(f"{folder}shop.py", source.replace("return x", "return secrets.__name__"))
    script = (Path(sys.executable).with_name("qtasks-pluggy"),)

    code, out, err = workplace.finish("run", app, "price", program=script)

    assert (0, '"secrets"\n') == (code, out), err


def test_a_file_elsewhere_brings_its_own_folder_alone(workplace):
    """What lies in the current folder is not importable then, nor discovered."""
    workplace.write("neighbour_of_nobody.py", "")
    workplace.write("far/shop.py", f"import neighbour_of_nobody\n{dedented(APP)}")
    script = (Path(sys.executable).with_name("qtasks-pluggy"),)

    assert 2 == workplace.finish("run", "far/shop.py", "price", program=script)[0]


def test_a_file_with_a_name_that_is_taken_or_none_is_loaded_all_the_same(workplace):
    """A file that shares its name with a loaded module, or could not be imported, is itself."""
    workplace.write("json.py", APP)
    workplace.write("my-app.py", APP)

    assert workplace.run("run", "json.py", "price").exit_code == 0
    assert workplace.run("run", "my-app.py", "price").exit_code == 0
    assert hasattr(sys.modules["json"], "dumps")


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("shpo", "there is no module 'shpo'; did you mean 'shop'?"),
        ("inner.shpo", "there is no module 'inner.shpo'; did you mean 'inner.shop'?"),
        ("shpo.py", "the file shpo.py does not exist; did you mean shop.py?"),
        ("nowhere/shop.py", "the file nowhere/shop.py does not exist; look at its folder"),
        ("inner/", "the file inner/ is no Python file; did you mean"),
        ("shop:ap", "'shop' has no 'ap'; did you mean shop:app?"),
        ("shop.py:othr", "'shop.py' has no 'othr'; did you mean shop.py:other?"),
        ("shop:number", "'number' in 'shop' is of type int, not QueueTasks; did you mean shop:"),
        ("inner", "nothing in 'inner' is a QueueTasks; make one"),
        ("./notes.txt", "the file ./notes.txt is no Python file; did you mean"),
        (":app", "write module:attribute or file.py:attribute"),
        ("shop:", "write module:attribute or file.py:attribute"),
    ],
)
def test_an_app_that_is_not_there_is_an_error_that_names_the_nearest(workplace, app, said):
    """Exit code 2, and one error that says what to do."""
    workplace.write("shop.py", APP)
    workplace.write("notes.txt", "app\n")
    workplace.write("inner/__init__.py", "")
    workplace.write("inner/shop.py", APP)

    result = workplace.run("run", app, "price")

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("Error:") == 1


def test_a_package_s_celery_module_is_found_as_celery_finds_it(workplace):
    """``celery -A inner`` takes ``inner.celery:app``; a package's own ``app`` comes first."""
    workplace.write("outer/__init__.py", APP)
    workplace.write("outer/celery.py", "raise AssertionError('not asked for')\n")
    workplace.write("outer/inner/__init__.py", "")
    workplace.write("outer/inner/celery.py", APP)

    assert workplace.run("run", "outer.inner", "price").exit_code == 0
    assert workplace.run("run", "outer", "price").exit_code == 0
    named = workplace.run("run", "outer.inner:app", "price")
    assert (2, True) == (named.exit_code, "'outer.inner' has no 'app'" in named.stderr)


def test_a_task_that_is_not_there_is_an_error_that_names_the_nearest(workplace):
    """Exit code 2, the nearest task, and all tasks there are."""
    workplace.write("shop.py", APP)

    result = workplace.run("run", "shop", "prize")

    assert result.exit_code == 2
    assert "app 'shop' has no task 'prize'; did you mean 'price'?" in result.stderr
    assert "Its tasks are price, stock." in result.stderr
    (line,) = workplace.run("run", "shop:other", "tex").stderr.splitlines()
    assert line == "Error: app 'other' has no task 'tex'; did you mean 'tax'?"


def test_an_app_without_tasks_says_so(workplace):
    """There is no nearest task, so the error says how to declare one."""
    workplace.write("bare.py", "from qtasks_pluggy import QueueTasks\napp = QueueTasks('bare')\n")

    result = workplace.run("run", "bare", "price")

    assert result.exit_code == 2
    assert "it has no tasks; declare one with @app.task" in result.stderr


@pytest.mark.parametrize("app", ["faulty", "faulty.py"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\nx / 0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError"),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "SystemExit"),
        (
            "from qtasks_pluggy import QueueTasks\napp = QueueTasks('a')\n"
            "app.task(name='one')(len)\napp.task(name='one')(abs)\n",
            "TaskNameError",
        ),
    ],
)
def test_a_module_that_raises_on_import_shows_its_traceback(workplace, app, source, said):
    """Exit code 2, after a traceback that begins in the module itself."""
    workplace.write("faulty.py", source)

    result = workplace.run("run", app, "price")

    assert result.exit_code == 2
    assert f"importing {app!r} raised {said}" in result.stderr
    assert "faulty.py" in result.stderr
    assert "importlib" not in result.stderr
    assert "_load.py" not in result.stderr


def dedented(source: str) -> str:
    """Take the indentation away."""
    return "\n".join(line.removeprefix("    ") for line in source.splitlines())
