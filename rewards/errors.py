"""Scoring errors, by cause: the rig (reward 0), the mesh (not scored), the caller (a bug)."""


class RewardError(ValueError):
    """Scoring failed. The subclasses blame the mesh or the rig.

    The base class itself means arguments that do not fit together (weights for another mesh, poses for
    another rig): a bug in the caller, which no reward should hide.
    """


class MeshRewardError(RewardError):
    """The mesh cannot be scored (no triangle with area, non-finite vertices, …); the policy is blameless."""


class RigRewardError(RewardError):
    """The rig cannot be scored (a cycle of parents, NaN weights, …); the policy is to blame."""


class MeshQuarantinedError(RewardError):
    """The mesh has stopped workers before and is no longer worked on; the policy is blameless."""
