"""The harness itself: it tells good from bad, gives the same numbers again, and a killed run ends like a whole one."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from questions import lines_of, measure, save, write_questions
from typer.testing import CliRunner

from eval.__main__ import app
from eval.compare import compare_records, compare_runs
from eval.manifest import Line, read_lines
from eval.recognise import NoEars
from eval.replies import KeptReplies
from eval.report import worst_of, write_report
from eval.results import RESULTS, TIMES, read_results
from eval.run import SAMPLES, read_records, run_task
from eval.scripted import Scripted
from eval.statistics import bootstrap_mean, paired_difference
from eval.task import Prompt, Reply, Settings, spoken
from eval.tasks import find
from eval.tasks.spoken_vqa import SpokenVqa
from mmspeech.config import ConfigError


def make_task(manifest, **options):
    return SpokenVqa(read_lines(manifest, Line), Settings(manifest=manifest, **options), NoEars())


@pytest.fixture
def task(tmp_path):
    return make_task(write_questions(tmp_path, count=40))


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_scripts_get_what_they_deserve(task, tmp_path):
    assert measure(task, tmp_path / "oracle")["all"]["score"] == 1.0
    assert measure(task, tmp_path / "silent", who="silent")["all"]["score"] == 0.0
    blind = measure(task, tmp_path / "blind", who="blind")["all"]
    low, high = blind["score_95"]
    assert low <= 0.5 <= high  # of each kind, two colours are right equally often
    late = measure(task, tmp_path / "late", who="late")["all"]
    assert late["answer_sec_p50"] > 4.0 and late["score"] == 1.0


def test_a_late_commentator_fails(tmp_path):
    events = [{"at_sec": 2.0, "answers": ["star appears"]}, {"at_sec": 5.0, "answers": ["circle vanishes"]}]
    task = make_task(write_questions(tmp_path, events=events))
    assert measure(task, tmp_path / "oracle")["all"]["score"] == 1.0
    late = measure(task, tmp_path / "late", who="late")["all"]
    assert late["score"] == 0.0 and late["events_told"] == 1.0 and late["events_told_in_time"] == 0.0


def test_the_same_run_again_gives_the_same_numbers(task, tmp_path):
    for out in ("one", "two"):
        measure(task, tmp_path / out, who="blind")
    one, two = (read_results(tmp_path / out) for out in ("one", "two"))
    assert one.pop(TIMES) and two.pop(TIMES)
    assert one == two
    assert (tmp_path / "one" / SAMPLES).read_text() == (tmp_path / "two" / SAMPLES).read_text()


def test_a_killed_run_goes_on_and_ends_like_a_whole_one(task, tmp_path):
    measure(task, tmp_path / "whole", who="blind")
    wanted = (tmp_path / "whole" / SAMPLES).read_text()

    class Killed(Exception):
        pass

    def kill(done, total):
        if done >= 10:
            raise Killed

    blind = Scripted("blind", task)
    out = tmp_path / "killed"
    out.mkdir()
    with pytest.raises(Killed):
        run_task(task, blind, out=out, seed=0, batch_size=2, progress=kill)
    samples = out / SAMPLES
    samples.write_text(samples.read_text()[:-40])  # in the middle of a line
    asked = []
    answer = blind.answer
    blind.answer = lambda samples, prompts, *, seeds: asked.extend(seeds) or answer(samples, prompts, seeds=seeds)
    measure(task, out, who=blind)
    assert len(asked) == 32  # the batch of the torn line again, and what was left
    by_id = [{r["id"]: r for r in map(json.loads, text.splitlines())} for text in (wanted, samples.read_text())]
    assert by_id[0] == by_id[1] and len(samples.read_text().splitlines()) == 40
    one, two = (read_results(tmp_path / folder) for folder in ("whole", "killed"))
    assert one["tasks"] == two["tasks"]


def test_a_folder_of_another_run_is_refused(task, tmp_path):
    measure(task, tmp_path / "o")
    with pytest.raises(ConfigError, match=r"different seed\); choose another --out"):
        measure(task, tmp_path / "o", settings=Settings(seed=1))
    other = make_task(write_questions(tmp_path, count=4, name="other"))
    with pytest.raises(ConfigError, match=r"spoken_vqa \(version or data\)"):
        measure(other, tmp_path / "o")


def test_results_are_strict_json_and_say_where_they_come_from(tmp_path):
    task = make_task(write_questions(tmp_path, barge_start_sec=1.6))
    measure(task, tmp_path / "o", who="silent")
    results = json.loads((tmp_path / "o" / RESULTS).read_text(), parse_constant=pytest.fail)
    assert results["schema_version"] == 2 and results["run"]["seed"] == 0
    assert results["hardware"]["cpus"] and results["versions"]["torch"]
    assert len(results["tasks"]["spoken_vqa"]["revision"]) == 16
    for line in (tmp_path / "o" / SAMPLES).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


class Counting:
    """Answers with a tone whose loudness is the seed's, and counts what it is asked."""

    sample_rate_hz = 24_000

    def __init__(self):
        self.asked = 0

    def answer(self, samples, prompts, *, seeds):
        self.asked += len(prompts)
        wave = np.sin(np.arange(4800) / 7).astype(np.float32)
        return [
            Reply(spoken(f"seed {seed}", 0.5).words, (wave * 0.01 * (1 + seed % 50) * 32767).round() / 32767, [0.1] * 2)
            for seed in seeds
        ]


