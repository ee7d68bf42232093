"""Public bug reports turned into expectations: processes, installed plugins, settings files, real Celery workers.

Public names only. Tests that need Redis, RabbitMQ or a package that is not there are skipped.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid

import pytest

pytestmark = pytest.mark.engines

REDIS = "redis://127.0.0.1:6379/8"
RABBIT = "amqp://guest:guest@127.0.0.1:5672//"


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def python(code, tmp_path, *paths, limit=60, name="shop_main.py", **env):
    """Run a program of its own in a fresh folder; paths go in front of the import path."""
    script = tmp_path / name
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("QTASKS_PLUGGY_")}
    surroundings["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=limit,
        env={**surroundings, **env},
        stdin=subprocess.DEVNULL,
        check=False,
    )


# ---------------------------------------------------------------- where a run may be


APP = """
import asyncio, multiprocessing, os, sys, threading, time, types
from qtasks_hookspecs import hookimpl
from qtasks_pluggy import QueueTasks, TaskExecutor

@hookimpl
async def task_executor_run_task_trigger_error(e):
    await asyncio.sleep(0.01)
    return f"fallback for {type(e.cause).__name__}"

module = types.ModuleType("slow-fallback")
module.task_executor_run_task_trigger_error = task_executor_run_task_trigger_error
app = QueueTasks("shop", plugins=[module], intercept=Exception, discover=False)

@app.task(name="price")
def price(x=0):
    return 1 / x

@app.task(name="aprice")
async def aprice(x=0):
    await asyncio.sleep(0)
    return 1 / x

def work(x):
    return price(x)
"""

PLACES = {
    "forked child": """
        assert price() == "fallback for ZeroDivisionError"
        pid = os.fork()
        if not pid:
            print("in the child:", price(), flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print("after it:", price())
    """,
    "fork pool": """
        assert price() == "fallback for ZeroDivisionError"
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, [0, 0, 0]), "and", price())
    """,
    "atexit": """
        import atexit
        atexit.register(lambda: print("at exit:", price(), asyncio.run(aprice()), flush=True))
        assert price() == "fallback for ZeroDivisionError"
    """,
    "thread that outlives main": """
        def late():
            time.sleep(0.4)
            print("late:", price(), asyncio.run(aprice()), flush=True)
        threading.Thread(target=late).start()
    """,
    "running loop": """
        async def main():
            return price(), await aprice(), await TaskExecutor(price).execute()
        print(asyncio.run(main()))
    """,
    "uvloop": """
        import uvloop
        async def main():
            return price(), await aprice(), await TaskExecutor(price).execute()
        print(uvloop.run(main()))
    """,
    "stderr closed": """
        sys.stderr.close()
        sys.stderr = None
        print(price(), asyncio.run(aprice()))
    """,
}


def test_async_plugin_under_gevent(tmp_path):
    """A gevent worker (monkey-patched) with a plugin that has async hookimpls must neither hang nor fail.

    Source: celery #7465 (async tasks under gevent/eventlet pools).
    """
    pytest.importorskip("gevent")
    code = (
        "from gevent import monkey; monkey.patch_all()\nimport gevent\n"
        + textwrap.dedent(APP)
        + textwrap.dedent("""
        jobs = [gevent.spawn(work, 0) for _ in range(5)]
        gevent.joinall(jobs, timeout=20)
        print([job.value for job in jobs])
    """)
    )
    ended = python(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("fallback for ZeroDivisionError") == 5


def test_locals_of_a_failing_plugin_are_not_on_stderr(tmp_path):
    """The default log of a failing plugin: names, not the local variables of its frames, which hold passwords.

    Sources: structlog #715 (rich tracebacks show locals), prometheus-aioexporter #9.
    """
    ended = python(
        """
        import types
        from qtasks_hookspecs import hookimpl
        from qtasks_pluggy import QueueTasks

        @hookimpl
        def task_executor_run_task_trigger_error(task_executor, e):
            token = "hunter2-" + "x" * 3
            raise RuntimeError(f"cannot report, {len(token)} letters")

        module = types.ModuleType("careless")
        module.task_executor_run_task_trigger_error = task_executor_run_task_trigger_error
        app = QueueTasks("shop", plugins=[module], intercept=Exception, discover=False)

        @app.task
        def login(password):
            raise PermissionError("no")

        try:
            login("sesame-99")
        except PermissionError as e:
            print("failed as itself:", e)
    """,
        tmp_path,
    )
    assert "failed as itself: no" in ended.stdout
    assert "careless" in ended.stderr
    assert "hunter2-xxx" not in ended.stderr and "sesame-99" not in ended.stderr


# ---------------------------------------------------------------- installed plugins


PROGRAM = """
from qtasks_pluggy import QueueTasks
app = QueueTasks("shop", intercept=Exception)

