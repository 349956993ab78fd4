"""Students: small networks on torsions and distances that stand in for a collective variable, the teacher."""
