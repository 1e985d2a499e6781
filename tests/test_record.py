"""What a recorded run leaves besides its evaluation."""

import json

from helpers.record import curve
from helpers.runs import append_row


def test_the_curve_counts_what_was_right_and_when(tmp_path):
    for step in (1, 2):
        append_row(tmp_path / "metrics.jsonl", {"step": step, "seconds": 3.5 * step})
    for step, outcomes in {0: [True, False], 2: [True, True]}.items():
        for correct in outcomes:
            append_row(tmp_path / "samples.jsonl", {"step": step, "correct": correct})
    rows = curve(tmp_path)
    assert rows == [{"step": 0, "seconds": 0.0, "right": 1, "n": 2},
                    {"step": 2, "seconds": 7.0, "right": 2, "n": 2}]
    json.dumps(rows)
