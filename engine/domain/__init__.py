"""Pure core: tables, arithmetic and representations. No IO, clock or randomness.

Time is Unix milliseconds (`_ms`), money is an integer in the currency's minor unit; `now_ms`,
ids and jitter are always arguments.
"""
