"""The hand-over to Read the Docs, followed line by line in a small site with the same names: in each of the four
phases, and after renaming and deleting, every page and every download is what it is in a site that goes on as ever."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from parquet_analytics import SampleData
from parquet_analytics.demo.site import postgresql

from tests.archives import Place
from tests.readthedocs_document import DOCUMENT, Block, blocks
from tests.services import Postgres, Standby

TESTS = Path(__file__).parent
TODAY = datetime.datetime.now(datetime.UTC).date()
DAYS = 36
SPECIAL = SampleData(rows_per_day=150, projects=10, growth=0.0, weekly_rhythm=False).special_projects()
OLD, OTHER, NEW = SPECIAL["largest"], SPECIAL["tiny"], "a-renamed-project"
TASKS = (
    "readthedocs.analytics.tasks.export_pageviews_to_parquet",
    "readthedocs.analytics.tasks.delete_old_page_counts",
)


def ago(number: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=number)


FIRST = ago(DAYS - 1)


@dataclass
class Site:
    """The small site in a folder of its own, with its databases."""

    folder: Path
    url: str
    replica: str
    store: dict[str, Any]

    def __post_init__(self) -> None:
        shutil.copytree(TESTS / "readthedocs_site", self.folder)

    @property
    def log(self) -> Path:
        return self.folder / "parquet_analytics.log"

    def run(self, *command: str) -> tuple[int, str]:
        databases = {"default": postgresql(self.url), "replica": postgresql(self.replica)}
        environment = os.environ | {
            "READTHEDOCS_SITE": json.dumps({"DATABASES": databases, "log": str(self.log), "store": self.store}),
            "DJANGO_SETTINGS_MODULE": "readthedocs.settings.production",
            "PYTHONPATH": os.pathsep.join([str(self.folder), *(path for path in sys.path if path)]),
            "PYTHONWARNINGS": "ignore",
        }
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240
        )
        return done.returncode, done.stdout if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"

    def manage(self, *arguments: str) -> str:
        code, said = self.run("manage.py", *arguments)
        assert code == 0, f"manage.py {' '.join(arguments)}: {code}\n{said}"
        return said

    def probe(self, name: str, *arguments: Any, **how: Any) -> Any:
        code, said = self.run(str(TESTS / "readthedocs_probe.py"), json.dumps([name, arguments, how]))
        assert code == 0, f"{name}: {said}"
        return json.loads(said)

    def follow(self, wanted: Callable[[Block], bool]) -> None:
        """Puts those of the document's blocks into the site."""
        chosen = [block for block in blocks() if wanted(block)]
        assert chosen
        for block in chosen:
            block.apply(self.folder)

    def set(self, key: str, value: str | None) -> None:
        """One key of PARQUET_ANALYTICS; ``None`` takes its line out."""
        path = self.folder / "readthedocs" / "settings" / "base.py"
        head, found, rest = path.read_text().partition("    PARQUET_ANALYTICS = {\n")
        assert found
        rest = re.sub(rf'        "{key}": .*\n', "", rest)
        line = "" if value is None else f'        "{key}": {value},\n'
        path.write_text(head + found + line + rest)


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[list[str]]:
    made: list[str] = [postgres.create_database("template0")]
    yield made
    for url in made:
        postgres.drop_database(url)


@pytest.fixture
def before(tmp_path: Path, databases: list[str]) -> Site:
    """The site as it is today, which never exports anything."""
    site = Site(tmp_path / "before", databases[0], databases[0], {})
    site.manage("makemigrations", "projects", "builds", "analytics")
    site.manage("migrate")
    site.probe("load", DAYS)
    return site


@pytest.fixture
def site(
    tmp_path: Path, before: Site, databases: list[str], postgres: Postgres, standby: Standby, place: Place
) -> Site:
    """The same site with the same rows, which is going to follow the document."""
    databases.append(postgres.create_database(before.url.rsplit("/", 1)[1]))
    standby.catch_up()
    who = place.s3.admin
    store = {
        "bucket_name": place.bucket,
        "location": place.location,
        "endpoint_url": place.s3.endpoint_url,
        "region_name": place.s3.region,
        "access_key": who.access_key_id,
        "secret_key": who.secret_access_key,
        "addressing_style": "path",
    }
    site = Site(tmp_path / "after", databases[1], standby.database_url(databases[1]), store)
    for app in ("projects", "builds", "analytics"):
        migrations = Path("readthedocs", app, "migrations")
        shutil.copytree(before.folder / migrations, site.folder / migrations)
    return site


