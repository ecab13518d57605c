"""What seeing is worth: the same validation calls with and without their pictures."""

from train.settings import SourceConfig

GAP = "gap"
Results = dict[str, dict[str, float]]


def sighted_and_blind(valid: dict[str, SourceConfig]) -> list[tuple[str, str]]:
    """(name with pictures, name without) of validation sources that lay out the same calls alike."""
    kept, dropped = (
        [name for name, source in valid.items() if source.visuals == visuals] for visuals in ("keep", "drop")
    )
    return [(sighted, blind) for sighted in kept for blind in dropped if _calls(valid[sighted]) == _calls(valid[blind])]


def _calls(source: SourceConfig) -> dict:
    return source.model_dump(include={"path", "max_frames", "variants"})


def gaps(results: Results, pairs: list[tuple[str, str]]) -> Results:
    """`gap` (of several pairs: `gap_` and the sighted set's name): word_acc and text_loss, how much better with the
    picture. 0: it is not used; what either set has no number of is left out."""
    found = {}
    for sighted, blind in pairs:
        better = {
            name: sign * (results[sighted][name] - results[blind][name])
            for name, sign in (("word_acc", 1), ("text_loss", -1))
            if name in results[sighted] and name in results[blind]
        }
        found[GAP if len(pairs) == 1 else f"{GAP}_{sighted}"] = better
    return found
