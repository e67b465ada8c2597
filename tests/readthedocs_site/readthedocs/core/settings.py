"""Settings as classes, whose names in capitals become those of the module."""

import sys


class Settings:
    @classmethod
    def load_settings(cls, module):
        settings = cls()
        for name in dir(settings):
            if name.isupper() and not name.startswith("_"):
                setattr(sys.modules[module], name, getattr(settings, name))
