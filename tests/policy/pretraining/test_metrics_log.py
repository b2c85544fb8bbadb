"""Running means of the metrics, also across a resume."""

import json

from policy.pretraining.metrics_log import RunningMeans


def test_running_means_count_each_name():
    means = RunningMeans()
    means.add({"loss": 1.0})
    means.add({"loss": 2.0, "skin": 5.0})
    again = RunningMeans(json.loads(json.dumps(means.state())))
    again.add({"loss": 6.0})
    assert again.take() == {"loss": 3.0, "skin": 5.0}  # (1 + 2 + 6) / 3, 5 / 1
    assert again.take() == {}
    assert means.take() == {"loss": 1.5, "skin": 5.0}
