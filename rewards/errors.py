"""Errors of scoring: which side a failure to score comes from decides the reward (invalid rig: 0, bad mesh:
none).
"""


class RewardError(ValueError):
    """A mesh or a rig that cannot be scored. One of the two subclasses below says whose fault it is."""


class MeshRewardError(RewardError):
    """The mesh cannot be scored (no triangle with area, non-finite vertices, …): not the policy's fault."""


class RigRewardError(RewardError):
    """The rig cannot be scored (cycle of parents, NaN weights, wrong shape, …): the policy's fault."""
