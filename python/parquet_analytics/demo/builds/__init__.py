"""Versions of projects, as Read the Docs has them."""
