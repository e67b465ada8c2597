"""From page views to answers, line by line. Run it as it is, or in pieces in a notebook:

    python examples/workflow.py

It needs nothing but the package: rows come from the sample generator, files go to a temporary folder. The comments say
what stands there in real life.
"""

import datetime
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from parquet_analytics import ParquetAnalyticsExporter, ParquetAnalyticsQuerier, SampleData

# 1. Where the files go. In real life a bucket ("s3://bucket/docs"), or a Django storage object.
folder = tempfile.TemporaryDirectory(prefix="parquet-analytics-workflow-")
storage = Path(folder.name).as_uri()

# 2. Where the rows come from. In real life a PostgreSQL URL, a Django model or queryset, or any function that takes a
#    day and returns an Arrow stream, which is what `sample.day` is.
sample = SampleData(rows_per_day=20_000, projects=100, seed=7)
source = sample.day

# 3. Export two weeks, a file a day. In real life a nightly job exports yesterday, which is the default.
exporter = ParquetAnalyticsExporter(storage, source=source)
yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
days = [yesterday - datetime.timedelta(days=back) for back in range(14)]
for day in sorted(days):
    result = exporter.export_daily_pageviews(day)
    print(f"{result['date']}  {result['total_records']:>7,} rows  {result['bytes']:>9,} bytes")

# 4. Exporting a stored day merges what the source has now into the file; here there is nothing new.
print("\nexported again:", exporter.export_daily_pageviews(yesterday)["outcome"])
print("verified:", exporter.verify(yesterday)["total_records"], "rows")

# 5. The dashboard's questions. Constructing does no I/O, so a web request can make its own querier.
querier = ParquetAnalyticsQuerier(storage)
project = sample.special_projects()["largest"]
since = min(days)

print(f"\ntop pages of {project}")
for row in querier.top_pages(project, since, limit=5).to_pylist():
    print(f"{row['count']:>10,}  {row['path']}")

print("\nviews a day")
for row in querier.daily_totals(project, since, fill=True).to_pylist():
    print(f"{row['count']:>10,}  {row['date']:%a %d %b}")

print("\npages not found")
for row in querier.top_pages(project, since, limit=5, status=404).to_pylist():
    print(f"{row['count']:>10,}  {row['path']}")

# 6. What that took: files looked at, requests, round trips in a row, bytes.
print(f"\n{querier.stats}")

# 7. Any other question, in SQL over the relation `pageviews`.
versions = querier.sql(
    "SELECT version_slug, sum(view_count)::BIGINT AS views FROM pageviews "
    "WHERE project_slug = $project GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
    {"project": project},
    since=since,
    projects=[project],
)
print(f"\n{versions.to_pydict()}")

# 8. The files are ordinary Parquet: any engine reads them, here PyArrow.
table = pq.read_table(Path(folder.name) / exporter.get_parquet_path(yesterday))
print(f"\n{exporter.get_parquet_path(yesterday)}: {table.num_rows:,} rows, {pc.sum(table['view_count'])} views")

folder.cleanup()
