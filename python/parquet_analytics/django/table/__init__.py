"""The site's table of page views: which model and columns it is, its databases, and what depends on its rows."""
