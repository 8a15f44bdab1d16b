"""Deterministic simulation: the whole engine in one thread, on a clock and a scheduler from a seed.

Read `plan` (what a seed decides), `world` (what runs), `clients` (who asks and remembers), `faults`
(what goes wrong), `watch` and `checkers` (what may never be), `campaign` (many seeds).
"""
