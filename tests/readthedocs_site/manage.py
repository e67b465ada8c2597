"""A site like Read the Docs, as far as page views go: the same names of files, classes and settings."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "readthedocs.settings.production")
execute_from_command_line(sys.argv)
