"""The width of the kernels that `geomgnn run` biases a CV with."""

from types import SimpleNamespace

import pytest
from protocol_texts import TINY

from openmm_geomgnn.cli import biasing
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.cv.kernel_widths import kernel_widening
from openmm_geomgnn.errors import GeomGNNError

pytestmark = pytest.mark.filterwarnings("ignore:tiny.yaml")  # doubtful settings are meant here


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return lambda **changes: load_protocol(path, {name.replace("__", "."): value for name, value in changes.items()})


class TestKernelWidth:
    """phase per outer step = rate*step/sigma, at most 0.5; the outer step is 6 fs, the temperature 300 K."""

    def widths(self, load, rate, spread, **changes):
        facts = {"rate_300K_per_ps": rate, "in_basin_spread": spread}
        components = {} if len(rate) == 1 else {"cv__components": len(rate)}
        return biasing.kernel_width(SimpleNamespace(training_information=facts), load(**components, **changes))

    def test_spread_within_a_basin(self, load):
        widths = self.widths(load, [5.0], [0.1])
        assert widths["sigma"] == pytest.approx((0.1,)) and widths["sigma_min"] == pytest.approx((0.06,))

    def test_several_components_take_wider_ones(self, load):
        """Where the fit says so: runs on CVs of before go on as they were begun."""
        facts = {"rate_300K_per_ps": [5.0, 5.0], "in_basin_spread": [0.1, 0.2], "least_kernel_width": 0.15}
        protocol = load(cv__components=2)

        def sigma(**others):
            cv = SimpleNamespace(training_information={**facts, **others})
            return biasing.kernel_width(cv, protocol)["sigma"]

        assert sigma() == pytest.approx((0.15, 0.2))
        assert sigma(kernel_widening=kernel_widening(2)) == pytest.approx((0.1 * 2**0.75, 0.2 * 2**0.75))

    def test_no_narrower_than_the_integrator_follows(self, load):
        widths = self.widths(load, [12.0], [0.1])
        assert widths["sigma"] == widths["sigma_min"] == pytest.approx((0.144,))

    def test_components_and_temperature(self, load):
        widths = self.widths(load, [2.0, 8.0], [0.1, 0.1], system__temperature=1200.0)
        assert widths["sigma"] == pytest.approx((0.1, 0.192)) and widths["sigma_min"] == pytest.approx((0.048, 0.192))

    def test_what_is_given_is_kept(self, load):
        assert self.widths(load, [5.0], [0.1], bias__sigma=0.05) == {"sigma_min": pytest.approx((0.05,))}
        assert self.widths(load, [5.0], [0.1], bias__sigma=0.5) == {"sigma_min": pytest.approx((0.06,))}
        assert self.widths(load, [5.0], [0.1], bias__sigma_min=0.02) == {"sigma": pytest.approx((0.1,))}
        assert self.widths(load, [90.0], [0.1], bias__sigma_min=0.3) == {"sigma": pytest.approx((0.3,))}
        assert self.widths(load, [5.0], [0.1], bias__sigma=0.2, bias__sigma_min=0.1) == {}
        assert self.widths(load, [90.0], [0.1], bias__sigma=0.3) == {"sigma_min": pytest.approx((0.3,))}

    def test_an_adaptive_stride_leaves_sigma_to_the_run(self, load):
        widths = self.widths(load, [5.0], [0.1], **{"bias.adaptive_stride": "20 ps"})
        assert widths == {"sigma_min": (pytest.approx(5.0 * 0.006 / 0.5),)}
        assert load(**{"bias.adaptive_stride": "20 ps"}).make_bias(**widths).adaptive

    def test_every_shortens_the_floor(self, load):
        assert self.widths(load, [30.0], [0.1], run__every=1)["sigma"] == pytest.approx((0.12,))

    def test_a_stiff_cv_is_refused(self, load):
        with pytest.raises(GeomGNNError, match=r"too stiff.*6 fs.*0\.36 wide.*0\.1 within a basin.*run\.every: 1"):
            self.widths(load, [30.0], [0.1])
        with pytest.raises(GeomGNNError, match="too stiff"):
            self.widths(load, [1.0, 30.0], [0.1, 0.1])


class TestEvery:
    """The most time steps of 2 fs in which the phase is 0.5 at most, of a kernel as wide as a basin."""

    def protocol_and_cv(self, load, rate, spread, every="auto", facts=None, **changes):
        facts = {"rate_300K_per_ps": rate, "in_basin_spread": spread, **(facts or {})}
        changes |= {"run__every": every} | ({} if len(rate) == 1 else {"cv__components": len(rate)})
        return SimpleNamespace(training_information=facts), load(**changes)

    def every(self, load, *arguments, **changes):
        cv, protocol = self.protocol_and_cv(load, *arguments, **changes)
        assert protocol.every == 1  # until it is decided
        return biasing.with_every(protocol, cv).run.every

    def test_as_far_as_the_stiffest_component_goes(self, load):
        assert self.every(load, [5.0, 8.0], [0.1, 0.1]) == 3
        assert self.every(load, [30.0], [0.1]) == 1
        assert self.every(load, [0.1], [0.1]) == 4  # no further, however soft
        assert self.every(load, [8.0], [0.05], facts={"least_kernel_width": 0.15}) == 4

    def test_of_a_student_it_is_1(self, load):
        assert self.every(load, [0.1], [0.1], facts={"distillation": {}}) == 1

    def test_widths_that_are_given_count(self, load):
        assert self.every(load, [8.0], [0.1], bias__sigma=0.04) == 1
        assert self.every(load, [8.0], [0.1], bias__sigma=0.04, bias__sigma_min=0.02) == 1
        assert self.every(load, [8.0], [0.03], bias__sigma=0.3) == 4

    def test_kernels_are_as_wide_as_at_every_step(self, load):
        for spread in (0.03, 0.04, 0.1, 0.5):
            cv, protocol = self.protocol_and_cv(load, [8.0], [spread])
            decided = biasing.with_every(protocol, cv)
            assert biasing.kernel_width(cv, decided)["sigma"] == biasing.kernel_width(cv, protocol)["sigma"]

    def test_times_of_the_run_are_kept(self, load):
        times = {"run__colvar_interval": 0.004, "run__frame_interval": 1}
        assert self.every(load, [0.1], [0.1], **times) == 2
        long = {"system__timestep": 0.004, "run__colvar_interval": 0.2, "run__frame_interval": 1}
        assert self.every(load, [0.1], [0.1], **long) == 1  # bonds would resonate
        assert self.every(load, [0.1], [0.1], system__constraints="AllBonds", **long) == 2

    def test_a_number_stays_and_a_hint_is_given(self, load, capsys):
        for rate, every, hint in ([5.0, 1, "run.every: 4"], [8.0, 3, ""], [30.0, 1, ""]):
            cv, protocol = self.protocol_and_cv(load, [rate], [0.1], every)
            assert biasing.decide_every(protocol, cv) is protocol
            said = capsys.readouterr().out
            assert hint in said if hint else not said
