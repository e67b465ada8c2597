from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.views.generic import TemplateView

from readthedocs.analytics.models import PageView
from readthedocs.projects.models import Feature, Project
from readthedocs.projects.utils import get_csv_file


class TrafficAnalyticsView(TemplateView):
    template_name = "projects/project_traffic_analytics.html"
    http_method_names = ["get"]

    def get(self, request, *args, **kwargs):
        if request.GET.get("download", False):
            return self._get_csv_data(http_status=404 if request.GET.get("status") == "404" else 200)
        return super().get(request, *args, **kwargs)

    def get_project(self):
        return get_object_or_404(Project, slug=self.kwargs["project_slug"])

    def get_context_data(self, **kwargs):
        context = super().get_context_data(**kwargs)
        project = self.get_project()
        context.update(
            {
                "top_pages_200": PageView.top_viewed_pages(project, limit=25),
                "page_data": PageView.page_views_by_date(project_slug=project.slug),
                "top_pages_404": PageView.top_viewed_pages(project, limit=25, status=404, per_version=True),
            }
        )
        return context

    def _get_csv_data(self, http_status):
        project = self.get_project()
        now = timezone.now().date()
        feature = Feature(project)
        days_ago = project.pub_date.date() if feature.unlimited else now - timezone.timedelta(days=feature.value)

        values = [("Date", "date"), ("Version", "version__slug"), ("Path", "path"), ("Views", "view_count")]
        data = (
            PageView.objects.filter(project=project, date__gte=days_ago, status=http_status)
            .order_by("-date")
            .values_list(*[value for _, value in values])
        )

        csv_data = [[timezone.datetime.strftime(date, "%Y-%m-%d %H:%M:%S"), *rest] for date, *rest in data]
        csv_data.insert(0, [header for header, _ in values])
        return get_csv_file(filename=f"traffic_{project.slug}_http{http_status}.csv", csv_data=csv_data)
