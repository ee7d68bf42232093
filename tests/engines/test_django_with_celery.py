"""A Django project with Celery as its page shows it: its worker, its tests, and its page."""

from __future__ import annotations

import sys
from uuid import uuid4

import pytest

from qtasks_pluggy.failures.connection import read_url
from qtasks_pluggy.failures.queries import Filters, Reader
from tests.engines.huey_apps import LONG
from tests.engines.pages import files_of

pytest.importorskip("celery")
pytestmark = pytest.mark.engines

PAGE = "use-django-with-celery.md"
STORE = "postgresql+psycopg://shop@localhost/shop"
SETTINGS = """
from urllib.parse import urlsplit

DATABASE = urlsplit({store!r})
SECRET_KEY = "of nothing"
USE_TZ = True
# Tables are made at once, which is faster.
MIGRATION_MODULES = dict.fromkeys(["auth", "contenttypes", "sessions", "shop"])
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "proj.urls"
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "shop"
]
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.postgresql",
        "NAME": DATABASE.path[1:],
        "USER": DATABASE.username,
        "HOST": DATABASE.hostname,
        "PORT": DATABASE.port,
    }}
}}
CELERY_TASK_DEFAULT_QUEUE = {queue!r}
"""
OWN = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
        execute_from_command_line(sys.argv)
    """,
    "proj/urls.py": """
        from django.http import HttpResponse
        from django.urls import path
        urlpatterns = [path("", lambda request: HttpResponse("the shop"))]
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models

        class Order(models.Model):
            item = models.CharField(max_length=50)
            total = models.IntegerField(null=True)
            state = models.CharField(max_length=9, default="new")
    """,
    "shop/tests.py": """
        from django.test import TestCase, override_settings
        from proj.celery import app
        from shop.models import Order
        from shop.orders import place

        class OrdersTest(TestCase):
            def test_an_order_without_price_is_for_a_person(self):
                app.conf.task_always_eager = True
                with self.captureOnCommitCallbacks(execute=True):
                    order = place("coffee")
                order.refresh_from_db()
                assert "ask" == order.state
    """,
    "place.py": """
        import os, django
        os.environ["DJANGO_SETTINGS_MODULE"] = "proj.settings"
        django.setup()
        from shop.models import Order
        from shop.orders import place
        from shop.tasks import price
        tea, coffee = place("tea"), place("coffee")
        try:
            price.delay(0).get(timeout=30)
        except Order.DoesNotExist as error:
            print(type(error).__name__)
        for order in (tea, coffee):
            while (order.total, order.state) == (None, "new"):
                order.refresh_from_db()
            print(order.item, order.total, order.state)
    """,
    "look.py": """
        import os
        from proj.asgi import application
        from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY, BACKEND_SESSION_KEY
        from django.contrib.auth.models import User
        from django.contrib.sessions.backends.db import SessionStore
        from starlette.testclient import TestClient

        def session_of(name, **options):
            user = User.objects.create_user(name, **options)
            session = SessionStore()
            session[SESSION_KEY] = str(user.pk)
            session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
            session[HASH_SESSION_KEY] = user.get_session_auth_hash()
            session.save()
            return {"sessionid": session.session_key}

        sessions = {
            "nobody": {},
            "grace": session_of("grace"),
            "ada": session_of("ada", is_staff=True, is_superuser=True),
        }
        for name, cookies in sessions.items():
            with TestClient(application, cookies=cookies) as client:
                page = client.get("/failures/")
                print(name, client.get("/").text, page.status_code, "DoesNotExist" in page.text)
    """,
}


@pytest.fixture
def shop(project, worker, redis_url):
    """The page's project, on servers of the test's own, in which scripts are run."""
    pytest.importorskip("psycopg")
    from tests.failures.servers import running

    with running() as store:
        files = files_of(PAGE)
        assert {"proj/celery.py", "proj/settings.py", "shop/policy.py", "proj/asgi.py"} <= set(
            files
        )
        files["proj/settings.py"] = (
            SETTINGS.format(store=store, queue=f"django-{uuid4()}") + files["proj/settings.py"]
        ).replace("redis://localhost:6379/0", redis_url)
        files["proj/asgi.py"] = files["proj/asgi.py"].replace(STORE, store)
        folder = project(files | OWN)

        def run(*command, env=None):
            ended = worker(sys.executable, *command, cwd=folder, env=env)
            assert 0 == ended.wait(2 * LONG), ended.log()
            return ended.log()

        run("manage.py", "migrate", "--run-syncdb", "-v", "0")
        run.folder, run.store = folder, store
        yield run


def test_the_page_s_project_works_as_it_says(shop, worker):
    """The worker asks the module of a Django app; failures are in PostgreSQL, and on the page."""
    env = {"QTASKS_PLUGGY_ENABLE": "failures", "QTASKS_PLUGGY_PLUGIN_FAILURES_URL": shop.store}
    celery = (sys.executable, "-m", "celery", "-A", "proj", "worker", "-l", "info", "-c", "1")
    process = worker(*celery, cwd=shop.folder, env=env, ready="ready.")
    told = shop("place.py")
    assert ["DoesNotExist", "tea 3 new", "coffee None ask"] == told.splitlines()
    assert 0 == process.terminate()
    assert "shop.policy" in process.log().partition("worker_asks_plugins")[2].partition("\n")[0]
    found = [(run.task, run.status) for run in Reader(read_url(shop.store)).runs(Filters())]
    assert [("shop.tasks.price", "failed"), ("shop.tasks.price", "recovered")] == sorted(found)
    looked = shop("look.py").splitlines()
    seen = ["nobody the shop 403 False", "grace the shop 403 False", "ada the shop 200 True"]
    assert seen == looked[-3:]


def test_plugins_are_asked_in_the_project_s_own_tests(shop):
    """In eager mode, and after the commit that Django's ``TestCase`` stands for."""
    assert "OK" in shop("manage.py", "test", "shop")
