"""`GeomGNNCV` on the platforms of OpenMM."""

import numpy as np
import pytest
from force_systems import PDB, energy_and_forces, make_context, make_system
from molecules import BOXES

from openmm_geomgnn import GeomGNNCV


class TestPlatforms:
    def test_platforms_agree(self, cv_file):
        found = []
        for platform in ("Reference", "CPU"):
            system = make_system(box=BOXES["triclinic"])
            system.addForce(GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager", periodic=True))
            found.append(energy_and_forces(make_context(system, platform=platform)))
        (energy, forces), (expected, expected_forces) = found
        assert energy == pytest.approx(expected, rel=1e-6)
        assert np.abs(forces - expected_forces).max() < 1e-5 * np.abs(expected_forces).max()
