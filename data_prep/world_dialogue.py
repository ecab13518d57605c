"""Dialogues about a scene, with the true answers: what the user asks, what the model says, what counts as right.

An answer says again what was asked before it tells what is seen: a small model then has to remember its own last words,
not which of many sounds a second ago mattered.

In a question, "|" marks where a speaker may pause: never where the question could already be over.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from data_prep.world import COLOURS, SHAPES, SIZES, Scene, SceneObject

NUMBERS = ("zero", "one", "two", "three", "four")
REFUSAL = "i can not see a picture"
SIDES = ("left", "right", "top", "bottom")
# Names of the nine places, none the beginning of another, so that a cut answer is not taken for a right one.
PLACE_NAMES = (
    ("at the top left", "at the top middle", "at the top right"),
    ("on the left side", "in the center", "on the right side"),
    ("at the bottom left", "at the bottom middle", "at the bottom right"),
)


@dataclass(frozen=True)
class Turn:
    """One exchange. `answers`: any of these word sequences in a reply makes it right."""

    kind: str
    question: str
    answer: str
    answers: tuple[str, ...]

    def record(self) -> dict:
        return asdict(self)


COLOUR_OF_SHAPE = (
    "what colour is the | {shape}",
    "which colour is the | {shape}",
    "what is the colour of the | {shape}",
    "tell me the colour of the | {shape}",
    "can you tell me | what colour the {shape} is",
    "what colour does the | {shape} have",
    "i want to know | the colour of the {shape}",
    "do you know | what colour the {shape} is",
    "please tell me | what colour the {shape} is",
    "and the {shape} | what colour is it",
)
SHAPE_OF_COLOUR = (
    "what shape is the | {colour} one",
    "what is the | {colour} thing",
    "which shape is | {colour}",
    "what shape is | {colour}",
    "tell me the shape of the | {colour} object",
    "what is the shape of the | {colour} one",
    "what kind of shape is the | {colour} one",
    "can you tell me | what shape the {colour} one is",
    "do you know | what the {colour} thing is",
)
WHAT_AT = (
    "what is {on} the | {side}",
    "what do you see {on} the | {side}",
    "what can you see {on} the | {side}",
    "which object is {on} the | {side}",
    "tell me | what is {on} the {side}",
    "can you tell me | what is {on} the {side}",
    "what thing is {on} the | {side}",
    "do you know | what is {on} the {side}",
)
WHERE_IS = (
    "where is the | {name}",
    "where do you see the | {name}",
    "where can you see the | {name}",
    "tell me | where the {name} is",
    "can you tell me | where the {name} is",
    "can you find the | {name}",
    "do you know | where the {name} is",
    "in which place is the | {name}",
)
COUNT_ALL = (
    "how many objects | are there",
    "how many things | do you see",
    "how many shapes | are in the picture",
    "how many shapes | can you see",
    "count all the | objects",
    "please count the | shapes",
    "tell me | how many objects there are",
    "how many things | are in the picture",
)
COUNT_COLOUR = (
    "how many | {colour} things are there",
    "how many | {colour} objects do you see",
    "count the | {colour} ones",
    "how many | {colour} shapes are in the picture",
    "how many things | are {colour}",
    "can you count the | {colour} things",
    "tell me | how many {colour} ones there are",
    "how many | {colour} ones can you see",
)
COUNT_SHAPE = (
    "how many | {shapes} are there",
    "how many | {shapes} do you see",
    "count the | {shapes}",
    "how many | {shapes} are in the picture",
    "can you count the | {shapes}",
    "tell me | how many {shapes} there are",
    "how many | {shapes} can you see",
    "please count all the | {shapes}",
)
EXISTS = (
    "is there a | {name}",
    "do you see a | {name}",
    "can you see a | {name}",
    "is a {name} | in the picture",
    "does the picture have a | {name}",
    "tell me | is there a {name}",
    "is there a | {name} in the picture",
    "do you know | is there a {name}",
)
SIZE_OF = (
    "is the {name} | small or large",
    "how big is the | {name}",
    "what size is the | {name}",
    "tell me the size of the | {name}",
    "can you tell me | how big the {name} is",
    "what is the size of the | {name}",
    "do you know | how big the {name} is",
    "tell me | if the {name} is small or large",
)
DESCRIBE = (
    "what do you | see",
    "describe the | picture",
    "what is | in the picture",
    "tell me about the | picture",
    "what does the | picture show",
    "please describe | the picture",
    "what can you | see",
    "can you describe | the picture",
)
SMALL_TALK = {
    "hello": (("hello", "hi", "hi there", "hello there", "good morning", "hey", "hello model", "hey there"),
              "hello nice to meet you"),
    "how_are_you": (("how are you", "how are you doing", "how do you feel", "are you well", "are you doing well",
                     "hi how are you", "how do you feel now", "how is it going"), "i am fine thank you"),
    "who": (("who are you", "what are you", "what is your name", "tell me your name", "can you tell me who you are",
             "do you have a name", "tell me | who you are", "who am i talking to"), "i am a small model that can see"),
    "can_do": (("what can you do", "how can you help me", "what do you do", "can you help me",
                "tell me what you can do", "what are you good at", "how do you help", "what can you do for me"),
               "i can tell you what is in a picture"),
    "thanks": (("thank you", "thanks", "thanks a lot", "thank you very much", "great thank you", "okay thanks",
                "thank you for the help", "thanks for your help"), "you are welcome"),
    "bye": (("goodbye", "bye", "bye bye", "see you later", "see you soon", "i have to go", "goodbye for now",
             "okay goodbye"), "goodbye see you soon"),
}  # fmt: skip
REPEAT = ("repeat after me | {phrase}", "say | {phrase}", "please say | {phrase}", "can you say | {phrase}",
          "repeat | {phrase}", "please repeat | {phrase}", "now say | {phrase}", "say after me | {phrase}")  # fmt: skip
LATE = ("here is a picture |", "look at this picture |", "i have a picture for you |", "this is my picture |",
        "now look here |", "i will show you a picture |")  # fmt: skip


def pick(rng: np.random.Generator, items: Sequence):
    """One of the items."""
    return items[int(rng.integers(len(items)))]


def articles(text: str) -> str:
    """ "a orange" becomes "an orange", also across a pause mark."""
    return re.sub(r"\ba (\| )?orange", r"an \1orange", text)


def form_turn(rng, kind: str, forms: tuple[str, ...], answer: str, answers: tuple[str, ...], **words: str) -> Turn:
    question = pick(rng, forms).format(**words)
    return Turn(kind, articles(question), articles(answer), tuple(map(articles, answers)))


def _unique(scene: Scene, field: str) -> list[SceneObject]:
    counts = Counter(getattr(item, field) for item in scene.objects)
    return [item for item in scene.objects if counts[getattr(item, field)] == 1]


def _colour_of_shape(scene: Scene, rng) -> Turn | None:
    if not (items := _unique(scene, "shape")):
        return None
    item = pick(rng, items)
    answer = f"the colour of the {item.shape} is {item.colour}"
    return form_turn(rng, "colour_of_shape", COLOUR_OF_SHAPE, answer, (item.colour,), shape=item.shape)


def _shape_of_colour(scene: Scene, rng) -> Turn | None:
    if not (items := _unique(scene, "colour")):
        return None
    item = pick(rng, items)
    answer = f"the {item.colour} one is a {item.shape}"
    return form_turn(rng, "shape_of_colour", SHAPE_OF_COLOUR, answer, (item.shape,), colour=item.colour)


def _at_side(item: SceneObject, side: str) -> bool:
    return {"left": item.column == 0, "right": item.column == 2, "top": item.row == 0, "bottom": item.row == 2}[side]


def _what_at(scene: Scene, rng) -> Turn | None:
    found = {side: [item for item in scene.objects if _at_side(item, side)] for side in SIDES}
    sides = [side for side in SIDES if len(found[side]) == 1]
    if not sides:
        return None
    side = pick(rng, sides)
    on, name = "on" if side in ("left", "right") else "at", found[side][0].name
    return form_turn(rng, "what_at", WHAT_AT, f"{on} the {side} is a {name}", (name,), on=on, side=side)


def _named(scene: Scene, rng) -> tuple[SceneObject, str] | None:
    """An object that can be named without doubt, by its shape or by colour and shape."""
    named = [(item, item.shape) for item in _unique(scene, "shape")]
    named += [(item, item.name) for item in _unique(scene, "name")]
    return pick(rng, named) if named else None


def _where_is(scene: Scene, rng) -> Turn | None:
    if (named := _named(scene, rng)) is None:
        return None
    item, name = named
    place = PLACE_NAMES[item.row][item.column]
    return form_turn(rng, "where_is", WHERE_IS, f"the {name} is {place}", (place,), name=name)


def _size_of(scene: Scene, rng) -> Turn | None:
    if (named := _named(scene, rng)) is None:
        return None
    item, name = named
    return form_turn(rng, "size_of", SIZE_OF, f"the size of the {name} is {item.size}", (f"is {item.size}",), name=name)


def _count_all(scene: Scene, rng) -> Turn:
    number = NUMBERS[len(scene.objects)]
    return form_turn(rng, "count_all", COUNT_ALL, f"the count of objects is {number}", (number,))


def _count_value(scene: Scene, rng, field: str, values: tuple[str, ...]) -> tuple[str, int]:
    present = sorted({getattr(item, field) for item in scene.objects})
    value = pick(rng, values) if rng.random() < 0.2 else pick(rng, present)
    return value, sum(getattr(item, field) == value for item in scene.objects)


def _count_colour(scene: Scene, rng) -> Turn:
    colour, count = _count_value(scene, rng, "colour", COLOURS)
    answer = f"the count of {colour} objects is {NUMBERS[count]}"
    return form_turn(rng, "count_colour", COUNT_COLOUR, answer, (NUMBERS[count],), colour=colour)


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _count_shape(scene: Scene, rng) -> Turn:
    shape, count = _count_value(scene, rng, "shape", SHAPES)
    answer = f"the count of {plural(shape)} is {NUMBERS[count]}"
    return form_turn(rng, "count_shape", COUNT_SHAPE, answer, (NUMBERS[count],), shapes=plural(shape))


def _exists(scene: Scene, rng) -> Turn:
    names = {item.name for item in scene.objects} | {item.shape for item in scene.objects}
    if rng.random() < 0.5:
        name = pick(rng, sorted(names))
        return form_turn(rng, "exists", EXISTS, f"a {name} yes there is", ("yes",), name=name)
    # A false name shares its shape or colour with something there as often as not.
    while True:
        item = pick(rng, scene.objects)
        colour, shape = pick(rng, COLOURS), pick(rng, SHAPES)
        name = pick(rng, (f"{item.colour} {shape}", f"{colour} {item.shape}", f"{colour} {shape}", shape))
        if name not in names:
            return form_turn(rng, "exists", EXISTS, f"a {name} no there is not", ("no",), name=name)


def _describe(scene: Scene, rng) -> Turn:
    items = sorted(scene.objects, key=lambda item: (item.column, item.row, item.x))
    names = [f"a {item.name}" for item in items]
    listed = " ".join(names[:-1] + ["and"] + names[-1:]) if len(names) > 1 else names[0]
    return form_turn(rng, "describe", DESCRIBE, f"i see {listed}", (listed,))


Kinds = tuple[tuple[Callable[[Scene, np.random.Generator], Turn | None], float], ...]
VISUAL_KINDS: Kinds = (
    (_colour_of_shape, 1.2), (_shape_of_colour, 1.2), (_what_at, 1.2), (_where_is, 1.2), (_size_of, 0.6),
    (_count_all, 0.6), (_count_colour, 0.8), (_count_shape, 0.9), (_exists, 1.3), (_describe, 0.8),
)  # fmt: skip
# For training: what is asked in words much like another question's, or answered at length, takes more learning.
LEARNT_KINDS: Kinds = tuple(
    (make, weight * {_size_of: 2.5, _where_is: 1.2, _describe: 1.6}.get(make, 1.0)) for make, weight in VISUAL_KINDS
)


def visual_turn(scene: Scene, rng: np.random.Generator, *, kinds: Kinds = VISUAL_KINDS) -> Turn:
    """A question about `scene` that has one right answer."""
    weights = np.array([weight for _, weight in kinds])
    while True:
        make = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))][0]
        if (turn := make(scene, rng)) is not None:
            break
    if rng.random() < 0.08:
        turn = replace(turn, question=f"{pick(rng, LATE)} {turn.question}")
    return turn


def refused_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A question about a picture that is not there."""
    turn = visual_turn(scene, rng)
    return replace(turn, answer=REFUSAL, answers=("not see",))


