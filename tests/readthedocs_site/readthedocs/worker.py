import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "readthedocs.settings.production")
app = Celery("docs")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(None)
