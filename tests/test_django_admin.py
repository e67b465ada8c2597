"""The ledger in the admin: through Django's test client, and looked at in a real browser."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.test import Client
from parquet_analytics.django.models import Run
from parquet_analytics.django.runs.ledger import runs

from tests import sites
from tests.clock import TODAY
from tests.services.workspace import free_port
from tests.sites import export
from tests.torture.proxies import wait_until

STATUS = "/admin/parquet_analytics/run/status/"
LIST = "/admin/parquet_analytics/run/"


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


@pytest.fixture
def site(site_database: str, tmp_path: Path) -> Iterator[str]:
    """A site with a superuser, verified days, an empty one, a deleted one, and one that failed."""
    from django.contrib.auth.models import User

    User.objects.create_superuser("operator", password="let me in")
    User.objects.create_user("reader", password="let me in", is_staff=True)
    for number in (6, 5, 3, 2):
        sites.few(ago(number))
    with sites.archive(tmp_path, ALLOW_LOCAL_DELETE=True, HOT_DAYS=5, LOOKBACK_DAYS=5):
        assert export("--since", str(ago(6)), "--until", str(ago(4)))[0] == 0
        assert export("--date", str(ago(6)), "--delete-after-export")[0] == 0
        sites.few(ago(3), rows=1, project="<script>alert(1)</script>")
        with psycopg.connect(site_database) as database:
            database.execute("ALTER TABLE analytics_pageview ALTER view_count TYPE bigint")
            database.execute("UPDATE analytics_pageview SET view_count = 3000000000 WHERE date = %s", [ago(2)])
        assert export("--date", str(ago(3)))[0] == 0
        assert export("--date", str(ago(2)))[0] == 1
        yield site_database


@pytest.fixture
def client(site: str) -> Client:
    client = Client()
    assert client.login(username="operator", password="let me in")
    return client


def test_the_list_has_filters_and_nothing_can_be_changed(client: Client) -> None:
    page = client.get(LIST)
    assert page.status_code == 200
    text = page.content.decode()
    for name in ("By state", "By kind", "By day", "By database", "By error type"):
        assert name in text, name
    assert 'href="/admin/parquet_analytics/run/status/"' in text
    assert "Add run" not in text
    assert client.get(LIST, {"state__exact": "failed"}).content.decode().count('class="field-kind"') == 1
    assert client.get(LIST, {"q": "BadRow"}).status_code == 200
    run = runs().get(state="failed")
    detail = client.get(f"{LIST}{run.pk}/change/")
    assert "view_count" in detail.content.decode()
    assert 'name="_save"' not in detail.content.decode()
    assert client.post(f"{LIST}{run.pk}/change/", {"state": "verified"}).status_code == 403
    assert client.post(f"{LIST}{run.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.get(f"{LIST}add/").status_code == 403
    assert Run.objects.get(pk=run.pk).state == "failed"
    assert client.get("/admin/parquet_analytics/erasure/").status_code == 200


def test_the_status_page_says_how_the_archive_is(client: Client, site: str) -> None:
    text = client.get(STATUS).content.decode()
    for day, state in ((6, "deleted"), (5, "verified"), (4, "empty"), (3, "verified"), (2, "failed"), (1, "missing")):
        assert f"{ago(day)}</a></th>\n<td>{state}</td>" in text, (day, state)
    assert "3000000000" in text
    assert "<script>alert" not in text


def test_it_is_for_those_who_may_look(site: str) -> None:
    client = Client()
    assert client.get(STATUS).status_code == 302
    assert client.login(username="reader", password="let me in")
    assert client.get(STATUS).status_code == 403
    assert client.get(LIST).status_code == 403


def test_a_wrong_setting_is_said_on_the_page(client: Client, tmp_path: Path) -> None:
    with sites.archive(tmp_path, STORAGE="nowhere"):
        assert "no usable storage &#x27;nowhere&#x27;" in client.get(STATUS).content.decode()


def test_the_pages_look_right_in_a_browser(site: str, tmp_path: Path) -> None:
    """Screenshots are left in the folder that PARQUET_ANALYTICS_SCREENSHOTS names."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("NO BROWSER: install Debian's chromium and chromium-driver to have the admin pages looked at")
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    port = free_port()
    more = {"DEBUG": True, "ALLOWED_HOSTS": ["127.0.0.1"]}
    server = subprocess.Popen(
        sites.manage("runserver", "--noreload", f"127.0.0.1:{port}"),
        env=sites.environment(site, tmp_path, more, ALLOW_LOCAL_DELETE=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --window-size=1280,900"
    for flag in (*flags.split(), f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    browser: Any = None
    try:
        assert wait_until(lambda: _answers(port), 20)
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        # What is looked for is waited for: the next page may not be there yet.
        browser.implicitly_wait(30)
        browser.get(f"http://127.0.0.1:{port}{STATUS}")
        browser.find_element(By.NAME, "username").send_keys("operator")
        browser.find_element(By.NAME, "password").send_keys("let me in")
        browser.find_element(By.CSS_SELECTOR, "[type=submit]").click()
        rows = browser.find_elements(By.CSS_SELECTOR, "#result_list tbody tr")
        assert len(rows) == 6
        assert browser.find_element(By.TAG_NAME, "h1").text
        # The style sheet is there: the table has the admin's look.
        head = browser.find_element(By.CSS_SELECTOR, "#result_list thead th")
        assert int(head.value_of_css_property("font-weight")) >= 500
        keep(browser, "status")
        rows[1].find_element(By.TAG_NAME, "a").click()
        assert wait_until(lambda: "day__day" in browser.current_url, 30)
        assert browser.find_element(By.ID, "changelist")
        keep(browser, "runs-of-a-day")
        browser.get(f"http://127.0.0.1:{port}{LIST}")
        keep(browser, "runs")
        browser.find_element(By.CSS_SELECTOR, ".object-tools a").click()
        assert wait_until(lambda: browser.current_url.endswith(STATUS), 30)
        browser.get(f"http://127.0.0.1:{port}{LIST}{runs().get(state='failed').pk}/change/")
        keep(browser, "run")
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert [entry for entry in severe if "favicon" not in entry["message"]] == []
    finally:
        if browser is not None:
            browser.quit()
        server.terminate()
        server.wait(10)


def keep(browser: Any, name: str) -> None:
    if folder := os.environ.get("PARQUET_ANALYTICS_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def _answers(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
