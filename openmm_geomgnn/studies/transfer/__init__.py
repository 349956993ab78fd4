"""One CV for many molecules: trained on some of them, used on one that it has not seen."""
