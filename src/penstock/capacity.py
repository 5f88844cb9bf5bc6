"""Load capacity: how much can be loaded while a layer computes without slowing it down by more than its class may be.

Shu et al., FlashMem (ASPLOS 2026, arXiv 2602.15379): a regression, trained on measured operators, predicts what extra
loads cost an operator; the load capacity is what costs no more than the class's share (`planning.kinds.SLOWDOWNS`).

The regression is linear in the rate of the loads, so what it learnt is five numbers, which are kept beside the samples:
plans need no scikit-learn, whose import takes more memory than some budgets are.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.cache import read_json, write_json
from penstock.errors import PenstockError, StorageError
from penstock.machine import cache_file, describe, something_to_read, storage_profile
from penstock.planning.kinds import SLOWDOWNS
from penstock.probe import Progress, open_probe
from penstock.slowdown import LOAD_SHARES, Effort, Sample, measure_slowdowns
from penstock.workloads import operators

EFFORT = Effort()
_PROBE_NBYTES = 256 << 20
_VERSION = 1
_FOLDS = 8
_TO_DEVIATION = 1.4826  # from the median absolute deviation of normal errors
_STRATEGIES = ("flashmem",)


@dataclass(frozen=True, slots=True)
class ClassCapacity:
    """What was found of one class of calls, as medians over its operators.

    Attributes:
        kind: the class.
        allowed: by how much loads may slow it down.
        slowdown: by how much they do at full speed, measured.
        bytes_per_second: of loads beside it that slow it down by no more than allowed, predicted.
    """

    kind: str
    allowed: float
    slowdown: float
    bytes_per_second: float


@dataclass(frozen=True)
class LoadCapacity:
    """What the regression learnt, and from what.

    A call of class k that takes t seconds and reads w bytes of weights slows down, beside loads of r GB/s, by
    r * (c[k] + c[3] * log10(t / 1 ms) + c[4] * w / t / 1e9), as a part of t.

    Attributes:
        samples: at least some of every class.
        coefficients: c, the first three in the order of `planning.kinds.SLOWDOWNS`.
        median_error: of the predicted slowdown, absolute, for operators that were left out of the training.
        p95_error: its 95th percentile.
    """

    samples: tuple[Sample, ...]
    coefficients: tuple[float, ...]
    median_error: float
    p95_error: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> LoadCapacity:
        """Trained on `samples`, and tested on operators left out in turn.

        Raises:
            PenstockError: scikit-learn is not installed; or a class has samples of less than two operators.
        """
        linear_model, model_selection = _import_sklearn()
        _check_enough(samples)
        capacity = cls(tuple(samples), (), 0.0, 0.0)
        loaded = [sample for sample in samples if sample.load_bytes_per_second]
        inputs = np.array([capacity._inputs_of(sample) for sample in loaded])
        slowdowns = np.array([sample.slowdown for sample in loaded])
        names = [sample.operator for sample in loaded]
        # The median, not the mean: some samples are far off when other programs run.
        regression = linear_model.QuantileRegressor(quantile=0.5, alpha=1e-5, fit_intercept=False)
        folds = model_selection.GroupKFold(min(_FOLDS, len(set(names))))
        predicted = model_selection.cross_val_predict(regression, inputs, slowdowns, groups=names, cv=folds)
        errors = np.abs(predicted - slowdowns)
        learnt = tuple(float(value) for value in regression.fit(inputs, slowdowns).coef_)
        return cls(tuple(samples), learnt, float(np.median(errors)), float(np.quantile(errors, 0.95)))

    @cached_property
    def noise(self) -> float:
        """The standard deviation of a slowdown by no loads at all, without outliers: what cannot be told from none."""
        controls = [abs(sample.slowdown) for sample in self.samples if not sample.load_bytes_per_second]
        return _TO_DEVIATION * statistics.median(controls) if controls else 0.0

    @cached_property
    def bytes_per_second(self) -> float:
        """What storage brings beside computing when nothing holds it back."""
        return statistics.median(sample.load_bytes_per_second for sample in self._fastest)

    @cached_property
    def _fastest(self) -> list[Sample]:
        """Of each operator the sample with the most loads beside it."""
        found: dict[str, Sample] = {}
        for sample in sorted(self.samples, key=lambda sample: sample.load_bytes_per_second):
            found[sample.operator] = sample
        return list(found.values())

    def of_class(self, kind: str) -> ClassCapacity:
        """A summary for people."""
        found = [sample for sample in self._fastest if sample.kind == kind]
        rates = [self.fitting_bytes_per_second(kind, sample.seconds, sample.weight_nbytes) for sample in found]
        slowdown = statistics.median(sample.slowdown for sample in found)
        return ClassCapacity(kind, self.allowed(kind), slowdown, statistics.median(rates))

    def allowed(self, kind: str) -> float:
        """By how much loads may slow such a call down: none means no more than noise."""
        return max(SLOWDOWNS[kind], self.noise)

    def fitting_bytes_per_second(self, kind: str, seconds: float, weight_nbytes: int) -> float:
        """The rate of loads that slows such a call down by as much as allowed, or all that storage brings.

        Args:
            kind: its class.
            seconds: that it takes alone.
            weight_nbytes: of weights that it reads.
        """
        features = self._features(kind, seconds, weight_nbytes)
        cost = sum(one * value for one, value in zip(self.coefficients, features, strict=True)) / 1e9
        if cost <= 0:
            return self.bytes_per_second
        return min(self.allowed(kind) / cost, self.bytes_per_second)

    def most_nbytes(self, kind: str, seconds: float, weight_nbytes: int) -> int:
        """The most bytes that can be loaded while such a call computes: at that rate for as long as it may then take.

        Args: see `fitting_bytes_per_second`.
        """
        return int(self.fitting_bytes_per_second(kind, seconds, weight_nbytes) * seconds * (1 + SLOWDOWNS[kind]))

    def _inputs_of(self, sample: Sample) -> list[float]:
        features = self._features(sample.kind, sample.seconds, sample.weight_nbytes)
        return [sample.load_bytes_per_second / 1e9 * value for value in features]

    def _features(self, kind: str, seconds: float, weight_nbytes: int) -> list[float]:
        """What the rate's cost depends on; calls beyond what was measured count as the nearest that was."""
        (least, most), densest = self._ranges
        duration = min(max(seconds, least), most)
        density = min(weight_nbytes / duration, densest)
        return [*(float(kind == one) for one in SLOWDOWNS), math.log10(duration / 1e-3), density / 1e9]

    @cached_property
    def _ranges(self) -> tuple[tuple[float, float], float]:
        durations = [sample.seconds for sample in self.samples]
        densities = [sample.weight_nbytes / sample.seconds for sample in self.samples]
        return (min(durations), max(durations)), max(densities)


