from readthedocs.worker import app  # noqa: F401 - so that shared tasks find it
