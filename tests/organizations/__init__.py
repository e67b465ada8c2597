"""Read the Docs' organizations, as far as copies need them; an app that a test adds to a site."""
