"""The servers and workers that the tests of engines rely on are real, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from textwrap import dedent

import pytest

from tests.engines.conftest import environment_in, installed
from tests.engines.processes import (
    ProcessError,
    members,
    wait_until,
)
from tests.engines.servers import HOST, SERVERS, NotInstalledError, Redis, find_program

pytestmark = pytest.mark.engines

ROOT = Path(__file__).parents[2]

# A worker whose child is in a group of its own, and both outlive a SIGTERM to the parent's group.
FAMILY = """
    import os, signal, subprocess, sys, time

    if len(sys.argv) == 1:
        subprocess.Popen([sys.executable, __file__, "child"], process_group=0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(" ".join(["ready", *sys.argv[1:]]), flush=True)
    time.sleep(600)
"""

# A test that uses all there is, and waits for the other workers of its run to do the same.
INNER = """
    import os, pathlib, sys, time

    from tests.engines.processes import wait_until

    OUT, MODE = pathlib.Path(os.environ["OUT"]), os.environ["MODE"]
    COUNT = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

    def test_all(redis_url, redis_server, worker, project):
        folder = project({"app.py": "import time; print('ready', flush=True); time.sleep(600)"})
        worker(sys.executable, "app.py", cwd=folder, ready="ready")
        own = OUT / str(os.getpid())
        own.with_suffix(".new").write_text(redis_url)
        own.with_suffix(".new").rename(own.with_suffix(".url"))
        assert wait_until(lambda: len([*OUT.glob("*.url")]) == COUNT, 60)
        if MODE == "waits":
            time.sleep(600)
        assert MODE == "passes"
"""


def queue(url, name):
    """Open a durable queue."""
    # Here, as the engines' packages are not there where these tests are left out.
    from kombu import Connection

    # Unless it is asked to confirm it, RabbitMQ may still have a message in memory alone.
    options = {"confirm_publish": True} if url.startswith("amqp") else {}
    connection = Connection(url, connect_timeout=10, transport_options=options)
    return connection, connection.SimpleQueue(name)


def put(url, name, message):
    """Put a message into a durable queue."""
    connection, there = queue(url, name)
    with connection, there:
        there.put(message)


def get(url, name):
    """Take a message out of a queue."""
    connection, there = queue(url, name)
    with connection, there:
        message = there.get(timeout=30)
        message.ack()
        return message.payload


def belonging(folder):
    """Find the processes that run in a folder, or were started with its name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            where = (process / "cmdline").read_bytes() + os.fsencode((process / "cwd").readlink())
            if os.fsencode(folder) in where:
                found.append(int(process.name))
    return found


@pytest.mark.parametrize("kind", SERVERS)
def test_shared_server_passes_messages(kind, request):
    """The run's server takes a message and gives it back."""
    url, name = request.getfixturevalue(f"{kind}_url"), uuid.uuid4().hex
    put(url, name, "one")

    assert get(url, name) == "one"


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("kind", SERVERS)
def test_messages_outlive_their_server(kind, end, request):
    """A server that was stopped or killed starts on its port again, with its messages."""
    server = request.getfixturevalue(f"{kind}_server")
    url, first = server.url, server.pid
    put(url, "kept", "one")

    getattr(server, end)()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port))
    assert (server.pid, members(first)) == (None, [])
    server.start()

    assert server.url == url
    assert server.pid not in {None, first}
    assert get(url, "kept") == "one"


def test_worker_is_ready_when_it_says_so(worker, project):
    """A worker is handed over when the text stands in its log, or the condition is true."""
    folder = project({"app.py": "open('there', 'w').close(); print('ready'); input()"})
    one = worker(sys.executable, "-u", "app.py", cwd=folder, ready="ready")
    (folder / "there").unlink()
    worker(sys.executable, "app.py", cwd=folder, ready=(folder / "there").exists)

    assert "ready\n" in one.log()
    assert one.wait(30) == 1


def test_worker_imports_the_project_and_our_packages(worker, project):
    """A worker finds the folder's modules and the packages under test, not others of their name."""
    folder = project(
        {
            "inside/app.py": "import qtasks_hookspecs, qtasks_pluggy as p; print(p.__file__)",
            "main.py": "import inside.app, os; print(os.environ['MINE'])",
        }
    )
    done = worker(sys.executable, "-c", "import main", cwd=folder, env={"MINE": "yes"})
    import qtasks_pluggy

    assert done.wait(30) == 0
    assert done.log().split() == [qtasks_pluggy.__file__, "yes"]


def test_worker_that_ends_early_tells_why(worker, project):
    """A worker that ends before it is ready raises at once, with its exit code and its log."""
    folder = project({"app.py": "raise SystemExit('no such broker')"})
    with pytest.raises(ProcessError, match=r"(?s)ended with 1 before .*no such broker"):
        worker(sys.executable, "app.py", cwd=folder, ready="never", deadline=60)


