"""Providers behind one port, and the simulator that rehearses every fault."""