@app.task
def fails():
    raise ValueError("own error")

if __name__ == "__main__":
    print("RESULT", fails())
"""

PLUGIN = """
from qtasks_hookspecs import hookimpl

@hookimpl
def task_executor_run_task_trigger_error(task_executor):
    return "from {name}"
"""


def dist(root, name, version, points, modules=None, folder=None):
    """A distribution as pip leaves it: modules, METADATA, entry points."""
    root.mkdir(exist_ok=True)
    info = root / (folder or f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    lines = [f"{key} = {value}" for key, value in points.items()]
    info.joinpath("entry_points.txt").write_text("\n".join(["[qtasks_pluggy]", *lines]) + "\n")
    for module, source in (modules or {}).items():
        root.joinpath(module + ".py").write_text(textwrap.dedent(source), encoding="utf-8")


def test_same_site_packages_on_two_paths(tmp_path):
    """Lib and lib64 are one folder (a symlink), and both are on sys.path: a plugin counts once and is no conflict.

    Sources: instawow #188, setuptools #3649, airflow #32377 (plugins registered twice).
    """
    dist(
        tmp_path / "lib",
        "acme-fallback",
        "1.0",
        {"acme": "acme_fallback"},
        {"acme_fallback": PLUGIN.format(name="acme")},
    )
    (tmp_path / "lib64").symlink_to("lib")
    ended = python(PROGRAM, tmp_path, tmp_path / "lib", tmp_path / "lib64", f"{tmp_path}/./lib/")
    assert "RESULT from acme" in ended.stdout, ended.stderr


def test_editable_install_besides_its_old_egg_info(tmp_path):
    """A source tree with an .egg-info, and the dist-info that `pip install -e` made of it: one plugin, asked once.

    Sources: setuptools #3649, airflow #32377.
    """
    source = tmp_path / "src"
    source.mkdir()
    source.joinpath("acme_fallback.py").write_text(PLUGIN.format(name="acme"))
    egg = source / "acme_fallback.egg-info"
    egg.mkdir()
    egg.joinpath("PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: acme-fallback\nVersion: 0.1.dev0\n"
    )
    egg.joinpath("entry_points.txt").write_text("[qtasks_pluggy]\nacme = acme_fallback\n")
    dist(tmp_path / "site", "acme-fallback", "0.1.dev0", {"acme": "acme_fallback"})
    for paths in ((source, tmp_path / "site"), (tmp_path / "site", source)):
        ended = python(PROGRAM, tmp_path, *paths)
        assert "RESULT from acme" in ended.stdout, ended.stderr


LEFT_OVERS = {
    "same entry point": {"acme": "acme_fallback"},
    "entry point renamed since": {"old-name": "acme_gone"},
    "no entry point yet": {},
}


def test_emptied_folder_of_an_older_version(tmp_path):
    """An uninstall that failed leaves an empty dist-info of the older version: the installed one is asked.

    Sources: importlib_metadata #457, #291 and PR #536.
    """
    site, first = tmp_path / "site", tmp_path / "user"
    for folder in (site, first):
        folder.mkdir()
        folder.joinpath("acme_fallback-1.0.dist-info").mkdir()
    dist(
        site,
        "acme-fallback",
        "2.0",
        {"acme": "acme_fallback"},
        {"acme_fallback": PLUGIN.format(name="acme")},
    )
    ended = python(PROGRAM, tmp_path, first, site)
    assert "RESULT from acme" in ended.stdout, ended.stderr[-400:]


def test_plugin_that_imports_its_app(tmp_path):
    """A plugin imports the app's module for its exception classes, and the app finds the plugin: no import cycle.

    Sources: DataDesigner #281, pydantic PR #6820 (plugins loaded while the package is half imported).
    """
    site = tmp_path / "site"
    dist(
        site,
        "acme-shop",
        "1.0",
        {"acme": "acme_plugin"},
        {
            "acme_shop": """
            from qtasks_pluggy import QueueTasks
            class NoPriceError(Exception): pass
            app = QueueTasks("acme", intercept=Exception)
            @app.task
            def price():
                raise NoPriceError
        """,
            "acme_plugin": """
            from acme_shop import NoPriceError, app
            from qtasks_hookspecs import hookimpl, when
            @hookimpl
            @when(error=NoPriceError)
            def task_executor_run_task_trigger_error(e):
                return "fallback of " + app.name
        """,
        },
    )
    for first in ("import acme_shop", "import acme_plugin, acme_shop"):
        ended = python(f"{first}\nprint('RESULT', acme_shop.price())", tmp_path, site)
        assert "RESULT fallback of acme" in ended.stdout, ended.stderr


BROKEN = {
    "sys.exit": "import sys\nsys.exit(5)",
    "argparse": "import argparse\nargparse.ArgumentParser().parse_args(['--nope'])",
    "syntax": "def (",
    "recursion": "def f(): f()\nf()",
    "no text": "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
}


def test_settings_file_with_a_byte_order_mark(tmp_path):
    """Notepad and PowerShell write UTF-8 with a byte order mark: the settings are read, or the mark is what is named.

    Sources: cpython #157201, tomli #304, lm-proxy #79 (TOML files with a byte order mark).
    """
    site = tmp_path / "site"
    dist(
        site,
        "acme-fallback",
        "1.0",
        {"acme": "acme_fallback"},
        {"acme_fallback": PLUGIN.format(name="acme")},
    )
    dist(
        site,
        "bold-fallback",
        "1.0",
        {"bold": "bold_fallback"},
        {"bold_fallback": PLUGIN.format(name="bold")},
    )
    (tmp_path / "qtasks_pluggy.toml").write_bytes(b'\xef\xbb\xbfdisable = ["bold"]\r\n')
    ended = python(PROGRAM, tmp_path, site)
    told = ended.stderr.lower()
    assert (
        "RESULT from acme" in ended.stdout or "byte order mark" in told or "bom" in told.split()
    ), ended.stderr[-300:]


# ---------------------------------------------------------------- real Celery workers


WORKER = """
import asyncio, json, os, time
from celery import Celery, chord
from celery.exceptions import SoftTimeLimitExceeded
from qtasks_hookspecs import Replace, Retry, hookimpl
from qtasks_pluggy.engines.celery import install

