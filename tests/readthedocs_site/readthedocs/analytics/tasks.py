from django.conf import settings
from django.utils import timezone

from readthedocs.analytics.models import PageView
from readthedocs.worker import app


@app.task(queue="web")
def delete_old_page_counts():
    days_ago = timezone.now().date() - timezone.timedelta(days=settings.RTD_ANALYTICS_DEFAULT_RETENTION_DAYS)
    qs = PageView.objects.filter(date__lt=days_ago)
    qs._raw_delete(qs.db)