def small_talk_turn(rng: np.random.Generator) -> Turn:
    kind = pick(rng, sorted(SMALL_TALK))
    forms, answer = SMALL_TALK[kind]
    return Turn(kind, pick(rng, forms), answer, (answer,))


def repeat_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """The model is asked to say something; `scene` only lends its words."""
    said = visual_turn(scene, rng)
    words = said.answer.split()
    if rng.random() < 0.5:
        start = int(rng.integers(max(1, len(words) - 2)))
        words = words[start : start + int(rng.integers(2, 6))]
    phrase = " ".join(words)
    return form_turn(rng, "repeat", REPEAT, phrase, (phrase,), phrase=phrase)


def shown_turn(scene: Scene, rng: np.random.Generator, *, kinds: Kinds = VISUAL_KINDS) -> Turn:
    """A turn of a call with a picture: mostly about it, small talk now and then."""
    return small_talk_turn(rng) if rng.random() < 0.12 else visual_turn(scene, rng, kinds=kinds)


def blind_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """A turn of a call without a picture; `scene` only lends the words of what is asked or repeated."""
    makers = (lambda: small_talk_turn(rng), lambda: repeat_turn(scene, rng), lambda: refused_turn(scene, rng))
    return makers[int(rng.choice(3, p=(0.35, 0.35, 0.3)))]()


