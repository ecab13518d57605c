"""Text as it is spoken: numbers and signs in words; which spoken words stand for which written one."""

import re
import unicodedata
from functools import lru_cache

from mmspeech.config import ConfigError

_SIGNS = {"en": {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "$": "dollars", "°": "degrees"}}
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SPLIT = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|[&%+=@$°]")
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)\b")


def spoken_words(text: str, language: str = "en", *, ascii_only: bool = False) -> list[tuple[str, list[str]]]:
    """Each written word (with its punctuation) with the words that a voice says for it; marks that nothing is said for
    stand with the word before. `ascii_only`: for voices that know no other letters.

    Raises ConfigError for a text in which nothing is to be said.
    """
    pairs: list[tuple[str, list[str]]] = []
    for written in text.replace("\u2019", "'").split():
        said = _said(written, language, ascii_only)
        if said:
            pairs.append((written, said))
        elif pairs:
            pairs[-1] = (f"{pairs[-1][0]} {written}", pairs[-1][1])
    if not pairs:
        raise ConfigError(f"nothing to say in {text!r}; expected at least one word")
    return pairs


def _said(written: str, language: str, ascii_only: bool) -> list[str]:
    ordinal = _ORDINAL.search(written)
    if ordinal:
        return _number(ordinal.group(1), language, "ordinal")
    words: list[str] = []
    for piece in _SPLIT.findall(written):
        if _NUMBER.fullmatch(piece):
            words += _number(piece, language, "cardinal")
        elif piece in _SIGNS["en"]:
            words += [_SIGNS.get(language, {}).get(piece, "")]
        else:
            words += [_folded(piece) if ascii_only else piece]
    return [word for word in words if any(letter.isalpha() for letter in word)]


@lru_cache(maxsize=10_000)
def _number(digits: str, language: str, to: str) -> list[str]:
    from num2words import num2words

    plain = digits.replace(",", "") if _THOUSANDS.fullmatch(digits) else digits.replace(",", ".")
    parts = [plain] if plain.count(".") <= 1 else plain.split(".")  # a version, a date: number by number
    try:
        told = [num2words(float(one) if "." in one else int(one), lang=language, to=to) for one in parts]
    except (NotImplementedError, OverflowError) as error:
        raise ConfigError(f"no words for the number {digits} in {language!r} ({error})") from error
    return re.findall(r"[^\W\d_]+", " ".join(told))


def _folded(word: str) -> str:
    """Without accents: "café" -> "cafe"; letters that have no such form are left out."""
    return unicodedata.normalize("NFKD", word.replace("ß", "ss")).encode("ascii", "ignore").decode()
