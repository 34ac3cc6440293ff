"""Transports: how a flow becomes bytes on paths. One module a mechanism."""
