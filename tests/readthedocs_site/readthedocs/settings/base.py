from pathlib import Path

from celery.schedules import crontab

from readthedocs.core.settings import Settings


class CommunityBaseSettings(Settings):
    SITE_ROOT = str(Path(__file__).parents[2])
    MEDIA_ROOT = str(Path(SITE_ROOT) / "media")
    SECRET_KEY = "only for tests"
    ALLOWED_HOSTS = ["*"]
    ROOT_URLCONF = "readthedocs.urls"
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
    TIME_ZONE = "UTC"
    USE_TZ = True
    STATIC_URL = "static/"

    RTD_ANALYTICS_DEFAULT_RETENTION_DAYS = 30 * 3

    @property
    def INSTALLED_APPS(self):
        apps = [
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django_celery_beat",
            "readthedocs.projects",
            "readthedocs.builds",
            "readthedocs.analytics",
        ]
        return apps

    TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "DIRS": [str(Path(SITE_ROOT) / "readthedocs" / "templates")],
        }
    ]

    CELERY_TASK_DEFAULT_QUEUE = "celery"
    CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
    CELERY_BEAT_SCHEDULE = {
        "every-day-delete-old-search-queries": {
            "task": "readthedocs.search.tasks.delete_old_search_queries_from_db",
            "schedule": crontab(minute=0, hour=0),
            "options": {"queue": "web"},
        },
        "every-day-delete-old-page-views": {
            "task": "readthedocs.analytics.tasks.delete_old_page_counts",
            "schedule": crontab(minute=27, hour="*/6"),
            "options": {"queue": "web"},
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
