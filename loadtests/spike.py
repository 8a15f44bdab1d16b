"""A spike: few customers, then ten times as many for a third of the time, then few again."""

from __future__ import annotations

import os

from locust import LoadTestShape


class Spike(LoadTestShape):
    """How many users there are by the time of the run."""

    few = int(os.environ.get("LOADTEST_USERS", "40"))
    seconds = float(os.environ.get("LOADTEST_SECONDS", "15"))

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many are started a second; None at the end."""
        part = self.get_run_time() / self.seconds  # type: ignore[no-untyped-call]
        if part >= 1:
            return None
        users = self.few * 10 if 0.3 <= part < 0.63 else self.few
        return users, users
