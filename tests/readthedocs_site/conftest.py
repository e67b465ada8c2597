"""The tests in here are the site's own, which its test runner runs."""

collect_ignore_glob = ["*"]
