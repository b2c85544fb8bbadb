"""Rewards on a Ray cluster of two nodes, both on this machine."""

import pytest
import ray
from ray.cluster_utils import Cluster

from rewards.ray_service import RayRewardService
from tests.rl.commands import metrics

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.slow
def test_scorers_on_two_nodes_give_the_same_run(here, tmp_path, monkeypatch):
    assert here() == 0
    close, nodes = RayRewardService.close, set()

    def look_and_close(service):
        if not nodes:
            nodes.update(
                ray.get(
                    [
                        scorer.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
                        for scorer in service._scorers
                    ]
                )
            )
        close(service)

    monkeypatch.setattr(RayRewardService, "close", look_and_close)
    # Room for all workers on either node: they are spread, not packed.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    try:
        second = cluster.add_node(num_cpus=4)
        changes = {"workers": {"backend": "ray", "count": 2}, "ray.address": cluster.address}
        assert here(changes, f"output_dir={tmp_path / 'nodes'}") == 0
        assert nodes == {cluster.head_node.node_id, second.node_id}
    finally:
        cluster.shutdown()
    ours, inline = metrics(tmp_path / "nodes"), metrics(tmp_path / "run")
    for own, other in zip(ours, inline, strict=True):
        assert {key: own[key] for key in other} == other
