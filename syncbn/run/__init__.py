"""Runs: options, configs and their check, building, fitting, folder, resuming."""
