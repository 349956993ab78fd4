"""How OpenMM comes to evaluate a CV."""
