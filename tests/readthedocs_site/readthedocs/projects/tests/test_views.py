import csv

from django.test import TestCase
from django.urls import reverse

from readthedocs.analytics.models import PageView
from readthedocs.builds.models import Version
from readthedocs.projects.models import Project


class TestTrafficAnalyticsView(TestCase):
    def setUp(self):
        self.project = Project.objects.create(name="Docs", slug="docs")
        self.version = Version.objects.create(project=self.project, slug="latest")
        self.url = reverse("projects_traffic_analytics", args=[self.project.slug])
        for status, path in ((200, "/index.html"), (404, "/missing.html")):
            PageView.objects.create(
                project=self.project, version=self.version, path=path, full_path=f"/en/latest{path}", status=status
            )

    def download(self, status):
        response = self.client.get(self.url, {"download": "true", "status": status})
        assert response["Content-Type"] == "text/csv"
        return list(csv.reader(line.decode() for line in b"".join(response.streaming_content).splitlines()))

    def test_download_traffic_csv(self):
        for status, path in (("200", "/index.html"), ("404", "/missing.html")):
            header, row = self.download(status)
            assert header == ["Date", "Version", "Path", "Views"]
            assert row[1:] == ["latest", path, "0"]

    def test_page(self):
        context = self.client.get(self.url).context
        assert [page.path for page in context["top_pages_200"]] == ["/index.html"]
        assert [page.path for page in context["top_pages_404"]] == ["/en/latest/missing.html"]
        assert len(context["page_data"]["labels"]) == 31
