import os

from .base import CommunityBaseSettings


class DockerBaseSettings(CommunityBaseSettings):
    @property
    def DATABASES(self):
        return {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": os.path.join(self.SITE_ROOT, "docker.db"),  # noqa: PTH118
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


DockerBaseSettings.load_settings(__name__)
