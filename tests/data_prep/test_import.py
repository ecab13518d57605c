"""Public sets in their public form, with what is odd in real ones, become records; the rest is told with a reason."""

import hashlib
import json

import pytest
from public_sets import (
    AWAY,
    HUGE,
    KANJI,
    captions,
    imported,
    page,
    png,
    put,
    put_csv,
    put_parquet,
    put_tar,
    put_wav,
    said,
    spoken,
)

from data_prep.import_sets import import_set
from data_prep.importers import NAMES, find
from mmspeech.config import ConfigError


def test_there_is_an_importer_for_every_name():
    for name in NAMES:
        importer = find(name)
        assert importer.LICENCE and "Licence:" in importer.__doc__ and "Where:" in importer.__doc__
        assert all(callable(getattr(importer, part)) for part in ("rows", "key", "record"))
    with pytest.raises(ConfigError, match="no importer 'lava'; there are llava"):
        find("lava")


def talk(name: str, *turns: str, image="a.jpg", **more) -> dict:
    said = [{"from": who, "value": text} for who, text in zip(["human", "gpt"] * 3, turns, strict=False)]
    return {"id": name, "image": image, "conversations": said} | more


def test_llava(tmp_path):
    begins = {"id": "7", "image": "a.jpg", "conversations": [{"from": "gpt", "value": "hi"}]}
    system = {"from": "system", "value": "You are kind."}
    text_only = {"id": "text", "conversations": [system, *talk("", "Hi", "Hello")["conversations"]]}
    rows = [
        talk("1", "<image>\nWhat is it?", KANJI),
        talk("1", "<image>\nWhat is it?", KANJI),  # once more
        talk("1", "Where is it?\n<image>", "In a park."),  # the same picture and id, something else said
        text_only,
        talk("two", "<image>\n<image>\nCompare.", "They differ.", image=["a.jpg", "b/c.png"]),
        talk("gone", "What?", "That.", image="gone.jpg"),
        talk("away", "What?", "That.", image=AWAY),
        talk("empty", "What?", " \n"),
        talk("huge", "What?", HUGE),
        talk("wrong", "What?", 7),
        begins,
        "a string",
        {"id": "nothing"},
    ]
    put(tmp_path / "media" / "a.jpg"), put(tmp_path / "media" / "b" / "c.png")
    data = put(tmp_path / "mix.json", rows)
    records, others = imported("llava", data, tmp_path / "out", media=tmp_path / "media")
    first, again, alone, two = records.values()
    assert said(first) == [("user", "What is it?"), ("main", KANJI)] and first.licence == "CC-BY-4.0"
    assert said(again)[0] == ("user", "Where is it?")
    assert said(alone) == [("user", "Hi"), ("main", "Hello")] and not alone.visuals
    assert [visual.path for visual in two.visuals] == ["a.jpg", "b/c.png"]
    reasons = list(others.values())
    assert reasons[0] == "duplicate id" and f"gone.jpg: no such file in {tmp_path}/media" in reasons[1]
    assert "leads out of" in reasons[2] and reasons[3:5] == ["empty text", "too long"]
    assert "'value': got int '7', expected str" in reasons[5] and "begins with the model" in reasons[6]
    assert "a row with named fields, got a string" in others["row-11"] and "no 'conversations'" in reasons[8]
    errors = (tmp_path / "out" / "manifest.err").read_text()
    assert len(errors.splitlines()) == 6 and "gone.jpg" in errors