def test_what_was_answered_once_is_not_asked_again(tmp_path):
    model = Counting()
    kept = KeptReplies(model, tmp_path / "replies", identity={"model": "x"})
    prompts = [Prompt(np.full(100, 0.1, np.float32)), Prompt(text="hello", pictures=[(0.0, Image.new("RGB", (4, 4)))])]
    first = kept.answer([None] * 2, prompts, seeds=[1, 2])
    again = kept.answer([None] * 2, prompts, seeds=[1, 2])
    assert model.asked == 2
    for one, two in zip(first, again, strict=True):
        assert one.words == two.words and one.gates == two.gates
        np.testing.assert_allclose(one.wave, two.wave, atol=1e-7)
    kept.answer([None], [Prompt(np.full(100, 0.2, np.float32))], seeds=[1])
    kept.answer([None], prompts[:1], seeds=[3])
    KeptReplies(model, tmp_path / "replies", identity={"model": "y"}).answer([None], prompts[:1], seeds=[1])
    assert model.asked == 5  # another question, another seed, another model


def test_a_torn_reply_is_asked_again(tmp_path):
    model = Counting()
    kept = KeptReplies(model, tmp_path / "replies", identity={})
    kept.answer([None], [Prompt()], seeds=[1])
    (told,) = (tmp_path / "replies").glob("*.json")
    for torn in (told.read_text()[:20], told.read_text().replace('"samples": 4800', '"samples": 4801')):
        told.write_text(torn)
        kept.answer([None], [Prompt()], seeds=[1])
    assert model.asked == 3


def test_intervals_hold_the_mean_and_narrow():
    rng = np.random.default_rng(0)
    few, many = (rng.random(count) < 0.8 for count in (50, 2000))
    low, high = bootstrap_mean(few)
    assert low < few.mean() < high and bootstrap_mean([]) is None
    assert bootstrap_mean(many)[1] - bootstrap_mean(many)[0] < (high - low) / 3
    # The normal approximation is good for so many.
    spread = 1.96 * np.sqrt(0.8 * 0.2 / 2000)
    assert bootstrap_mean(many)[0] == pytest.approx(many.mean() - spread, abs=0.004)


def test_differences_that_are_chance_are_told_from_those_that_are_not():
    rng = np.random.default_rng(1)
    a = (rng.random(300) < 0.6).astype(float)
    better = np.where(rng.random(300) < 0.3, 1.0, a)
    assert paired_difference(a, a).p == 1.0
    found = paired_difference(a, better)
    assert found.p < 0.001 and found.low > 0 and found.mean == pytest.approx((better - a).mean())
    shuffled = rng.permutation(a)
    assert paired_difference(a, shuffled).p > 0.05
    with pytest.raises(ValueError, match="300 and 2 scores"):
        paired_difference(a, a[:2])


def test_two_runs_are_compared_by_sample(task, tmp_path):
    from rich.console import Console

    measure(task, tmp_path / "a", who="blind")
    measure(task, tmp_path / "b")
    console = Console(record=True, width=160)
    rows = compare_runs(tmp_path / "a", tmp_path / "b", console=console)
    assert [row.kind for row in rows] == ["all kinds", "colour", "count"] and all(row.b == 1.0 for row in rows)
    assert rows[0].difference.p < 0.001 and rows[0].difference.pairs == 40 and rows[0].unpaired == 0
    assert "all kinds" in console.export_text()
    records = read_records(tmp_path / "b" / SAMPLES)
    (colour,) = [row for row in compare_records(records, records[:15]) if row.kind == "colour"]
    assert colour.unpaired > 0 and colour.difference.mean == 0.0
    with pytest.raises(ConfigError, match="no results of a run"):
        compare_runs(tmp_path / "a", tmp_path / "none", console=console)


