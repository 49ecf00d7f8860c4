"""How hypothesis searches: without deadlines, since machines differ, and in CI from the same seed each time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("everywhere", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("everywhere")
