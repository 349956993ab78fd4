"""The settings that commands read from YAML, with their units and checks, as pydantic models."""
