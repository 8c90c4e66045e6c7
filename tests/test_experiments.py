"""What experiments do alike: an answer in parts survives its end; and what the figure of the race leaves out."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(sys, "argv", ["squares.py"])
    import harness

    return harness


def run(harness, made, *words):
    """Squares of the given numbers, one part each; 13 cannot be made."""
    parser = harness.arguments("squares", in_parts=True)
    parser.add_argument("--of", nargs="+", type=int)
    parser.add_argument("--unit", default="1")
    parser.add_argument("--again", action="store_true")

    def square(number, kept):
        if number == 13:
            raise KeyboardInterrupt
        made.append(number)
        return {"square": number**2} if kept is None else {"square": kept["square"], "times": kept.get("times", 1) + 1}

    def answer(options):
        make = {str(number): partial(square, number) for number in options.of}
        return harness.Parts({"unit": options.unit}, make, again=options.again)

    return harness.run(parser, words, answer, lambda record: None, None)


def test_an_answer_in_parts_is_taken_up_after_an_end(harness, tmp_path):
    path, made = tmp_path / "squares.json", []
    with pytest.raises(KeyboardInterrupt):
        run(harness, made, "--out", str(tmp_path), "--of", "1", "2", "13", "4")
    assert json.loads(path.read_text())["parts"] == {"1": {"square": 1}, "2": {"square": 4}}
    run(harness, made, "--out", str(tmp_path), "--of", "1", "2", "4")
    record = json.loads(path.read_text())
    assert made == [1, 2, 4]
    assert record["parts"]["4"] == {"square": 16}
    first, second = record["command"].split(" && ")
    assert first.endswith("--of 1 2 13 4") and second.endswith("--of 1 2 4")
    before = path.read_text()
    run(harness, made, "--out", str(tmp_path), "--of", "2")
    assert made == [1, 2, 4] and path.read_text() == before
    run(harness, made, "--out", str(tmp_path), "--of", "2", "--again")
    assert json.loads(path.read_text())["parts"]["2"] == {"square": 4, "times": 2}
    run(harness, made, "--out", str(tmp_path), "--of", "2", "--anew")
    assert made == [1, 2, 4, 2, 2] and list(json.loads(path.read_text())["parts"]) == ["2"]
    assert [file.name for file in tmp_path.iterdir()] == ["squares.json"]


def test_a_record_of_other_settings_is_not_added_to(harness, tmp_path, capsys):
    made = []
    run(harness, made, "--out", str(tmp_path), "--of", "1")
    with pytest.raises(SystemExit) as ended:
        run(harness, made, "--out", str(tmp_path), "--of", "2", "--unit", "m")
    assert ended.value.code == 2 and made == [1]
    assert "squares.json was made with unit 1, not m: give the same" in capsys.readouterr().err
    run(harness, made, "--out", str(tmp_path / "other"), "--of", "2", "--unit", "m")
    assert made == [1, 2]


def test_what_cannot_be_written_or_read_is_refused_before_the_work(harness, tmp_path, capsys):
    made, path = [], tmp_path / "squares.json"
    path.write_text('{"parts": ')
    for out, sentence in ((path, "it must be a folder that can be made"), (tmp_path, "squares.json holds no record")):
        with pytest.raises(SystemExit) as ended:
            run(harness, made, "--out", str(out), "--of", "1")
        assert ended.value.code == 2 and sentence in capsys.readouterr().err
    assert made == []


@pytest.mark.parametrize("limit", ["seconds", "evaluations"])
def test_the_figure_leaves_out_only_what_cannot_be_seen(harness, limit):
    import search_race as race

    random, ends = np.random.default_rng(0), {"time": 20.0, "evaluations": 20_000}
    bound, number = 3.0, int(limit == "evaluations")
    entry = []
    for _ in range(3):
        when = np.sort(10.0 ** random.uniform(-2, 1, 200))
        values = bound * (1.0 + np.sort(10.0 ** random.uniform(-4, 2, 200))[::-1])
        steps = [[float(t), int(1000 * t), float(v)] for t, v in zip(when, values, strict=True)]
        entry.append({"improvements": steps, **ends})
    curve = race._curve(entry, limit, bound, 20.0)
    assert len(curve) < 300
    for x in 10.0 ** random.uniform(-1, 1, 50) * (1.0, 1000.0)[number]:
        # what is shown is what was so within the ratio, a little later
        then = [np.median([race.at(one["improvements"], **{limit: w}) for one in entry]) for w in (x, x / race.SEEN)]
        most, least = (max(value / bound - 1.0, race.FLOOR) for value in then)
        shown = curve[curve[:, 0] <= x][-1, 1]
        assert least * (1 - 1e-9) <= shown <= most / race.SEEN * (1 + 1e-9)
