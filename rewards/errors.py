"""Errors of scoring: whose fault a failure is decides the reward (a bad rig: 0; a bad mesh: none)."""


class RewardError(ValueError):
    """A mesh or a rig that cannot be scored: one of the two subclasses, which say whose fault it is.

    Raised itself only for arguments that do not fit together (weights of another mesh, poses of another rig):
    the caller's mistake, which no reward should hide.
    """


class MeshRewardError(RewardError):
    """The mesh cannot be scored (no triangle with area, non-finite vertices, …): not the policy's fault."""


class RigRewardError(RewardError):
    """The rig cannot be scored (a cycle of parents, NaN weights, …): the policy's fault."""
