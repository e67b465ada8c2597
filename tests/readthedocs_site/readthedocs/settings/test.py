import os

from .base import CommunityBaseSettings


class CommunityTestSettings(CommunityBaseSettings):
    CELERY_TASK_ALWAYS_EAGER = True

    @property
    def DATABASES(self):
        return {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": os.path.join(self.SITE_ROOT, "dev.db"),  # noqa: PTH118
            },
        }

    @property
    def STORAGES(self):
        return {
            "default": {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
            },
            "staticfiles": {
                "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage",
            },
        }


CommunityTestSettings.load_settings(__name__)
