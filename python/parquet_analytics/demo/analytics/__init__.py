"""Page views, as Read the Docs has them."""
