"""The command `geomgnn`: its commands, their settings, and what they print."""