def test_worker_that_is_never_ready_tells_how_far_it_came(worker, project):
    """A worker that is not ready in time raises with its log."""
    folder = project({"app.py": "import time; print('half', flush=True); time.sleep(600)"})
    with pytest.raises(ProcessError, match=r"(?s)not ready after 2 s.*half"):
        worker(sys.executable, "app.py", cwd=folder, ready="never", deadline=2)


def test_worker_is_asked_to_end(worker, project):
    """``terminate`` sends SIGTERM and returns the exit code, and raises for who stays."""
    source = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("ready", flush=True)
        time.sleep(600)
    """
    folder = project({"app.py": source, "stubborn.py": FAMILY})
    polite = worker(sys.executable, "app.py", cwd=folder, ready="ready")
    stubborn = worker(sys.executable, "stubborn.py", "alone", cwd=folder, ready="ready")

    assert polite.terminate(30) == 7
    assert polite.exit_code == 7
    with pytest.raises(ProcessError, match=r"still runs after 0.2 s"):
        stubborn.terminate(0.2)


def test_worker_is_killed_with_its_children(worker, project):
    """``kill`` ends a worker, and a child that left its process group."""
    folder = project({"app.py": FAMILY})
    parent = worker(sys.executable, "app.py", cwd=folder, ready="ready child")
    (child,) = parent.children()

    assert os.getpgid(child) == child
    assert parent.members() == sorted([parent.pid, child])
    parent.kill()
    assert parent.members() == []
    assert parent.exit_code == -signal.SIGKILL


def test_what_a_killed_process_started_is_ended(tmp_path):
    """The guard ends a session as soon as the process that watched over it is killed."""
    source = """
        import os, pathlib, sys, time
        from tests.engines.processes import Guard, Process
        here = pathlib.Path.cwd()
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        guard = Guard()
        over = Process("true", cwd=here, env={}, log=here / "log", watched_by=guard)
        over.kill()
        left = Process(*command, cwd=here, env={}, log=here / "log", watched_by=guard)
        print(left.pid, flush=True)
        time.sleep(600)
    """
    environment = environment_in(tmp_path)
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    with subprocess.Popen(
        [sys.executable, "-c", dedent(source)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
    ) as process:
        left = int(process.stdout.readline())
        assert members(left) == [left]
        process.kill()

    assert wait_until(lambda: not belonging(tmp_path), 30)


@pytest.mark.parametrize(
    ("mode", "workers", "ended_by", "exit_code"),
    [
        ("passes", 2, None, 0),
        ("fails", 1, None, 1),
        ("waits", 1, signal.SIGINT, 2),
        ("waits", 2, signal.SIGINT, 2),
        ("waits", 2, signal.SIGKILL, -9),
    ],
)
def test_run_shares_a_server_and_leaves_nothing(
    mode, workers, ended_by, exit_code, redis_url, worker, project
):
    """All workers of a run use one server, and however the run ends, nothing of it is left."""
    folder = project({"test_inner.py": INNER, "pytest.ini": "[pytest]"})
    base, out = folder / "base", folder / "out"
    out.mkdir()
    options = ["-p", "tests.engines.conftest", "-p", "no:cacheprovider", f"--basetemp={base}"]
    if workers > 1:
        options += ["-n", str(workers), "--dist", "each"]
    run = worker(
        *(sys.executable, "-m", "pytest", *options),
        cwd=folder,
        env={"MODE": mode, "OUT": str(out), "PYTHONPATH": environment_in(ROOT)["PYTHONPATH"]},
    )
    if ended_by is not None:
        run.wait_ready(lambda: len([*out.glob("*.url")]) == workers, 60)
        assert len(belonging(base)) > workers
        os.killpg(run.pid, ended_by)

    assert run.wait(90) == exit_code, run.log()
    assert wait_until(lambda: not belonging(base), 30), belonging(base)
    assert wait_until(lambda: not run.members(), 30), run.members()
    urls = [one.read_text("utf-8") for one in out.glob("*.url")]
    assert len(urls) == workers
    assert len({redis_url, *urls}) == 2


def test_missing_server_skips_but_fails_where_all_has_to_run(monkeypatch):
    """Without its program a server's tests are skipped by name; with ``CI=true`` they fail."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(NotInstalledError, match="install Debian's package no-package"), installed():
        find_program("no-such-server", "no-package")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no-such-server is neither on"), installed():
        find_program("no-such-server", "no-package")


def test_server_that_cannot_boot_tells_why(redis_server):
    """A server whose port is taken raises with the end of its log."""
    second = Redis(redis_server.folder / "second", redis_server.guard)
    second.port = redis_server.port
    with contextlib.closing(second), pytest.raises(ProcessError, match="(?s)ended with 1.*in use"):
        second.start()
