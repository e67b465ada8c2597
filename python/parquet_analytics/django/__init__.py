"""The Django app: put ``"parquet_analytics.django"`` into INSTALLED_APPS."""
