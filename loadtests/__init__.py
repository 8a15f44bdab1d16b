"""Load tests: scenarios of traffic and trouble, each with thresholds, run by `python -m loadtests`.

Read `loadtests/scenarios.py` first: every scenario is a value there.
"""
