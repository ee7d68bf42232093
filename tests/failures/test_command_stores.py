"""The whole way by the command, on either kind of store: groups, replay, resolve."""

from __future__ import annotations

import json
import sys
from uuid import uuid4

import pytest
from click.testing import CliRunner

from qtasks_pluggy.cli._command import command
from qtasks_pluggy.failures.store import Batch

SHOP = """
from qtasks_pluggy import QueueTasks

app = QueueTasks("shop", discover=False)

@app.task
def price(item):
    return {"tea": 3}[item]

@app.on_error(KeyError)
def use_last(error):
    return 2 if error.args == ("rum",) else None
"""


@pytest.fixture
def failures(any_place, tmp_path, monkeypatch):
    """Run the command where an app records in a store of either kind; it has to end with a code."""
    name = f"shop_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SHOP, "utf-8")
    url = any_place.url.render_as_string(hide_password=False)
    section = f"[plugin.failures]\nurl = '{url}'\n"
    (tmp_path / "qtasks_pluggy.toml").write_text(f"enable = ['failures']\n{section}", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def failures(*words, code=0):
        ended = CliRunner().invoke(command, ["failures", *words, "--app", f"{name}:app"])
        assert code == ended.exit_code, ended.output
        return ended.stdout

    yield failures
    sys.modules.pop(name, None)


def test_from_a_failure_to_a_resolved_group(failures, any_place):
    """Three causes: one group is mended by its replay, one by hand, and one stays open."""
    made_of = [("tea", "a"), ("rum", "a"), ("gold", "b"), ("salt", "c")]
    any_place.store().write(
        Batch(
            [
                any_place.record(
                    KeyError(item),
                    args=(item,),
                    group=group,
                    error_arguments=json.dumps({"args": [item], "kwargs": {}}),
                )
                for item, group in made_of
            ]
        )
    )

    def states(*words):
        return {one["id"]: one["state"] for one in json.loads(failures("groups", "--json", *words))}

    assert dict.fromkeys("abc", "open") == states()
    assert "4 asked: 1 would be recovered by use_last, 3 not\n" == failures("replay", "--dry-run")
    replayed = failures("replay", "--group", "a", "--yes")
    assert (
        "2 runs replayed: 1 succeeded, 1 recovered\n1 group resolved: no failures are left.\n"
    ) == replayed
    (gold,) = json.loads(failures("list", "--group", "b", "--json"))
    (new,) = json.loads(failures("replay", gold["uuid"], "--yes", "--json", code=1))
    assert ("failed", gold["uuid"]) == (new["status"], new["replay_of"])
    assert new["uuid"] in failures("show", gold["uuid"])
    assert "1 group (--group c): resolved now\n" == failures("resolve", "--group", "c", "--yes")

    assert {"a": "resolved", "c": "resolved"} == states("--state", "resolved")
    assert "b" in states("--state", "open")
