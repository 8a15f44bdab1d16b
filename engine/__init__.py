"""An actor-based payment processing engine (see ARCHITECTURE.md)."""

__version__ = "0.1.0"
