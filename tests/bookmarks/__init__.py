"""An app whose rows refer to page views without a constraint in the database."""
