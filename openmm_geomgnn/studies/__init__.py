"""Studies that train, evaluate and compare many networks, or many quantum-chemical calculations."""
