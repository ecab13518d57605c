"""The adapter inside lmms-eval itself, where that is installed: tasks of our own, from files.

Multiple choice is asked of the adapter alone: lmms-eval 0.7.3 makes a string of every pair that `loglikelihood` gives.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
UTILS = """
from pathlib import Path
from PIL import Image

def visuals(doc):
    return [Image.open(doc["picture"])]

def question(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if previous_output is None:
        return doc["question"]
    return visuals(doc), "and then", len(previous_output) >= 2, previous_output, None

def said(doc, results):
    return {"answered": float(isinstance(results[0], str))}

def rounds(doc, results):
    return {"answered": float(len(results[0]) == 2)}
"""
TASK = """
task: ours_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function utils.visuals
doc_to_text: {text}
{rest}
"""
REST = {
    "generate_until": "doc_to_target: answer\nprocess_results: !function utils.said\nmetric_list: [{metric: answered, "
    "aggregation: mean, higher_is_better: true}]\ngeneration_kwargs: {until: ['.'], max_new_tokens: 8}",
    "generate_until_multi_round": "doc_to_target: answer\nprocess_results: !function utils.rounds\nmetric_list: "
    "[{metric: answered, aggregation: mean, higher_is_better: true}]\ngeneration_kwargs: {until: ['.']}",
}


def python_with_lmms_eval() -> str:
    """An interpreter that has lmms-eval: the one named, or this one."""
    named = os.environ.get("MMSPEECH_LMMS_PYTHON")
    if named is None and importlib.util.find_spec("lmms_eval") is None:
        pytest.skip(
            "needs lmms-eval: uv venv E && uv pip install --python E/bin/python lmms-eval -e . and "
            "MMSPEECH_LMMS_PYTHON=E/bin/python"
        )
    return named or sys.executable


def write_tasks(folder: Path) -> None:
    rows = []
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
        row = {"picture": str(folder / f"{number}.png"), "question": "the colour of the circle is", "answer": colour}
        rows.append(row | {"right": number})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "utils.py").write_text(UTILS)
    for kind, rest in REST.items():
        text = "!function utils.question" if kind == "generate_until_multi_round" else "question"
        told = TASK.format(kind=kind, data=folder / "rows.jsonl", text=text, rest=rest)
        (folder / f"{kind}.yaml").write_text(told)


@pytest.mark.slow
def test_lmms_eval_asks_our_model(small_checkpoint, tmp_path):
    python = python_with_lmms_eval()
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_tasks(tasks)
    names = ",".join(f"ours_{kind}" for kind in REST)
    command = [
        python,
        "-m",
        "eval.lmms_eval_model",
        "--tasks",
        names,
        "--include_path",
        str(tasks),
        "--batch_size",
        "2",
    ]
    command += ["--model_args", f"pretrained={small_checkpoint},max_sec=1", "--output_path", str(tmp_path / "out")]
    command += ["--log_samples"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*results.json")
    results = json.loads(file.read_text())["results"]
    assert results["ours_generate_until"]["answered,none"] == 1.0
    assert results["ours_generate_until_multi_round"]["answered,none"] == 1.0


LIKELY = """
import sys
from types import SimpleNamespace
from PIL import Image
from eval.lmms_eval_model import MmspeechModel

model = MmspeechModel(pretrained=sys.argv[1])
model.task_dict = {"t": {"test": [{"picture": sys.argv[2]}]}}
look = lambda doc: [Image.open(doc["picture"])]
asked = [SimpleNamespace(args=("it is", text, look, 0, "t", "test")) for text in ("red", "red blue", "blue")]
asked.append(SimpleNamespace(args=("it is", lambda doc: "red", look, 0, "t", "test")))
red, longer, blue, again = model.loglikelihood(asked)
assert red == again and longer[0] < red[0] < 0 and not (red[1] and blue[1]), (red, longer, blue, again)
"""


@pytest.mark.slow
def test_likelihoods_are_pairs(small_checkpoint, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "p.png")
    command = [python_with_lmms_eval(), "-c", LIKELY, str(small_checkpoint), str(tmp_path / "p.png")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is not None, reason="lmms-eval is here")
def test_without_lmms_eval_it_says_what_to_install():
    command = [sys.executable, "-c", "import eval.lmms_eval_model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode and "pip install lmms-eval" in done.stderr