def test_coco(tmp_path):
    images = [{"id": 9, "file_name": "000000000009.jpg", "license": 4, "flickr_url": "http://f/9"}]
    images += [{"id": number, "file_name": f"{number:012d}.jpg", "license": 1} for number in (25, 30, 9, 31)]
    notes = [(25, "A giraffe."), (9, KANJI), (30, "  "), (9, "Second. "), (31, HUGE), (25, "Again.")]
    whole = {
        "info": {"year": 2017},
        "licenses": [{"id": 4, "name": "Attribution License", "url": "u"}, {"id": 1, "name": "NC", "url": "v"}],
        "images": images,
        "annotations": [{"id": i, "image_id": image, "caption": text} for i, (image, text) in enumerate(notes)],
    }
    put(tmp_path / "annotations" / "captions_val2017.json", whole)
    for number in (9, 30, 31):
        put(tmp_path / "val2017" / f"{number:012d}.jpg")
    records, others = imported("coco", tmp_path, tmp_path / "out", split="valid")
    assert list(records) == ["9"] and captions(records["9"]) == [KANJI, "Second."]
    assert records["9"].licence == "Attribution License" and records["9"].split == "valid"
    assert records["9"].visuals[0].path == "val2017/000000000009.jpg"
    assert "000000000025.jpg: no such file" in others["25"]
    assert (others["30"], others["9"], others["31"]) == ("empty text", "duplicate id", "too long")
    with pytest.raises(ConfigError, match="captions_train2017.json .* in this folder; found annotations"):
        import_set("coco", str(tmp_path), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    records, _ = imported("coco", tmp_path, tmp_path / "own", split="valid", licence="CC0")
    assert records["9"].licence == "CC0"


def test_vqav2(tmp_path):
    asked = [(1, 9, "What?"), (2, 9, " "), (3, 10, "Who?"), (4, 9, "Why?"), (1, 9, "What?"), (5, 9, "When?")]
    questions = [{"question_id": name, "image_id": image, "question": text} for name, image, text in asked]
    answers = {5: [], 3: ["you"], 1: ["no", "yes", "yes"], 2: ["x"]}
    notes = [
        {"question_id": name, "answer_type": "other", "answers": [{"answer": one, "answer_id": 1} for one in found]}
        for name, found in answers.items()  # not in the order of the questions
    ]
    put(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", {"info": {}, "questions": questions})
    put(tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": notes})
    put(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    records, others = imported("vqav2", tmp_path, tmp_path / "out")
    assert said(records["1"]) == [("user", "What?"), ("main", "yes")] and len(records) == 1
    assert records["1"].meta == {"answers": ["no", "yes", "yes"], "answer_type": "other", "image_id": 9}
    assert (others["2"], others["4"], others["1"], others["5"]) == (
        "empty text",
        "no answer",
        "duplicate id",
        "no answer",
    )
    assert "COCO_train2014_000000000010.jpg: no such file" in others["3"]


def test_ocrvqa(tmp_path):
    book = {"imageURL": "http://x/1.gif", "title": "T", "authorName": "", "genre": "Art", "split": 1}
    whole = {
        "0061": book | {"questions": ["Who?", "Which?", "", 3], "answers": [KANJI, "Art"]},
        "0062": book | {"questions": ["Who?"], "answers": ["Me"]},
        "0063": book | {"questions": ["Who?"], "answers": ["Me"], "split": 3},
        "0064": "broken",
    }
    put(tmp_path / "dataset.json", whole), put(tmp_path / "images" / "0061.gif")
    records, others = imported("ocrvqa", tmp_path, tmp_path / "out")
    assert list(records) == ["0061-0", "0061-1"] and said(records["0061-0"])[1] == ("main", KANJI)
    assert records["0061-1"].meta == {"title": "T", "genre": "Art"} and records["0061-1"].licence == "unknown"
    assert "no 'answer'" in others["0061-2"] and "'question': got int" in others["0061-3"]
    assert "images/0062.gif: no such file" in others["0062-0"] and "0064: expected an object" in others["row-5"]


def test_docci(tmp_path):
    parts = [("train_0", KANJI), ("train_0", "again"), ("train_1", ""), ("train_2", HUGE), ("train_3", "gone")]
    rows = [{"example_id": n, "split": "train", "image_file": f"{n}.jpg", "description": text} for n, text in parts]
    rows += [rows[0] | {"example_id": "dev", "split": "qual_dev"}, rows[0] | {"example_id": "up", "image_file": AWAY}]
    data = put(tmp_path / "docci_descriptions.jsonlines", [*rows, "{broken\n", rows[0] | {"example_id": 5}])
    for name in ("train_0", "train_1", "train_2"):
        put(tmp_path / "images" / f"{name}.jpg")
    records, others = imported("docci", data, tmp_path / "out")
    assert captions(records["train_0"]) == [KANJI] and len(records) == 1
    assert others["train_0"] == "duplicate id"
    assert (others["train_1"], others["train_2"]) == ("empty text", "too long")
    assert "images/train_3.jpg: no such file" in others["train_3"] and "leads out" in others["up"]
    assert "docci_descriptions.jsonlines:8: not JSON" in others["row-6"] and "'example_id': got int" in others["row-7"]
    records, _ = imported("docci", data, tmp_path / "valid", split="valid")
    assert list(records) == ["dev"] and records["dev"].split == "valid"


def test_pixmo_cap(tmp_path):
    def row(url, caption):
        return {"image_url": url, "caption": caption, "transcripts": ["uh a dog"]}

    urls = ["https://a.b/c%20d.png?w=1", "https://a.b/x", "https://a.b/gone.jpg", "https://a.b/" + "x" * 300]
    rows = [row(urls[0], KANJI), row(urls[0], "Another."), row(urls[1], "By hash."), row(urls[1], "By hash.")]
    rows += [row(urls[2], "Gone."), row(urls[0], ""), row(urls[0], HUGE), row(urls[3], "Odd."), row(None, "None.")]
    put_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    hashed = hashlib.sha256(urls[1].encode()).hexdigest()
    put(tmp_path / "media" / "c d.png"), put(tmp_path / "media" / f"{hashed}.webp")
    records, others = imported("pixmo-cap", tmp_path, tmp_path / "out")
    assert [captions(record)[0] for record in records.values()] == [KANJI, "Another.", "By hash."]
    assert [record.visuals[0].path for record in records.values()] == ["c d.png", "c d.png", f"{hashed}.webp"]
    assert next(iter(records.values())).meta == {"url": urls[0], "transcripts": ["uh a dog"]}
    reasons = list(others.values())
    assert reasons[0] == "duplicate id" and reasons[1].startswith("https://a.b/gone.jpg: not downloaded; expected ")
    assert reasons[2:4] == ["empty text", "too long"] and "not downloaded" in reasons[4]
    assert "no 'image_url'" in reasons[5]
    with pytest.raises(ConfigError, match="broken.parquet: not a parquet file"):
        import_set("pixmo-cap", str(put(tmp_path / "broken.parquet", b"PAR1")), tmp_path / "none")


def test_pixelprose(tmp_path):
    def row(uid, key, caption, url="http://a.b/1.jpg"):
        return {"uid": uid, "url": url, "key": key, "status": "success", "original_caption": "alt",
                "vlm_model": "gemini-pro-vision", "vlm_caption": caption, "aesthetic_score": 5.2}  # fmt: skip

    rows = [row("u1", "000007", KANJI), row("u1", "000007", "again"), row("u2", "000008", "gone", "http://a.b/2")]
    rows += [row("u3", "000007", ""), row("u4", "../7", "odd", "http://a.b/3")]
    data = put_parquet(tmp_path / "vlm_captions_cc12m_00.parquet", rows)
    put(tmp_path / "pictures" / "000007.jpg")
    records, others = imported("pixelprose", data, tmp_path / "out", media=tmp_path / "pictures")
    assert captions(records["u1"]) == [KANJI] and records["u1"].visuals[0].path == "000007.jpg"
    assert (others["u1"], others["u3"]) == ("duplicate id", "empty text")
    assert "000008.*" in others["u2"] and "http://a.b/3: not downloaded" in others["u4"]


def test_tallyqa(tmp_path):
    row = {"answer": 4, "data_source": "imported_genome", "image": "VG_100K_2/2.jpg", "image_id": 9, "issimple": False,
           "question": f"How many {KANJI}?", "question_id": 30}  # fmt: skip
    rows = [row, row, row | {"data_source": "amt"}, row | {"question_id": 31, "answer": "four"}]
    rows += [row | {"question_id": 32, "image": "gone.jpg"}, row | {"question_id": 33, "question": ""}, 7]
    put(tmp_path / "test.json", rows), put(tmp_path / "VG_100K_2" / "2.jpg")
    records, others = imported("tallyqa", tmp_path, tmp_path / "out", split="test")
    assert len(records) == 2  # ids of questions are those of the sets they come from
    assert said(records[next(iter(records))]) == [("user", f"How many {KANJI}?"), ("main", "4")]
    assert next(iter(records.values())).meta == {"answers": ["4"], "simple": False, "image_id": 9}
    reasons = list(others.values())
    assert reasons[0] == "duplicate id" and "'answer': got str" in reasons[1] and "gone.jpg" in reasons[2]
    assert reasons[3] == "empty text" and "named fields, got 7" in reasons[4]


def test_docvqa(tmp_path):
    rows = [page(1), page(1), page(2, answers=[]), page(3, image="documents/y.png"), page(4, question=None)]
    whole = {"dataset_name": "SP-DocVQA", "data": [*rows, page(5, answers=["", "b"]), page(6, answers="1990")]}
    put(tmp_path / "spdocvqa_qas" / "val_v1.0_withQT.json", whole), put(tmp_path / "spdocvqa_images" / "x_1.png")
    records, others = imported("docvqa", tmp_path, tmp_path / "out", split="valid")
    assert said(records["1"]) == [("user", "What year?"), ("main", KANJI)]
    assert records["1"].visuals[0].path == "spdocvqa_images/x_1.png"
    assert records["1"].meta["answers"] == [KANJI, "1990"]
    assert (others["1"], others["2"], others["5"]) == ("duplicate id", "no answer", "empty text")
    assert "documents/y.png: no such" in others["3"] and "no 'question'" in others["4"]
    assert "'answers': got str '1990', expected list" in others["6"]


def test_rendered_text(tmp_path):
    def lines(*texts) -> bytes:
        return json.dumps({"ocr_annotation": {"text": texts, "bb_relative": []}}).encode()

    first = {
        "0.json": lines(KANJI, " ", "two"),
        "0.png": png(1),
        "1.png": png(1),
        "1.json": lines("one"),
        "2.png": png(),
    }
    first |= {"3.png": png(), "3.json": lines(" "), "4.json": b"{", "4.png": png(), "5.json": lines("x"), "6.txt": b""}
    put_tar(tmp_path / "000000.tar", first)
    put_tar(tmp_path / "remaining" / "000001.tar", {"0.png": png(2), "0.json": lines("again")})
    records, others = imported("rendered-text", tmp_path, tmp_path / "out")
    assert [captions(record) for record in records.values()] == [[f"{KANJI}\ntwo"], ["one"], ["again"]]
    assert list(records) == ["000000-0", "000000-1", "000001-0"]
    assert len(list((tmp_path / "out" / "media").rglob("*.png"))) == 2  # the same picture is there once
    assert others["000000-2"] == "no 'json' in an object with __key__, __url__, png"
    assert others["000000-3"] == "empty text" and "JSONDecodeError" in others["000000-4"]
    assert "no 'png'" in others["000000-5"]
    with pytest.raises(ConfigError, match="not a whole tar file"):
        import_set("rendered-text", str(put(tmp_path / "bad.tar", b"no tar" * 200)), tmp_path / "none")


def test_webvid(tmp_path):
    def row(name, text, place="0001_0050"):
        return {
            "videoid": name,
            "contentUrl": "http://x/1.mp4",
            "duration": "PT00H00M30S",
            "page_dir": place,
            "name": text,
        }

    rows = [row("1", f'A "{KANJI}", with\nlines'), row("1", "again"), row("2", "gone"), row("3", ""), row("4", HUGE)]
    rows += [row("5", "away", "../.."), row("6", "y" * 200_000), row("7", "Last.", "0001_0050")]
    file = put_csv(tmp_path / "results_2M_val.csv", rows)
    file.write_bytes(file.read_bytes() + b"8\r\n9,u,d,0001_0050,caf\xe9\r\n")
    for name in "134679":
        put(tmp_path / "videos" / "0001_0050" / f"{name}.mp4", b"mp4")
    records, others = imported("webvid", tmp_path, tmp_path / "out", split="valid")
    assert list(records) == ["1", "7"] and captions(records["1"]) == [f'A "{KANJI}", with\nlines']
    assert records["1"].visuals[0].kind == "clip" and records["1"].visuals[0].path == "videos/0001_0050/1.mp4"
    assert (others["1"], others["3"], others["4"]) == ("duplicate id", "empty text", "too long")
    assert "videos/0001_0050/2.mp4: no such file" in others["2"] and "leads out" in others["5"]
    assert "field larger than field limit" in others["row-6"] and "no 'name'" in others["8"]
    assert "9" in others  # bytes that are no text


def test_livecc(tmp_path):
    words = [[9, 9.9, "before"], [10.5, 10.8, "Look,"], [10.8, 11.2, "süß."], [11.2, 11.4, "and"], [13.0, 13.5, "now"],
             [13.5, 20.4, "this"], [20.1, 20.5, "after"]]  # fmt: skip
    lines = [spoken(words), spoken(words), spoken(words, begin=11.0), spoken(words, "video/youtube/gone.mp4")]
    lines += [spoken([[9.0, 9.9, "before"]]), spoken(words, end=3.0), spoken([[1, "x"]]), {"a": 1}, lines[0][:1]]
    data = put(tmp_path / "live_cc_5m_with_seeks.jsonl", [*lines, list(range(9))])
    put(tmp_path / "video" / "youtube" / "a.mp4", b"mp4")
    records, others = imported("livecc", data, tmp_path / "out")
    first, later = records.values()
    got = [(caption.text, caption.start_sec, caption.end_sec) for caption in first.captions]
    assert got == [("Look, süß.", 0.5, 1.2), ("and", 1.2, 1.4), ("now this", 3.0, 10.0)]
    assert first.meta == {"title": KANJI, "previous": "before", "video_start": 10.0, "video_end": 20.0}
    assert captions(later) == ["and", "now this"] and later.captions[0].start_sec == 0.2
    reasons = list(others.values())
    assert reasons[0] == "duplicate id" and "gone.mp4: no such file" in reasons[1] and reasons[2] == "empty text"
    assert "video_end 3.0; expected seconds" in reasons[3] and "[start, end, word], got [1, 'x']" in reasons[4]
    assert "list of two messages" in reasons[5] and "1 messages" in reasons[6] and len(reasons) == 7


def test_moshi_finetune(tmp_path):
    words = [["hello", [0.5, 0.9], "SPEAKER_USER"], [KANJI, [0.1, 0.4], "SPEAKER_MAIN"], [" ", [1, 2], "SPEAKER_MAIN"]]
    for name, spelt in (("a", words), ("mono", words), ("odd", [["x", [1], "SPEAKER_MAIN"]]), ("alone", None)):
        put_wav(tmp_path / "data" / f"{name}.wav", 1 if name == "mono" else 2)
        if spelt is not None:
            put(tmp_path / "data" / f"{name}.json", {"alignments": spelt, "topic": "t"})
    put(tmp_path / "data" / "noise.wav", b"RIFF"), put(tmp_path / "data" / "noise.json", {"alignments": []})
    names = ["data/a.wav", "data/a.wav", "data/mono.wav", "data/odd.wav", "data/alone.wav", "data/noise.wav", AWAY]
    put(tmp_path / "calls.jsonl", [{"path": name, "duration": 0.1} for name in names])
    records, others = imported("moshi-finetune", tmp_path, tmp_path / "out")
    (call,) = records.values()
    assert call.audio == "data/a.wav" and call.meta == {"topic": "t", "duration": 0.1}
    assert [(word.text, word.speaker, word.start_sec) for word in call.words] == [
        (KANJI, "main", 0.1), ("hello", "user", 0.5),
    ]  # fmt: skip
    reasons = list(others.values())
    assert reasons[0] == "duplicate id" and "1 channel(s); expected stereo" in reasons[1]
    assert "expected [word, [start, end], speaker]" in reasons[2] and "data/alone.json: no such file" in reasons[3]
    assert "LibsndfileError" in reasons[4] and "leads out" in reasons[5]


def test_dailytalk(tmp_path):
    def turn(speaker, text):
        return {"text": text, "speaker": speaker, "emotion": "happiness", "act": "inform", "topic": "work"}

    whole = {"0": {"1": turn(1, KANJI), "0": turn(0, "Hi."), "10": turn(0, "Bye.")}, "1": {"0": turn(0, " ")}}
    whole |= {"2": {"0": turn(0, "Hi.")}, "3": {"0": turn(2, "Hi.")}, "4": {}, "5": [], "6": {"a": turn(0, "Hi.")}}
    put(tmp_path / "metadata.json", whole)
    for dialogue, name in (("0", "0_0"), ("0", "1_1"), ("0", "10_0"), ("1", "0_0")):
        put_wav(tmp_path / "data" / dialogue / f"{name}_d{dialogue}.wav", 1)
    records, others = imported("dailytalk", tmp_path, tmp_path / "out")
    assert said(records["0"]) == [("user", "Hi."), ("main", KANJI), ("user", "Bye.")] and len(records) == 1
    assert records["0"].turns[2].audio == "data/0/10_0_d0.wav" and records["0"].licence == "CC-BY-SA-4.0"
    assert records["0"].meta == {"topic": "work", "emotions": ["happiness"] * 3}
    assert (others["1"], others["4"]) == ("empty text", "empty text")
    assert "data/2/0_0_d2.wav: no such file" in others["2"] and "speaker '2'; expected 0 or 1" in others["3"]
    assert "'turns': got list" in others["5"] and "6" in others
