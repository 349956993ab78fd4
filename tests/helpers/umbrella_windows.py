"""A thermodynamic state of openmmtools that moves the centre of a spring; openmmtools imports it where it resumes a run."""

from openmmtools.states import GlobalParameterState


class Window(GlobalParameterState):
    s0 = GlobalParameterState.GlobalParameter("s0", standard_value=0.0)
