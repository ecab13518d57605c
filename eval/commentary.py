"""Scoring of commentary: which events were told, in the right words, and how soon."""

from collections.abc import Sequence
from typing import Any

from eval.manifest import Event
from eval.scoring import mean, normalise, percentile
from mmspeech.serve.session import SpokenWord

WITHIN_SEC = 1.5
LISTEN_SEC = 3.5  # after the last event
_ARTICLES = ("the", "a", "an")


def told(words: Sequence[SpokenWord], events: Sequence[Event]) -> list[dict[str, Any]]:
    """For each event when the model began to tell it, in seconds after it; None: never.

    The sentence must hold an accepted answer, begin after the event, and not have been taken for an earlier one.
    """
    spoken = [(text, word.start_sec) for word in words for text in normalise(word.text)]
    used: set[int] = set()
    found = []
    for event in events:
        places = [place for answer in event.answers for place in _places(spoken, normalise(answer))]
        starts = [place for place in places if place[1] >= event.at_sec and not used & set(place[0])]
        starts.sort(key=lambda place: place[1])
        delay_sec = None
        if starts:
            used |= set(starts[0][0])
            delay_sec = round(starts[0][1] - event.at_sec, 3)
        found.append({"at_sec": event.at_sec, "answers": list(event.answers), "delay_sec": delay_sec})
    return found


def in_time(event: dict[str, Any]) -> bool:
    """Whether an event was told within WITHIN_SEC."""
    return event["delay_sec"] is not None and event["delay_sec"] <= WITHIN_SEC


def summarise_events(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares are of all events of the records."""
    delays_sec = [event["delay_sec"] for event in events if event["delay_sec"] is not None]
    return {
        "events": len(events),
        "events_told": mean([event["delay_sec"] is not None for event in events]),
        "events_told_in_time": mean([in_time(event) for event in events]),
        "event_sec_p50": percentile(delays_sec, 50),
        "event_sec_p90": percentile(delays_sec, 90),
    }


def _places(spoken: list[tuple[str, float]], wanted: list[str]) -> list[tuple[range, float]]:
    """Where the words stand, and when that sentence began: with its article, if it has one."""
    texts = [text for text, _ in spoken]
    found = []
    for first in range(len(texts) - len(wanted) + 1 if wanted else 0):
        if texts[first : first + len(wanted)] == wanted:
            begin = first - 1 if first and texts[first - 1] in _ARTICLES else first
            found.append((range(begin, first + len(wanted)), spoken[begin][1]))
    return found
