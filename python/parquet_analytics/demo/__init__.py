"""The whole path in one command: `python -m parquet_analytics.demo`.

A tiny Django site with the models of Read the Docs gets some weeks of traffic, exports every day and answers a
dashboard's questions from the files.
"""
