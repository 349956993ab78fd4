"""Slow functions of time series: covariances, VAMP and TICA, VAMPnets and held-out scores, from arrays to arrays."""

from .alignment import Alignment, align
from .covariance import Covariances, Pairs, covariances
from .gap import basin_gap
from .linear import LinearBasis, fit_linear, linear_basis
from .loss import vamp2
from .shared import SharedLobe, train_shared_lobe
from .transitions import Transitions, basins, transitions
from .validation import (
    Segment,
    check_folds,
    cross_validate,
    folds_of_blocks,
    folds_of_runs,
    held_out_score,
    hold_out,
)
from .vamp import EPSILON, KoopmanModel, fix_sign, skewness, timescales, vamp, vamp_score
from .vampnet import VAMPNetResult, VAMPNetSettings, train_vampnet
from .weights import koopman_weights, normalised_biases, rescaled_time_pairs, static_weights

__all__ = [
    "EPSILON",
    "Alignment",
    "Covariances",
    "KoopmanModel",
    "LinearBasis",
    "Pairs",
    "Segment",
    "SharedLobe",
    "Transitions",
    "VAMPNetResult",
    "VAMPNetSettings",
    "align",
    "basin_gap",
    "basins",
    "check_folds",
    "covariances",
    "cross_validate",
    "fit_linear",
    "fix_sign",
    "folds_of_blocks",
    "folds_of_runs",
    "held_out_score",
    "hold_out",
    "koopman_weights",
    "linear_basis",
    "normalised_biases",
    "rescaled_time_pairs",
    "skewness",
    "static_weights",
    "timescales",
    "train_shared_lobe",
    "train_vampnet",
    "transitions",
    "vamp",
    "vamp2",
    "vamp_score",
]
