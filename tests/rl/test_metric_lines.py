"""Reading metrics.jsonl: damaged lines are counted, an unfinished last one is not."""

from rl.metric_lines import read_metric_lines


def test_lines_with_a_step_and_damaged_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metric_lines(path) == ([], [])
    path.write_text('{"step": 1, "loss": NaN}\n{"step"\n[1]\n{"loss": 1}\n{"step": 2}\n{"step": 3')
    found, damaged = read_metric_lines(path)
    assert [line["step"] for line in found] == [1, 2]
    assert damaged == [2, 3, 4]
    path.write_bytes(b'{"step": 1}\n\xff\n{"step": 2}')  # whole, without a line end
    found, damaged = read_metric_lines(path)
    assert [line["step"] for line in found] == [1, 2]
    assert damaged == [2]