def test_the_report_needs_nothing_else(tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "p.png")
    task = make_task(write_questions(tmp_path, count=8, image="p.png"))
    measure(task, tmp_path / "o", who="blind")
    page = write_report(tmp_path / "o").read_text()
    assert not re.findall(r"""(?:src|href)=['"](?!data:)""", page)
    assert page.count("data:audio/flac") == 8 and page.count("data:image/png") == 8 + 2  # and two charts
    assert "right (rows) and said (columns)" in page and "mean gate over time" in page
    first = re.search(r"<span class='score (\w+)'>", page).group(1)
    assert first == "low"  # the worst come first


def test_the_worst_of_each_kind_are_shown():
    records = [{"kind": kind, "id": f"{kind}{n}", "score": float(kind == "c")} for kind in "aabc" for n in range(3)]
    assert [record["kind"] for record in worst_of(records, 5)] == ["a", "b", "a", "b", "a"]


def test_several_processes_give_the_same_numbers(small_checkpoint, tmp_path):
    manifest = write_questions(tmp_path, count=6)
    for name, processes in (("one", 1), ("two", 2)):
        options = ("--recogniser", "none", "--batch-size", 2, "--processes", processes, "--out", tmp_path / name)
        result = run("--tasks", "spoken_vqa", "--manifest", manifest, "--model", small_checkpoint, *options)
        assert result.exit_code == 0, result.output
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    assert one["tasks"] == two["tasks"] and one["run"] == two["run"]
    assert (tmp_path / "one" / SAMPLES).read_text() == (tmp_path / "two" / SAMPLES).read_text()


def test_a_quantised_model_is_another_run(small_checkpoint, tmp_path):
    pytest.importorskip("torchao", reason="pip install mmspeech[quantize]")
    manifest = write_questions(tmp_path, count=2)
    asked = ("--tasks", "spoken_vqa", "--manifest", manifest, "--model", small_checkpoint, "--recogniser", "none")
    for quantize in ((), ("--quantize", "int8")):
        result = run(*asked, *quantize, "--out", tmp_path / f"o{len(quantize)}")
        assert result.exit_code == 0, result.output
    whole, small = (read_results(tmp_path / name)["run"] for name in ("o0", "o2"))
    assert small["responder"] == f"{whole['responder']} in int8" and small["model"] == whole["model"]
    result = run(*asked, "--quantize", "int8", "--out", tmp_path / "o0")
    assert result.exit_code == 2 and "another run" in result.stderr


def test_unknown_tasks_and_scripts_list_the_known(tmp_path):
    with pytest.raises(ConfigError, match=r"expected one of .*rendered_world.*spoken_vqa"):
        find("nothing")
    result = run("--tasks", "spoken_vqa", "--model", "scripted:clever", "--out", tmp_path)
    assert result.exit_code == 2 and "scripted:oracle" in result.stderr
    result = run()
    assert result.exit_code == 0 and "rendered_world" in result.stdout


def test_tasks_without_data_say_what_to_get_and_the_rest_runs(tmp_path):
    manifest = write_questions(tmp_path, count=4)
    common = ("--model", "scripted:oracle", "--recogniser", "none", "--data", tmp_path / "none")
    result = run("--tasks", "rendered_world,spoken_vqa", "--manifest", manifest, "--out", tmp_path / "o", *common)
    assert result.exit_code == 0, result.output
    assert "data_prep questions --name all" in " ".join(result.stdout.split())
    results = read_results(tmp_path / "o")
    assert results["tasks"]["spoken_vqa"]["all"]["score"] == 1.0
    assert set(results["missing"]) == {"rendered_world"} and (tmp_path / "o" / "report.html").is_file()
    result = run("--tasks", "rendered_world", "--out", tmp_path / "p", *common)
    assert result.exit_code == 2 and "none of the tasks" in result.stderr and result.stderr.count("\n") == 1


def test_the_rendered_world_is_sighted_blind_and_misled(tmp_path):
    folder = tmp_path / "questions"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / f"p{number}.png")
    lines = lines_of(write_questions(folder, count=2, name="known"))
    save(folder / "known.jsonl", [line | {"image": f"p{number}.png"} for number, line in enumerate(lines)])
    task = find("rendered_world")(Settings(data=tmp_path, recogniser="none"), None)
    assert [sample.kind for sample in task.samples[::2]] == ["known", "known, none", "known, swapped"]
    shown = {sample.id: task.prompt(sample).pictures for sample in task.samples}
    assert shown["known, none/known0"] == []
    (given,), (swapped,) = shown["known/known0"], shown["known, swapped/known0"]
    assert given[1].getpixel((0, 0)) == (255, 0, 0) and swapped[1].getpixel((0, 0)) == (0, 0, 255)
    assert measure(task, tmp_path / "o")["all"]["score"] == 1.0
