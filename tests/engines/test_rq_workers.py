"""RQ's own command as a process: plugins' life in it, what is logged, and what a kill leaves."""

from __future__ import annotations

import sys
from uuid import uuid4

import pytest
from redis import Redis
from rq import Queue
from rq import Retry as NativeRetry
from rq import worker as rq_worker

from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.queries import Filters, Reader
from tests.engines.huey_apps import LONG
from tests.engines.pages import module_of
from tests.engines.processes import wait_until

pytestmark = pytest.mark.engines

KINDS = [kind for kind in ("Worker", "SimpleWorker", "SpawnWorker") if hasattr(rq_worker, kind)]
SHOP = """
    import os, signal, sys, time
    import sqlalchemy  # as our page says: before the worker forks
    from pathlib import Path
    from qtasks_hookspecs import Retry, hookimpl, on_error
    from qtasks_pluggy.engines.rq import install

    HERE = Path(__file__).parent

    def note(what):
        with (HERE / "notes.txt").open("a") as notes:
            print(what, file=notes)

    def parse(text):
        note(f"parse {text}")
        return int(text)

    async def parse_async(text):
        return int(text)

    def late(first):
        note(f"late {time.time()}")
        if not (HERE / "late").exists():
            (HERE / "late").touch()
            raise ConnectionError("not yet")
        return "done"

    def kills_its_process():
        note("kills")
        if not (HERE / "killed").exists():
            (HERE / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    @on_error(ValueError)
    def use_zero():
        return 0

    @on_error(ConnectionError)
    def try_again():
        return Retry(delay=2)

    @hookimpl
    def qtasks_start():
        note("start")
        if (HERE / "no licence").exists():
            raise LookupError("no licence")

    @hookimpl
    def qtasks_stop():
        note("stop")

    ShopJob = install([sys.modules[__name__]], discover=False)

    class SpawnWorkerJob(ShopJob):
        pass
"""


class Project:
    """A project whose jobs are done by RQ's own command."""

    def __init__(self, folder, url, worker):
        self.folder, self._url, self._worker = folder, url, worker
        self.queue = Queue(f"q-{uuid4()}", connection=Redis.from_url(url))

    def work(self, *options, kind="Worker", job_class=None, **where):
        named = "SpawnWorkerJob" if kind == "SpawnWorker" else "ShopJob"
        options = ("-j", job_class or f"shop.{named}", "-w", f"rq.worker.{kind}", *options)
        command = (sys.executable, "-m", "rq.cli", "worker", self.queue.name, "-u", self._url)
        return self._worker(*command, *options, cwd=self.folder, **where)

    def notes(self):
        path = self.folder / "notes.txt"
        return path.read_text().splitlines() if path.exists() else []

    def ended(self, job):
        """Wait for a job's end."""

        def is_over():
            return job.get_status() in {"finished", "failed"}

        assert wait_until(is_over, LONG), job.get_status()
        return job


@pytest.fixture
def shop(project, redis_url, worker):
    """A project with jobs, and plugins for them."""
    made = Project(project({"shop.py": SHOP}), redis_url, worker)
    yield made
    made.queue.connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_each_worker_class_asks_plugins(shop, kind):
    """One option of ``rq worker`` is all; plugins are started and stopped where jobs are done."""
    jobs = [shop.queue.enqueue(f"shop.{name}", "many") for name in ("parse", "parse_async")]
    worker = shop.work("--burst", kind=kind)
    assert 0 == worker.wait(LONG)
    assert [0, 0] == [shop.ended(job).latest_result().return_value for job in jobs]
    lives = 1 if kind == "SimpleWorker" else 2
    starts = [note for note in shop.notes() if note in {"start", "stop"}]
    assert ["start", "stop"] * lives == starts
    # A spawned work horse has no log of RQ's either.
    assert (kind != "SpawnWorker") is ("worker_asks_plugins" in worker.log())
    assert (kind != "SpawnWorker") is ("task_error_decided" in worker.log())


