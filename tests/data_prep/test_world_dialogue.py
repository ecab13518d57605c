"""Every question has one right answer: worked out again here from coordinates, by other code than the generator's."""

import re
from collections import Counter

import numpy as np
import pytest

from data_prep.world import COLOURS, SHAPES, Scene, random_scene
from data_prep.world_dialogue import (
    REFUSAL,
    Turn,
    blind_dialogue,
    plural,
    refused_turn,
    repeat_turn,
    small_talk_turn,
    visual_dialogue,
    visual_turn,
    vocabulary,
)

NUMBERS = ("zero", "one", "two", "three", "four")
SIDES = {"left": ("x", 0), "right": ("x", 2), "top": ("y", 0), "bottom": ("y", 2)}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


def drawn(count: int, seed: int = 0) -> list[tuple[Scene, Turn]]:
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, split="train") for _ in range(count)]
    return [(scene, visual_turn(scene, rng)) for scene in scenes]


def third(value: float) -> int:
    return 0 if value < 1 / 3 else 1 if value < 2 / 3 else 2


def spoken_place(x: float, y: float) -> str:
    row, column = ROWS[third(y)], COLUMNS[third(x)]
    if row == "middle":
        return "in the center" if column == "middle" else f"on the {column} side"
    return f"at the {row} {column}"


def asked_about(scene: Scene, question: str) -> list:
    """Objects that fit the colours and shapes the question names."""
    words = set(question.split())
    shapes = {shape for shape in SHAPES if shape in words or plural(shape) in words}
    colours = words & set(COLOURS)
    return [o for o in scene.objects if (not shapes or o.shape in shapes) and (not colours or o.colour in colours)]


def right_answer(scene: Scene, turn: Turn) -> str:
    """The words a right reply must hold. Fails where the question has none or several answers."""
    found = asked_about(scene, turn.question)
    if turn.kind.startswith("count"):
        return NUMBERS[len(found)]
    if turn.kind == "exists":
        return "yes" if found else "no"
    if turn.kind == "what_at":
        side = next(word for word in turn.question.split() if word in SIDES)
        axis, index = SIDES[side]
        found = [o for o in scene.objects if third(getattr(o, axis)) == index]
    assert len(found) == 1, f"{turn.question}: {len(found)} objects fit"
    one = found[0]
    return {
        "colour_of_shape": one.colour,
        "shape_of_colour": one.shape,
        "what_at": f"{one.colour} {one.shape}",
        "where_is": spoken_place(one.x, one.y),
        "size_of": f"is {one.size}",
    }[turn.kind]


def holds(reply: str, accepted: str) -> bool:
    return f" {accepted} " in f" {reply} "


def test_answers_are_true_and_the_only_ones():
    pairs = drawn(1500)
    for scene, turn in pairs:
        if turn.kind != "describe":
            assert turn.answers == (right_answer(scene, turn),), (turn, scene)
    assert min(Counter(turn.kind for _, turn in pairs).values()) > 30


def test_a_description_names_everything_from_left_to_right():
    described = [(scene, turn) for scene, turn in drawn(800, seed=1) if turn.kind == "describe"]
    assert described
    for scene, turn in described:
        names = re.findall(rf"\ban? ((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))\b", turn.answer)
        assert turn.answer.startswith("i see a") and len(names) == len(scene.objects)
        assert Counter(names) == Counter(o.name for o in scene.objects)
        columns = {o.name: third(o.x) for o in scene.objects}
        listed = [columns[name] for name in names]
        assert len(columns) < len(names) or listed == sorted(listed)  # two of the same name cannot be told apart


def test_yes_and_no_are_even():
    answers = Counter(turn.answers[0] for _, turn in drawn(2000, seed=2) if turn.kind == "exists")
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_a_reply_that_refuses_answers_nothing():
    for _, turn in drawn(500, seed=3):
        assert not any(holds(REFUSAL, accepted) for accepted in turn.answers)
        assert any(holds(turn.answer, accepted) for accepted in turn.answers)


def test_a_pause_never_ends_a_question():
    rng = np.random.default_rng(4)
    for scene, turn in drawn(500, seed=4):
        for one in (turn, repeat_turn(scene, rng), small_talk_turn(rng)):
            assert not one.question.strip().startswith("|") and not one.question.strip().endswith("|")


@pytest.mark.parametrize("make", [visual_dialogue, blind_dialogue])
def test_all_words_are_in_the_vocabulary(make):
    known, rng = set(vocabulary()), np.random.default_rng(5)
    assert len(known) < 160 and all(word.isalpha() and word.islower() for word in known)
    for _ in range(150):
        for turn in make(random_scene(rng, split="train"), rng, num_turns=5):
            assert set(turn.question.replace("|", " ").split()) | set(turn.answer.split()) <= known


def test_a_call_without_a_picture_tells_nothing_of_one():
    rng = np.random.default_rng(6)
    for _ in range(100):
        scene = random_scene(rng, split="train")
        assert refused_turn(scene, rng).answer == REFUSAL
        for turn in blind_dialogue(scene, rng, num_turns=5):
            heard = turn.question.replace("|", " ")
            assert turn.kind != "repeat" or " ".join(heard.split()).endswith(turn.answer)


def test_dialogues_are_drawn_from_the_seed():
    def make(seed):
        rng = np.random.default_rng(seed)
        return visual_dialogue(random_scene(rng, split="train"), rng, num_turns=5)

    assert make(7) == make(7) != make(8)
