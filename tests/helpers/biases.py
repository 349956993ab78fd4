"""What the tests of biases share."""

import math

TORSION = (-math.pi, math.pi)
KT = 0.00831446261815324 * 300


def deposit(opes, points, dimension=None):
    state = opes.initial_state(dimension)
    for s in points:
        state = opes.update(state, s)
    return state
