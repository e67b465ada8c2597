"""What is not public: the databases, and the credentials, which the environment has."""

import json
import os

from .base import CommunityBaseSettings

GIVEN = json.loads(os.environ["READTHEDOCS_SITE"])


class CommunityProductionSettings(CommunityBaseSettings):
    CELERY_TASK_ALWAYS_EAGER = True
    DATABASES = GIVEN["DATABASES"]
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": GIVEN["log"]}},
        "loggers": {"parquet_analytics": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }

    @property
    def STORAGES(self):
        storages = super().STORAGES
        if "pageviews" in storages:
            storages["pageviews"]["OPTIONS"].update(GIVEN["store"])
        return storages


CommunityProductionSettings.load_settings(__name__)