@pytest.mark.parametrize("kind", KINDS[::2])
def test_an_installed_plugin_needs_no_line_of_code(shop, project, kind):
    """``--job-class qtasks_pluggy.engines.rq.PluggyJob`` asks what pip has installed."""
    project(
        {
            "zero.py": """
                from qtasks_hookspecs import on_error

                @on_error(ValueError)
                def use_zero():
                    return 0
            """,
            "zero-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: zero\nVersion: 1.0\n",
            "zero-1.0.dist-info/entry_points.txt": "[qtasks_pluggy]\nzero = zero\n",
        }
    )
    job = shop.queue.enqueue("shop.parse", "many")
    job_class = "qtasks_pluggy.engines.rq.PluggyJob"
    worker = shop.work("--burst", kind=kind, job_class=job_class)
    assert 0 == worker.wait(LONG)
    assert 0 == shop.ended(job).latest_result().return_value


def test_the_page_s_project_works_as_it_says(shop, project):
    """How-to: a failing job has the plugin's result."""
    project({"shop.py": module_of("use-rq.md", {})})
    job = shop.queue.enqueue("shop.parse", "many")
    assert 0 == shop.work("--burst").wait(LONG)
    assert 0 == shop.ended(job).latest_result().return_value


def test_a_retry_waits_for_rq_s_scheduler(shop):
    """``Retry(delay=2)`` is in the schedule, which a worker ``--with-scheduler`` reads."""
    job = shop.queue.enqueue("shop.late", "first")
    shop.work("--with-scheduler")
    assert "done" == shop.ended(job).latest_result().return_value
    first, second = [float(note.split()[1]) for note in shop.notes() if note.startswith("late")]
    assert second - first >= 1  # the schedule has whole seconds


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_whose_plugin_cannot_start_stops_and_loses_no_job(shop, kind):
    """The log says why, jobs are still queued, and a worker that starts does them."""
    (shop.folder / "no licence").touch()
    jobs = [shop.queue.enqueue("shop.parse", str(number)) for number in range(20)]
    worker = shop.work(kind=kind)
    worker.wait(LONG)
    assert "LookupError: no licence" in worker.log()
    assert "worker_cannot_start" in worker.log()
    assert "parse" not in " ".join(shop.notes())
    assert {job.id for job in jobs} == set(shop.queue.get_job_ids())
    (shop.folder / "no licence").unlink()
    assert 0 == shop.work("--burst").wait(LONG)
    assert list(range(20)) == [shop.ended(job).latest_result().return_value for job in jobs]


@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_what_fails_is_recorded(shop, kind, tmp_path):
    """``enable=["failures"]`` records each job that fails, from whichever process it is in."""
    jobs = [shop.queue.enqueue("shop.parse", text) for text in ("1", "many", "none")]
    failing = shop.queue.enqueue("shop.kills_its_process", 1, 2)
    url = f"sqlite:///{tmp_path / 'failures.db'}"
    env = {"QTASKS_PLUGGY_ENABLE": "failures", "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": url}
    worker = shop.work("--burst", kind=kind, env=env)
    assert 0 == worker.wait(2 * LONG)
    for job in (*jobs, failing):
        shop.ended(job)
    reader = Reader(read_url(url))
    found = {run.uuid: run for run in reader.runs(Filters())}
    assert {jobs[1].id, jobs[2].id, failing.id} == set(found)
    assert ["recovered", "recovered", "failed"] == [
        found[job.id].status for job in (jobs[1], jobs[2], failing)
    ]


def test_a_work_horse_that_is_killed_is_done_again_by_its_retry(shop):
    """A job with RQ's ``Retry`` survives the death of its process; without one it has failed."""
    job = shop.queue.enqueue("shop.kills_its_process", retry=NativeRetry(max=1))
    worker = shop.work()
    assert "done" == shop.ended(job).latest_result().return_value
    (shop.folder / "killed").unlink()
    assert shop.ended(shop.queue.enqueue("shop.kills_its_process")).is_failed
    assert ["kills"] * 3 == [note for note in shop.notes() if note == "kills"]
    assert 0 == worker.terminate()
