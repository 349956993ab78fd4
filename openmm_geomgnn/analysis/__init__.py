"""Free energies with error bars, transition counts, pictures and the report of a biased simulation."""
