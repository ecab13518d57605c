"""Pictures of sets that hold only their addresses: the user has downloaded them, and here they are found again."""

import hashlib
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from data_prep.importers.base import Context
from mmspeech.config import ConfigError

LONGEST_NAME_BYTES = 255  # of a file; addresses may end with more
ENDINGS = (".jpg", ".png", ".jpeg", ".webp", ".gif")


def downloaded(context: Context, url: str, key: str = "") -> dict[str, str]:
    """The picture of `url` in the media folder: SHA256-OF-THE-URL.jpg (or .png, ...), KEY.jpg, or the name that the
    address ends with."""
    hashed = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    names = [f"{stem}{ending}" for stem in (hashed, key) if stem for ending in ENDINGS]
    last = PurePosixPath(unquote(urlsplit(url).path)).name
    last = last if len(last.encode("utf-8", "surrogatepass")) <= LONGEST_NAME_BYTES else ""
    try:
        return context.picture(*names, *([last] if last else []))
    except ConfigError as error:
        others = ", ".join(name for name in (key and f"{key}.*", last) if name)
        reason = f"{url[:200]}: not downloaded; expected {hashed}.jpg (or {others}) in {context.media_root}"
        raise ConfigError(reason) from error
