"""How much the property tests try: the same few cases at every run, or new ones for longer."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Whoever changes something wants the outcome to depend on the change alone.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None)

# `make fuzz`: other cases at every run, and three times as many.
settings.register_profile(
    "fuzz",
    max_examples=300,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

settings.load_profile("fixed")