app = Celery("shop", broker=os.environ["RPT_BROKER"], backend=os.environ["RPT_BACKEND"], set_as_current=False)
app.conf.update(task_default_queue=os.environ["RPT_QUEUE"], result_expires=120, broker_connection_retry_on_startup=True,
                broker_transport_options={} if "amqp" in os.environ["RPT_BROKER"] else {"polling_interval": 0.05})


def log(*words):
    file = os.open(os.environ["RPT_LOG"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, (json.dumps([os.getpid(), *map(str, words)]) + "\\n").encode())
    os.close(file)


class TwoArgumentsError(Exception):
    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")


class Plugin:
    name = "shop-plugin"

    @hookimpl
    def qtasks_start(self):
        log("start")

    @hookimpl
    def qtasks_stop(self):
        log("stop")

    @hookimpl
    def task_executor_run_task_trigger_error(self, task_executor, task_func, e):
        name = task_func.name.rpartition(".")[2]
        log("asked", name, type(e.cause).__name__)
        if name == "stubborn":
            return Retry(delay=0, limit=2) if task_executor.attempt <= 2 else Replace("fallback")
        if name == "slow":
            return Replace("cut off by " + type(e.cause).__name__)
        if name == "part":
            return Replace(40)
        if name == "login":
            return Retry(delay=0, limit=1)
        if name == "late":
            raise RuntimeError("plugin bug")
        return None

    @hookimpl
    def task_executor_task_failed(self, task_func, e):
        log("failed", task_func.name.rpartition(".")[2], type(e).__name__)
        if task_func.name.endswith("late"):
            raise RuntimeError("plugin bug 2")

    @hookimpl
    def task_executor_task_close(self, task_func):
        if task_func.name.endswith("late"):
            raise RuntimeError("plugin bug 3")


PLUGIN = Plugin()
install(app, plugins=[__name__ + ":PLUGIN"], discover=False)


@app.task
def ident(x):
    return x


@app.task
def stubborn():
    raise TwoArgumentsError(1, "x")


@app.task(soft_time_limit=1)
def slow():
    time.sleep(8)


@app.task
def part():
    raise ValueError("part")


@app.task
def total(parts):
    return sum(parts)


@app.task
def told(*_):
    log("errback")


@app.task
def login(password):
    raise PermissionError("wrong")


@app.task(acks_late=True)
def late():
    log("run", "late")
    raise LookupError("own error")


@app.task(acks_late=True, task_reject_on_worker_lost=True)
def unpicklable():
    log("run", "unpicklable")
    raise TwoArgumentsError(2, "y")
"""


class Worker:
    def __init__(self, folder, broker, *options):
        name = "rpt_shop_" + uuid.uuid4().hex[:6]
        (folder / f"{name}.py").write_text(WORKER, encoding="utf-8")
        self.log, self.output, self.queue = (
            folder / "log",
            folder / "output",
            "rpt_" + uuid.uuid4().hex[:8],
        )
        self.env = {
            "RPT_BROKER": broker,
            "RPT_BACKEND": REDIS,
            "RPT_QUEUE": self.queue,
            "RPT_LOG": str(self.log),
            "PYTHONPATH": str(folder),
        }
        os.environ.update({k: v for k, v in self.env.items() if k != "PYTHONPATH"})
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    f"{name}:app",
                    "worker",
                    "-c",
                    "2",
                    "-l",
                    "INFO",
                    "--without-mingle",
                    "--without-gossip",
                    *options,
                ],
                cwd=folder,
                env={**os.environ, **self.env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        self.tasks = importlib.util.module_from_spec(spec)
        sys.modules[name] = self.tasks
        spec.loader.exec_module(self.tasks)

    def events(self, *words):
        lines = (
            [json.loads(line) for line in self.log.read_text().splitlines()]
            if self.log.exists()
            else []
        )
        return [line for line in lines if list(words) == line[1 : 1 + len(words)]]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(Exception), self.tasks.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(self.queue)
        import redis

        with contextlib.closing(redis.Redis.from_url(REDIS)) as server:
            mine = list(server.scan_iter(f"*{self.queue}*"))
            if mine:
                server.delete(*mine)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def worker(request, tmp_path_factory):
    """A prefork worker, with plugins installed into its app."""
    for package in ("celery", "redis"):
        pytest.importorskip(package)
    if not listens(6379) or (request.param == "rabbitmq" and not listens(5672)):
        pytest.skip("no server")
    one = Worker(
        tmp_path_factory.mktemp("worker"), RABBIT if request.param == "rabbitmq" else REDIS
    )
    try:
        assert one.tasks.ident.delay(1).get(timeout=60) == 1
        yield one
    finally:
        one.stop()


def test_celery_exception_with_required_arguments_is_retried(worker):
    """An exception class with two required arguments cannot be rebuilt by pickle: retries and fallback work all the same.

    Sources: celery #6990 and #6185 (such an exception breaks the retry or the worker).
    """
    assert worker.tasks.stubborn.delay().get(timeout=20) == "fallback"
    assert len(worker.events("asked", "stubborn")) == 3
    assert not worker.events("failed", "stubborn")


def test_celery_soft_time_limit_is_asked(worker):
    """soft_time_limit raises in the middle of a task: plugins are asked about it like about any other error.

    Source: celery #3914 (SoftTimeLimitExceeded and on_failure).
    """
    assert worker.tasks.slow.delay().get(timeout=20) == "cut off by SoftTimeLimitExceeded"


def test_celery_chord_of_a_recovered_part(worker):
    """A part of a chord fails and a plugin recovers it: the body gets its value, and no errback is called.

    Sources: celery #3709, #5129, #6441 (chords and errors).
    """
    from celery import chord

    tasks = worker.tasks
    got = (
        chord([tasks.part.s(), tasks.ident.s(2)], tasks.total.s().on_error(tasks.told.s()))
        .apply_async()
        .get(timeout=20)
    )
    assert got == 42
    time.sleep(0.3)
    assert not worker.events("errback")


def test_celery_worker_survives_unpicklable_errors(worker):
    """Ten errors in a row that cannot be rebuilt: each is a failure to its caller, and the worker goes on.

    Source: celery #6990.
    """
    results = [worker.tasks.unpicklable.delay() for _ in range(10)]
    for result in results:
        with pytest.raises(Exception) as caught:
            result.get(timeout=20)
        assert "TwoArgumentsError" in f"{type(caught.value).__name__} {caught.value!r}"
    assert worker.tasks.ident.delay(4).get(timeout=20) == 4
    assert len(worker.events("failed", "unpicklable")) == 10


def test_celery_children_start_and_stop_their_plugins(tmp_path):
    """max-tasks-per-child replaces children: each starts its plugins once, before its first run, and stops them once.

    Sources: otel-python-contrib #4916, sentry-python #285 (resources of a plugin after fork).
    """
    for package in ("celery", "redis"):
        pytest.importorskip(package)
    if not listens(6379):
        pytest.skip("no server")
    worker = Worker(tmp_path, REDIS, "--max-tasks-per-child", "1")
    try:
        assert worker.tasks.ident.delay(1).get(timeout=60) == 1
        assert [worker.tasks.part.delay().get(timeout=20) for _ in range(2)] == [40] * 2
        time.sleep(1)
    finally:
        worker.stop()
    starts, stops, asked = (
        [line[0] for line in worker.events(word)] for word in ("start", "stop", "asked")
    )
    assert len(set(asked)) == 2
    for pid in asked:
        assert starts.count(pid) == 1, (pid, starts)
        assert stops.count(pid) == 1, (pid, stops)
    assert pathlib.Path(worker.log).exists()
