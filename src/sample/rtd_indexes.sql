-- What makes analytics_pageview of rtd_schema.sql whole; made after the rows are loaded, which is several times faster.
ALTER TABLE analytics_pageview
    ADD PRIMARY KEY (id),
    ADD UNIQUE (project_id, version_id, path, date, status),
    ADD FOREIGN KEY (project_id) REFERENCES projects_project (id) DEFERRABLE INITIALLY DEFERRED,
    ADD FOREIGN KEY (version_id) REFERENCES builds_version (id) DEFERRABLE INITIALLY DEFERRED;
CREATE UNIQUE INDEX analytics_pageview_constraint_unique_without_optional
    ON analytics_pageview (project_id, path, date, status) WHERE version_id IS NULL;
CREATE INDEX analytics_pageview_date ON analytics_pageview (date);
CREATE INDEX analytics_pageview_issue_12686
    ON analytics_pageview (project_id, date, status) INCLUDE (path, view_count);
