"""Processes: run id, rank and world, launchers, signals. Imports no torch by itself."""
