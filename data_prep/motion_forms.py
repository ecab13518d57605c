"""How questions about clips are asked.

"|" marks where a speaker may pause: never where the question could already be over.
"""

WHICH_WAY_NOW = (
    "which way is | {name} moving",
    "which way is | {name} going",
    "which way does | {name} move",
    "tell me | which way {name} is moving",
    "can you tell me | which way {name} is moving",
    "do you know | which way {name} is going",
    "please tell me | which way {name} is moving",
    "i want to know | which way {name} is moving",
)
WHICH_WAY = (
    "which way did | {name} move",
    "which way did | {name} go",
    "tell me | which way {name} moved",
    "can you tell me | which way {name} moved",
    "do you know | which way {name} moved",
    "please tell me | which way {name} did move",
    "i want to know | which way {name} moved",
    "can you tell me | which way {name} did go",
)
IS_MOVING = (
    "is {name} | moving",
    "is {name} | moving now",
    "tell me | is {name} moving",
    "tell me | if {name} is moving",
    "can you tell me | if {name} is moving",
    "do you know | if {name} is moving now",
    "can you see | if {name} is moving",
    "do you see | if {name} is moving",
)
DID_MOVE = (
    "did {name} | move",
    "tell me | did {name} move",
    "tell me | if {name} did move",
    "can you tell me | if {name} moved",
    "do you know | if {name} moved",
    "did you see | if {name} moved",
    "i want to know | if {name} moved",
    "please tell me | if {name} moved",
)
WHAT_MOVED = (
    "which object | moved",
    "what thing | moved",
    "which shape | moved",
    "which one | moved",
    "tell me | which object moved",
    "can you tell me | which one moved",
    "do you know | which object did move",
    "did you see | which object moved",
)
APPEARED = (
    "what | just appeared",
    "what thing | just appeared",
    "which object | just appeared",
    "tell me | what just appeared",
    "can you tell me | what just appeared",
    "do you know | what appeared",
    "did you see | what just appeared",
    "please tell me | what appeared",
)
VANISHED = (
    "what | just vanished",
    "what thing | just vanished",
    "which object | just vanished",
    "tell me | what just vanished",
    "can you tell me | what just vanished",
    "do you know | what vanished",
    "did you see | what just vanished",
    "please tell me | what vanished",
)
COLOUR_BEFORE = (
    "what colour was | {name} before",
    "which colour was | {name} before",
    "what was the colour of | {name} before",
    "tell me | what colour {name} was before",
    "can you tell me | which colour {name} was before",
    "do you know | what colour {name} was before",
    "what colour was | {name} at first",
    "what colour did {name} | have before",
)
HOW_OFTEN = (
    "how many times | did {name} blink",
    "how many times | do you see {name} blink",
    "how many times | does {name} blink",
    "tell me | how many times {name} did blink",
    "can you tell me | how many times {name} blinked",
    "do you know | how many times {name} blinked",
    "count how many times | {name} did blink",
    "i want to know | how many times {name} blinked",
)
WHERE_FIRST = (
    "where was | {name} at first",
    "where was | {name} before",
    "where did you see | {name} at first",
    "where did you see | {name} before",
    "tell me | where {name} was at first",
    "can you tell me | where {name} was before",
    "do you know | where {name} was at first",
    "in which place was | {name} at first",
)
GREW = (
    "did {name} | grow or shrink",
    "does {name} | grow or shrink",
    "tell me | did {name} grow or shrink",
    "tell me | if {name} did grow or shrink",
    "can you tell me | did {name} grow or shrink",
    "do you know | did {name} grow or shrink",
    "did you see | {name} grow or shrink",
    "please tell me | did {name} grow or shrink",
)
HAPPENED = (
    "what | just happened",
    "tell me | what just happened",
    "can you tell me | what just happened",
    "please tell me | what just happened",
    "do you know | what just happened",
    "did you see | what just happened",
    "and what | just happened",
    "i want to know | what just happened",
)
NOW_BEFORE = ("now |", "and now |", "okay and now |", "right now |")
NOW_AFTER = ("now", "right now")
COMMENTARY = (
    "tell me | what happens",
    "please tell me | what happens",
    "can you tell me | what happens",
    "say | what happens",
    "please say | what happens",
    "look here and | tell me what happens",
    "look at this and | say what happens",
    "i want to know | what happens",
)

ALL = (
    WHICH_WAY_NOW, WHICH_WAY, IS_MOVING, DID_MOVE, WHAT_MOVED, APPEARED, VANISHED, COLOUR_BEFORE, HOW_OFTEN,
    WHERE_FIRST, GREW, HAPPENED, NOW_BEFORE, NOW_AFTER, COMMENTARY,
)  # fmt: skip
