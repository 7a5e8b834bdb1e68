"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# Examples may take as long as the machine lets them: what they cost is for tests/bench to say.
settings.register_profile("podlane", deadline=None)
settings.load_profile("podlane")
