"""Rows of kept rollouts made by hand."""

from rl.rollout_store import KeptRollout


def kept_row(step: int, why: str = "best", total: float = 1.0, **changes: object) -> KeptRollout:
    values = {
        **{"why": why, "step": step, "mesh": "fox", "mesh_file": None, "mesh_key": "k", "prompt": "p"},
        **{"given_skeleton": False, "tokens": [1, 2], "seed": 3, "pose_seed": 4, "weights": {"a": 1.0}},
        **{"rewards": {"a": total}, "total": total, "valid": True, "joints": 2, "diagnostics": {}},
        **{"advantage": 0.5, "policy": "small", "decoder": "d"},
    }
    if why == "failure":
        values |= {"failure": f"broken at {step}", "kind": f"kind of {step}"}
    return KeptRollout(**{**values, **changes})
