"""Errors, units, read-only arrays and the plug-in registry: the ground everything stands on."""
