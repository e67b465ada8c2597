"""The test site's Celery app: `celery -A tests.celery_site worker`."""

import os

from celery import Celery

app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.broker_url = os.environ["PARQUET_ANALYTICS_TEST_BROKER"]
app.autodiscover_tasks()


@app.task(name="analytics.tasks.delete_old_page_counts")
def delete_old_page_counts() -> None:
    """As a site has it before it moves: deletes by date alone."""