def visual_dialogue(scene: Scene, rng: np.random.Generator, *, num_turns: int) -> list[Turn]:
    """Turns of a call with a picture, no question twice."""
    turns: list[Turn] = []
    while len(turns) < num_turns:
        turn = shown_turn(scene, rng)
        if all(turn.question != other.question for other in turns):
            turns.append(turn)
    return turns


def blind_dialogue(scene: Scene, rng: np.random.Generator, *, num_turns: int) -> list[Turn]:
    """Turns of a call without a picture."""
    return [blind_turn(scene, rng) for _ in range(num_turns)]


def model_sentences(rng: np.random.Generator, scenes: list[Scene], *, per_scene: int) -> list[str]:
    """Sentences the model may say, sorted: for a tokenizer and for a recogniser's grammar."""
    sentences = {answer for _, answer in SMALL_TALK.values()} | {REFUSAL}
    for scene in scenes:
        sentences |= {visual_turn(scene, rng).answer for _ in range(per_scene)}
    return sorted(sentences)


def user_sentences(rng: np.random.Generator, scenes: list[Scene], *, per_scene: int) -> list[str]:
    """Sentences a user may say, sorted."""
    makers = (lambda scene: visual_turn(scene, rng), lambda scene: repeat_turn(scene, rng))
    sentences = {form for forms, _ in SMALL_TALK.values() for form in forms}
    for scene in scenes:
        sentences |= {make(scene).question for _ in range(per_scene) for make in makers}
    return sorted(" ".join(sentence.replace("|", " ").split()) for sentence in sentences)


def vocabulary() -> list[str]:
    """Every word that may be said in this world, by either side, sorted."""
    lists = (COLOUR_OF_SHAPE, SHAPE_OF_COLOUR, WHAT_AT, WHERE_IS, COUNT_ALL, COUNT_COLOUR, COUNT_SHAPE, EXISTS, SIZE_OF)
    texts = [text for forms in (*lists, DESCRIBE, REPEAT, LATE, *PLACE_NAMES) for text in forms]
    texts += [text for forms, answer in SMALL_TALK.values() for text in (*forms, answer)]
    texts += [
        *COLOURS,
        *SHAPES,
        *map(plural, SHAPES),
        *SIZES,
        *SIDES,
        *NUMBERS,
        REFUSAL,
        "on at an yes no there and count",
    ]
    texts += ["object objects one a i see is the"]
    return sorted({word for text in texts for word in re.sub(r"\{\w+\}|\|", " ", text).split()})
