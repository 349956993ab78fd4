"""What the commands read from YAML: the settings, their units and checks, in pydantic."""
