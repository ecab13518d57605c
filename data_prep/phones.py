"""One phone set for every synthesiser: ARPAbet in lower case (39 phones) and "sil"."""

# fmt: off
PHONES = (
    "sil", "aa", "ae", "ah", "ao", "aw", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy", "jh",
    "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)
# fmt: on

# flite's US English set is ARPAbet but for these.
_FLITE = {"pau": "sil", "ax": "ah", "axr": "er", "ix": "ih", "dx": "t", "el": "ah l", "en": "ah n"}

# espeak-ng's mnemonics. A sound that is two phones here shares its time between them.
_ESPEAK = {
    "@": "ah", "@2": "ah", "@5": "uh", "a#": "ah", "I2": "ih", "I": "ih", "I#": "ih", "i": "iy", "i:": "iy",
    "i@": "iy ah", "i@3": "iy r", "3": "er", "3:": "er", "IR": "er", "VR": "er", "@L": "ah l", "@r": "er", "r": "r",
    "r-": "r", "R": "r", "E": "eh", "E2": "eh", "e": "eh", "e@": "eh", "eI": "ey", "e:": "ey", "a": "ae",
    "aa": "ae", "aI": "ay", "aI@": "ay ah", "aI3": "ay er", "aU": "aw", "aU@": "aw ah", "A:": "aa", "A@": "aa",
    "A": "aa", "0": "aa", "0#": "aa", "O": "ao", "O:": "ao", "O@": "ao", "o@": "ao", "O2": "ao", "O3": "ao",
    "oI": "oy", "OI": "oy", "oU": "ow", "o:": "ow", "@U": "ow", "o": "ow", "U": "uh", "U@": "uh r", "u": "uw",
    "u:": "uw", "V": "ah", "V2": "ah", "n-": "ah n", "m-": "ah m", "l-": "ah l", "w": "w", "w#": "w", "j": "y",
    "h": "hh", "H": "hh", "D": "dh", "T": "th", "S": "sh", "Z": "zh", "tS": "ch", "dZ": "jh", "N": "ng", "t#": "t",
    "t2": "t", "?": "t", "l#": "l", "z#": "z", "z/2": "z", "d#": "d", "x": "k", "b": "b", "d": "d", "f": "f",
    "g": "g", "k": "k", "l": "l", "m": "m", "n": "n", "p": "p", "s": "s", "t": "t", "v": "v", "z": "z",
}  # fmt: skip


def from_flite(name: str) -> tuple[str, ...]:
    """The shared phones of one flite phone."""
    return tuple(_FLITE.get(name, name).split())


def from_espeak(name: str, *, english: bool = True) -> tuple[str, ...]:
    """The shared phones of one espeak-ng mnemonic; () for marks that are no sound. Other languages have sounds that are
    not among ours: all of theirs are "spn" (something is spoken), which is enough for the times of words.

    Raises ValueError for an English mnemonic the table lacks.
    """
    if not name or name[0] in "_|":
        return ("sil",)
    if name[0] in "('%,;":
        return ()
    if not english:
        return ("spn",)
    for length in range(len(name), 0, -1):
        if name[:length] in _ESPEAK:
            return tuple(_ESPEAK[name[:length]].split())
    raise ValueError(f"espeak-ng gave the phone {name!r}, which data_prep/phones.py does not know; add it to _ESPEAK")
