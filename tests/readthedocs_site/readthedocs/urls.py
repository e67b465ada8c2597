from django.urls import path

from readthedocs.projects.views.private import TrafficAnalyticsView

urlpatterns = [
    path(
        "dashboard/<slug:project_slug>/traffic-analytics/",
        TrafficAnalyticsView.as_view(),
        name="projects_traffic_analytics",
    )
]
