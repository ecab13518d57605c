"""Dialogues by a language model: an endpoint on a real socket, a real (untrained) transformers model; the filters."""

import json
import re

import pytest
from talker import serving

from data_prep.__main__ import main
from data_prep.dialogue import make_plan, write_dialogues
from data_prep.filters import check_dialogue
from data_prep.records import Record, SaidRecord, TextRecord, write_records
from data_prep.report import dropped_examples
from data_prep.steps import DroppedError, How, read_step
from data_prep.templates import DEFAULT, Filters, Templates, load_templates
from data_prep.writers import TransformersWriter, WriterSettings, clean_line
from mmspeech.config import ConfigError

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture
def talker():
    with serving() as own:
        yield own


def records(count=6, **extra):
    return [
        Record(
            id=f"s/{n}",
            source="s",
            licence="CC0-1.0",
            captions=(TextRecord(text=f"a {COLOURS[n % 4]} bus number {n}"),),
            **extra,
        )
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    write_records(tmp_path / "in", records(), root=tmp_path)
    return tmp_path / "in"


def run(data, out, writer, *, templates=None, how=None, seed=0, cache=None):
    templates = templates or load_templates(None)
    drawn = WriterSettings(temperature=0.5)
    return write_dialogues(
        data, out, writer=writer, templates=templates, drawn=drawn, seed=seed, how=how or How(), cache=cache
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_both_sides_are_played_and_only_one_knows(data, talker, tmp_path):
    tally = run(data, tmp_path / "out", talker.name)
    assert (tally.entries, tally.failed, tally.complete) == (6, 0, True)
    for number, entry in enumerate(lines_of(tmp_path / "out")):
        record = Record.model_validate(entry)
        assert [turn.speaker for turn in record.turns] == ["user", "main"] * (len(record.turns) // 2)
        assert record.turns[0].text.startswith("What about thing 0") and '"' not in record.turns[0].text
        assert f"bus number {number}" in record.turns[1].text and record.licence == "CC0-1.0"
        kind = load_templates(None).kinds[record.meta["kind"]]
        assert kind.turns[0] <= len(record.turns) // 2 <= kind.turns[1] and not kind.timed
    assert read_step(tmp_path / "out")["media_root"] == str(tmp_path)
    first = next(body for body in talker.asked if len(body["messages"]) == 4)
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant", "user"]
    assert all("$" not in body["messages"][0]["content"] for body in talker.asked)


def test_the_same_seed_writes_the_same_and_asks_once(data, talker, tmp_path):
    run(data, tmp_path / "a", talker.name, cache=tmp_path / "lines")
    count = len(talker.asked)
    run(data, tmp_path / "b", talker.name, cache=tmp_path / "lines")
    assert len(talker.asked) == count  # all lines were kept
    run(data, tmp_path / "c", talker.name)
    same = [(tmp_path / name / "manifest.jsonl").read_bytes() for name in "abc"]
    assert same[0] == same[1] == same[2]
    run(data, tmp_path / "d", talker.name, seed=1)
    assert (tmp_path / "d" / "manifest.jsonl").read_bytes() != same[0]


def test_rules_leave_out_and_the_report_says_why(data, talker, tmp_path, capsys):
    talker.say = {"number 1": "As an AI I see a caption.", "number 2": "yes", "number 3": "* a list\n* of things"}
    talker.say |= {"number 4": "he was naked"}
    tally = run(data, tmp_path / "out", talker.name, templates=load_templates(None, kinds=("mixed",)))
    assert tally.entries == 2 and tally.failed == 0
    assert dict(tally.dropped) == {"leak": 1, "said again": 1, "not speech": 1, "unsafe": 1}
    told = "\n".join(dropped_examples(tmp_path / "out"))
    assert "left out, leak: s/1: caption: As an AI I see a caption." in told and "left out, unsafe: s/4" in told
    assert read_step(tmp_path / "out")["counts"]["dropped"]["leak"] == 1


def test_a_silent_or_absent_writer(data, talker, tmp_path, monkeypatch):
    talker.say = {"You": ""}
    tally = run(data, tmp_path / "out", talker.name)
    assert tally.entries == 0 and tally.dropped["unfinished"] == 6
    monkeypatch.setattr("mmspeech.endpoint.time.sleep", lambda sec: None)
    with pytest.raises(ConfigError, match="no answer in 4 tries"):
        run(data, tmp_path / "gone", "http://127.0.0.1:9/v1#gone")
    with pytest.raises(ConfigError, match="expected transformers:NAME_OR_DIR or http"):
        run(data, tmp_path / "none", "gpt")


def test_clips_are_talked_about_as_they_happen(talker, tmp_path):
    events = tuple(TextRecord(text=f"event {n}", start_sec=2.0 * n, end_sec=2.0 * n + 1) for n in range(5))
    clip = Record(id="c", source="s", licence="x", captions=events)
    write_records(tmp_path / "in", [clip], root=tmp_path)
    run(tmp_path / "in", tmp_path / "out", talker.name, templates=_only_events())
    turns = Record.model_validate(lines_of(tmp_path / "out")[0]).turns
    starts = [turn.start_sec for turn in turns if turn.speaker == "user"]
    assert starts == sorted(starts) and len(starts) >= 2
    for asked, answer in zip(turns[::2], turns[1::2], strict=True):
        told = [int(number) for number in re.findall(r"event (\d)", answer.text)]
        assert told == [n for n in range(5) if 2.0 * n <= asked.start_sec]  # nothing that is still to come


def _only_events() -> Templates:
    whole = load_templates(None)
    kinds = {"events": whole.kinds["events"], "mixed": whole.kinds["mixed"].model_copy(update={"share": 1e-9})}
    return whole.model_copy(update={"kinds": kinds})


def test_records_of_which_nothing_is_known_fail_alone(talker, tmp_path):
    bare = Record(id="bare", source="s", licence="x")
    said = Record(id="said", source="s", licence="x", turns=(SaidRecord(speaker="main", text="a red bus"),))
    write_records(tmp_path / "in", [bare, said], root=tmp_path)
    (tmp_path / "in" / "manifest.jsonl").open("a").write('{"id": 3}\n{"torn')
    tally = run(tmp_path / "in", tmp_path / "out", talker.name)
    assert (tally.entries, tally.failed) == (1, 3)
    told = (tmp_path / "out" / "manifest.err").read_text()
    assert "nothing is known of what is seen" in told and "manifest.jsonl:3" in told and "not JSON" in told


@pytest.fixture(scope="module")
def small_writer(tmp_path_factory):
    """An untrained GPT-2 of two layers with a byte-level tokenizer, as a directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0]).save_pretrained(folder)
    config = GPT2Config(
        vocab_size=256, n_positions=4096, n_embd=32, n_layer=2, n_head=2, eos_token_id=0, bos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_transformers_model_writes_and_keeps_to_its_seed(small_writer):
    writer = TransformersWriter(str(small_writer), WriterSettings(max_tokens=12))
    chats = [
        [{"role": "system", "content": "Talk."}, {"role": "user", "content": text}] for text in ("hi", "hello you")
    ]
    once = writer.lines(chats, seeds=[1, 2])
    assert once == writer.lines(chats, seeds=[1, 2]) != writer.lines(chats, seeds=[1, 3]) and len(once) == 2
    greedy = TransformersWriter(str(small_writer), WriterSettings(max_tokens=6, temperature=0))
    alone = [greedy.lines([one], seeds=[0])[0] for one in chats]
    assert greedy.lines(chats, seeds=[0, 0]) == alone  # padding changes nothing
    with pytest.raises(ConfigError, match="cannot be loaded"):
        TransformersWriter("/no/such/model", WriterSettings())


def test_chat_templates_without_a_system_role(small_writer):
    writer = TransformersWriter(str(small_writer), WriterSettings(max_tokens=4))
    writer._tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    chat = [{"role": "system", "content": "Talk."}, {"role": "user", "content": "hi"}]
    assert writer._text(chat) == "<user>Talk.\n\nhi"


def said(*texts):
    return [SaidRecord(speaker="user" if n % 2 == 0 else "main", text=text) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        (("hello", "hi there"), None),
        (("hello",), "unfinished"),
        ((), "unfinished"),
        (("what is it", "..."), "too short"),
        (("what is it", "word " * 61), "too long"),
        (("what is it", "no no no no no no no no no"), "repeats itself"),
        (("what is it", "a bus", "what is it", "a bus"), "said again"),
        (("what is it", "the caption says a bus"), "leak"),
        (("what is it", "captions are fine"), None),
        (("what is it", "see https://x.y"), "not speech"),
        (("what is it", "one two three four five six seven"), "copied"),
        (("Was siehst du?", "Einen grünen Bus"), None),
    ],
)
def test_every_rule(texts, rule):
    facts = "here one two three four five six seven are"
    filters = load_templates(None).filters.model_copy(update={"max_copied_words": 6})
    if rule is None:
        check_dialogue(said(*texts), facts=facts, filters=filters)
        return
    with pytest.raises(DroppedError) as caught:
        check_dialogue(said(*texts), facts=facts, filters=filters)
    assert caught.value.rule == rule


def test_templates_are_files_of_the_user(tmp_path):
    text = DEFAULT.read_text()
    own = tmp_path / "own.yaml"
    for change, told in (
        (("$facts", "$fact"), "placeholder that is not known"),
        (("turns: [3, 6]", "turns: [6, 3]"), "the least first"),
        (("share: 3", "weight: 3"), "weight"),
        (("languages: {en: English}", "languages: {}"), "languages"),
    ):
        own.write_text(text.replace(*change))
        with pytest.raises(ConfigError, match=told):
            load_templates(own)
    with pytest.raises(ConfigError, match="no 'fr' in it"):
        load_templates(None, languages=("fr",))
    assert list(load_templates(None, kinds=("counts",)).kinds) == ["counts"]
    assert Filters().max_words == 60


def test_plans_follow_the_seed_alone():
    templates = load_templates(None)
    plans = [make_plan(records(1)[0], templates, seed) for seed in range(40)]
    again = make_plan(records(1)[0], templates, 7)
    assert (again.kind_name, again.persona, again.moments_sec) == (
        plans[7].kind_name, plans[7].persona, plans[7].moments_sec,
    )  # fmt: skip
    assert len({plan.kind_name for plan in plans}) >= 5 and len({plan.persona for plan in plans}) >= 4


def test_lines_are_cleaned():
    assert clean_line('  Assistant: "A red bus."\n\nUser: and?') == "A red bus."
    assert clean_line("It is 10:30 now") == "It is 10:30 now" and clean_line("\n\n") == ""


def test_the_verb(data, talker, tmp_path, capsys):
    talker.say = {"number 1": "yes"}
    arguments = [
        "dialogue",
        "--data",
        data,
        "--out",
        tmp_path / "o",
        "--writer",
        talker.name,
        "--kinds",
        "counts,mixed",
    ]
    assert main([str(one) for one in arguments]) == 0
    shown = capsys.readouterr().out
    assert "5 entries, 0 failed, left out: 1 said again" in shown and "left out, said again: s/1: yes" in shown
    assert main([str(one) for one in [*arguments[:-1], "none"]]) == 2
    assert "no 'none' in it" in capsys.readouterr().err