def measure_capacity(path: str | os.PathLike[str], *, progress: Progress | None = None) -> LoadCapacity:
    """Measures operators beside loads from the file system that holds `path`, and keeps what that taught.

    It takes a minute; up to two if other programs disturb.

    Raises:
        StorageError: `path` does not exist, or nothing there could be read or written to measure with.
        PenstockError: scikit-learn is not installed; or other programs left too little undisturbed.
    """
    _import_sklearn()  # rather now than after two minutes
    place = Path(path)
    kept_at, profile = _kept_at(place), storage_profile(place)
    with something_to_read(place, _PROBE_NBYTES) as file:
        try:
            with open_probe(file) as probe:
                samples = measure_slowdowns(probe, operators(), profile.bytes_per_second, EFFORT, progress=progress)
        except OSError as error:
            raise StorageError(f"{file}: measuring load capacity failed: {error.strerror or error}") from error
    capacity = LoadCapacity.of(samples)
    identity = {"version": _VERSION, "machine": describe().fingerprint, "threads": torch.get_num_threads()}
    write_json(kept_at, {**identity, **asdict(capacity)})
    return capacity


def possible_samples() -> int:
    """How many samples a machine without other programs gives."""
    return len(operators()) * len(LOAD_SHARES)


def capacity_for(strategy: str, path: str | os.PathLike[str]) -> LoadCapacity | None:
    """What was measured of load capacity for storage at `path`, if the strategy wants to know, and it was.

    Raises:
        StorageError: `path` does not exist.
    """
    return _from_json(read_json(_kept_at(Path(path)))) if strategy in _STRATEGIES else None


def _import_sklearn() -> tuple[Any, Any]:
    try:
        from sklearn import linear_model, model_selection
    except ImportError as error:
        raise PenstockError(
            f"load capacity is learnt with scikit-learn, which cannot be imported ({error}): "
            "pip install 'penstock[capacity]'"
        ) from error
    return linear_model, model_selection


def _kept_at(place: Path) -> Path:
    return cache_file(place, "capacity")


def _check_enough(samples: Sequence[Sample]) -> None:
    for kind in SLOWDOWNS:
        names = {sample.operator for sample in samples if sample.kind == kind and sample.load_bytes_per_second}
        if len(names) < 2:
            raise PenstockError(
                f"other programs disturbed the measurement: {len(names)} {kind} operators could be measured, two are "
                "needed; run it again when the machine has less to do"
            )


def _from_json(value: object) -> LoadCapacity | None:
    """What `value` holds, or None: the file may be another version's or machine's, or anyone's."""
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        return None
    if (value.get("machine"), value.get("threads")) != (describe().fingerprint, torch.get_num_threads()):
        return None
    try:
        samples = tuple(_sample(item) for item in value["samples"])
        _check_enough(samples)
        coefficients = tuple(_number(one, -1e6) for one in value["coefficients"])
        if len(coefficients) != len(SLOWDOWNS) + 2:
            return None
        return LoadCapacity(samples, coefficients, _number(value["median_error"]), _number(value["p95_error"]))
    except (TypeError, KeyError, ValueError, PenstockError):
        return None


def _sample(fields: Any) -> Sample:
    sample = Sample(**fields)
    if sample.kind not in SLOWDOWNS or not isinstance(sample.operator, str):
        raise ValueError(f"sample {fields}")
    _number(sample.seconds, 1e-9, 1e3)
    for nbytes in (sample.weight_nbytes, sample.nbytes, sample.flops, sample.load_bytes_per_second):
        _number(nbytes, 0, 1e15)
    _number(sample.slowdown, -1)
    return sample


def _number(value: Any, low: float = 0.0, high: float = 1e6) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"number {value!r}")
    return value
