"""A straight line learned online, from a prior: latencies and token counts are nearly linear."""

from __future__ import annotations

_CLIP = 16.0
_PRIOR_FADES = 0.8
_LASTING_PRIOR = 0.05


class Line:
    """Weighted least squares of ``y = intercept + slope * x`` with forgetting.

    Errors count relative to ``x + scale``, so that long prompts do not drown short ones. Two
    pseudo-observations, at 0 and at ``reach``, stand for the prior: it fades by a fifth with each
    observation, since it may be wrong by orders of magnitude, and a small part of it stays, so
    that data at a single x leaves the slope defined. Neither
    coefficient is ever negative. One observation moves the line by no more than 16 times its
    prediction.

    Args:
        intercept, slope: the prior, not negative.
        scale: the x below which errors count as absolute.
        reach: a typical large x.
        strength: how many observations the prior weighs at first.
        memory: after about this many observations an old one is forgotten.
    """

    __slots__ = (
        "_memory_share",
        "_prior",
        "_prior_weight",
        "_scale",
        "_w",
        "_wx",
        "_wxx",
        "_wxy",
        "_wy",
        "intercept",
        "samples",
        "slope",
    )

    def __init__(
        self,
        *,
        intercept: float,
        slope: float,
        scale: float,
        reach: float,
        strength: float = 2.0,
        memory: float = 64.0,
    ) -> None:
        self.intercept = intercept
        self.slope = slope
        self.samples = 0
        self._scale = scale
        self._memory_share = 1.0 - 1.0 / memory
        near = (0.5 / scale) / scale
        far = 0.5 / (reach + scale) ** 2
        top = intercept + slope * reach
        self._prior = (
            near + far,
            far * reach,
            far * reach * reach,
            near * intercept + far * top,
            far * reach * top,
        )
        self._prior_weight = strength
        self._w = self._wx = self._wxx = self._wy = self._wxy = 0.0

    def at(self, x: float) -> float:
        """The line's value at x."""
        return self.intercept + self.slope * x

    def learn(self, x: float, y: float) -> None:
        """Take one observation; y must be positive, x not negative."""
        believed = self.intercept + self.slope * x
        if believed > 0.0:
            if y > believed * _CLIP:
                y = believed * _CLIP
            elif y < believed / _CLIP:
                y = believed / _CLIP
        weight = 1.0 / (x + self._scale) ** 2
        keep = self._memory_share
        weighted = weight * x
        self._w = self._w * keep + weight
        self._wx = self._wx * keep + weighted
        self._wxx = self._wxx * keep + weighted * x
        self._wy = self._wy * keep + weight * y
        self._wxy = self._wxy * keep + weighted * y
        self.samples += 1
        self._prior_weight = _LASTING_PRIOR + _PRIOR_FADES * (self._prior_weight - _LASTING_PRIOR)
        self._solve()

    def _solve(self) -> None:
        share = self._prior_weight
        w, wx, wxx, wy, wxy = self._prior
        w = w * share + self._w
        wx = wx * share + self._wx
        wxx = wxx * share + self._wxx
        wy = wy * share + self._wy
        wxy = wxy * share + self._wxy
        determinant = w * wxx - wx * wx
        slope = (w * wxy - wx * wy) / determinant if determinant > 0.0 else -1.0
        if slope < 0.0:
            self.slope, self.intercept = 0.0, wy / w
            return
        intercept = (wy - slope * wx) / w
        if intercept < 0.0:
            self.slope, self.intercept = wxy / wxx, 0.0
            return
        self.slope, self.intercept = slope, intercept