def phase(number: int, row: str) -> str:
    """A cell of the table of the four phases."""
    text = DOCUMENT.read_text().partition("## Four phases")[2]
    [line] = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return line.split("|")[1 + number]


def commands(number: int, row: str, day: datetime.date) -> list[list[str]]:
    """The commands in a cell, about a day of this site."""
    found = re.findall(r"`manage\.py ([^`]+)`", phase(number, row))
    assert found
    return [re.sub(r"\d{4}-\d\d-\d\d|\bDAY\b", str(day), command).split() for command in found]


def is_dashboard(block: Block) -> bool:
    return block.file.endswith(("archive.py", "models.py", "private.py"))


def compare(before: Site, site: Site) -> int:
    """Every page and download of the two; gives the number of rows in them."""
    ours, theirs = site.probe("show"), before.probe("show")
    assert list(ours) == list(theirs)
    rows = 0
    for slug, expected in theirs.items():
        shown = ours[slug]
        assert shown["page_data"] == expected["page_data"], slug
        for name in ("top_pages_200", "top_pages_404"):
            pages = [list(map(tuple, found[name])) for found in (shown, expected)]
            assert [count for *_, count in pages[0]] == [count for *_, count in pages[1]], (slug, name)
            # Those with as few views as the last one are some of several.
            sure = [{page for page in found if page[2] > found[-1][2]} for found in pages]
            assert sure[0] == sure[1], (slug, name)
            assert len(pages[0]) < 25 or len(sure[0]) > 1
        for status in ("200", "404"):
            ours_csv, theirs_csv = (list(csv.reader(found[status].splitlines())) for found in (shown, expected))
            assert ours_csv[0] == theirs_csv[0] == ["Date", "Version", "Path", "Views"]
            assert [row[0] for row in ours_csv] == [row[0] for row in theirs_csv], (slug, status)
            assert Counter(map(tuple, ours_csv)) == Counter(map(tuple, theirs_csv)), (slug, status)
            rows += len(ours_csv) - 1
    return rows


