"""Settings of the test site for processes of its own; DATABASES, STORAGES and the like come from the environment."""

import json
import os

from parquet_analytics.demo import site

from tests import sites

INSTALLED_APPS = [*site.APPS, *sites.APPS]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
globals().update(sites.SETTINGS)
globals().update(json.loads(os.environ[sites.ENVIRONMENT]))
