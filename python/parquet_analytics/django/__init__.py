"""Page views that live in a Django model."""