@pytest.mark.timeout(900)
def test_the_hand_over_changes_no_page_and_no_download(before: Site, site: Site, standby: Standby) -> None:
    # Before the first phase.
    site.follow(lambda block: "/settings/" in block.file)
    site.manage("migrate")
    standby.catch_up()
    code, said = site.run("manage.py", "parquet_analytics", "doctor")
    assert code != 0
    assert "deletes page views whether or not they are exported" in said
    site.follow(lambda block: block.file.endswith("tasks.py"))
    for command in re.findall(r"`manage\.py ([^`]+)`", DOCUMENT.read_text().partition("## Four phases")[2][:900])[:3]:
        site.manage(*command.split())
    site.manage("check", "--settings", "readthedocs.settings.docker_compose")
    rows = compare(before, site)
    assert rows > 4_000

    # 1. Export: nothing leaves the table, whichever task runs.
    for command in commands(1, "do", FIRST):
        site.manage(*command)
    for command in commands(1, "evidence", FIRST):
        site.manage(*command)
    assert site.probe("work") == str(FIRST)
    assert site.probe("work", *TASKS) == str(FIRST)
    assert compare(before, site) == rows

    # 2. Shadow
    assert '`"SHADOW": True`' in phase(2, "do")
    site.set("SHADOW", "True")
    site.follow(is_dashboard)
    site.log.write_text("")
    assert compare(before, site) == rows
    told = site.log.read_text()
    assert "compared, 0 different, 0 failed" in told
    assert "answers differently" not in told
    assert "could not be compared" not in told
    site.manage("test", "readthedocs", "--settings", "readthedocs.settings.test")

    # 3. Answer
    assert '`"SHADOW": False`' in phase(3, "do")
    site.set("SHADOW", "False")
    site.log.write_text("")
    assert compare(before, site) == rows
    for each in (before, site):
        each.probe("rename", OLD, NEW, OTHER)
    standby.catch_up()
    assert compare(before, site) == rows

    # 4. Let go
    for days in ("3", None):
        site.set("HOT_DAYS", days)
        assert site.probe("work") == str(ago(3))
        standby.catch_up()
        assert compare(before, site) == rows
    assert before.probe("oldest") == str(FIRST)
    for command in commands(4, "evidence", FIRST):
        said = site.manage(*command)
        assert "deleted" in said
    for each in (before, site):
        each.probe("delete", NEW)
    standby.catch_up()
    fewer = compare(before, site)
    assert fewer < rows

    # Versions that are gone, for whoever wants them: of the days that were exported.
    last = str(ago(4))
    truth = before.probe("kept", NEW, str(FIRST), last)
    found = [row for row in site.probe("archived", NEW, str(FIRST), deleted_versions=True) if row[0] <= last]
    assert Counter((day, path, views) for day, _, path, views in found) == Counter(
        (day, path, views) for day, _, path, views in truth
    )
    assert "renamed" in {slug for _, slug, *_ in found}
    as_exported = [
        row for row in site.probe("archived", NEW, str(FIRST), deleted_versions=True, old_slugs=True) if row[0] <= last
    ]
    assert Counter((day, path, views) for day, _, path, views in as_exported) == Counter(
        (day, path, views) for day, _, path, views in found
    )
    assert "renamed" not in {slug for _, slug, *_ in as_exported}
    [without], [whole] = site.probe("sums", NEW)
    assert without < whole

    # The way back
    value = re.search(r'`"HOT_DAYS": (\S+)`', phase(4, "way back"))
    assert value is not None
    site.set("HOT_DAYS", value[1])
    for command in commands(4, "way back", ago(10)):
        site.manage(*command)
    # A download of everything there is, of a project that is twelve years old.
    for each in (before, site):
        each.probe("age", NEW, 4_400)
    standby.catch_up()
    assert compare(before, site) > fewer
    warnings = [line for line in site.log.read_text().splitlines() if "cannot be asked" in line]
    assert warnings == []


def test_a_test_settings_file_without_the_storage_says_what_is_missing(before: Site) -> None:
    before.follow(lambda block: "settings/test.py" not in block.file)
    code, said = before.run("manage.py", "check", "--settings", "readthedocs.settings.test")
    assert code != 0
    assert "parquet_analytics.E007" in said
    before.follow(lambda block: "settings/test.py" in block.file)
    before.manage("check", "--settings", "readthedocs.settings.test")
    before.manage("test", "readthedocs", "--settings", "readthedocs.settings.test")


def test_the_policy_is_about_the_bucket_and_the_folders_of_the_settings() -> None:
    text = DOCUMENT.read_text()
    [policy] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    [bucket] = set(re.findall(r'"bucket_name": "([\w-]+)"', text))
    arn = f"arn:aws:s3:::{bucket}"
    allowed = {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, resources = statement["Action"], statement["Resource"]
        for action in [actions] if isinstance(actions, str) else actions:
            allowed[action] = [resources] if isinstance(resources, str) else resources
    assert allowed == {
        "s3:ListBucket": [arn],
        "s3:GetObject": [f"{arn}/*"],
        "s3:PutObject": [f"{arn}/*"],
        "s3:DeleteObject": [
            f"{arn}/analytics/pageviews/{folder}/*" for folder in ("project", "org", "_derived/series")
        ],
    }


def test_every_block_says_where_it_belongs_and_none_is_left_over() -> None:
    found = blocks()
    assert len(found) >= 14
    assert [block.line for block in found if not block.code.strip()] == []
    assert {block.file for block in found if is_dashboard(block)} >= {
        "readthedocs/analytics/archive.py",
        "readthedocs/analytics/models.py",
        "readthedocs/projects/views/private.py",
    }
    taken = [is_dashboard(block) + ("/settings/" in block.file) + block.file.endswith("tasks.py") for block in found]
    assert set(taken) == {1}
