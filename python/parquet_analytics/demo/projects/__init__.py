"""Projects, as Read the Docs has them."""
