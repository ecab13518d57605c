"""A shard set on the hub: its card, which tells where the calls come from and under which licences, and its upload."""

import json
import re
from pathlib import Path

from mmspeech.config import ConfigError
from mmspeech.data.shards import ShardSetInfo, read_info
from mmspeech.frames import frames_to_seconds

CARD = "README.md"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# As the hub names them; what it has no name for is "other".
_LICENCES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "openrail"
}  # fmt: skip


def card(info: ShardSetInfo, repo: str) -> str:
    """The text of the set's README.md."""
    names = [name.lower() for name in info.licences]
    single = names[0] if len(names) == 1 and names[0] in _LICENCES else "other"
    size = next((name for limit, name in _SIZES if info.calls < limit), "n>1M")
    head = ["---", f"license: {single}"]
    if single == "other":
        head.append(f"license_name: {json.dumps(', '.join(info.licences))}")
    head += ["task_categories: [any-to-any]", "tags: [speech, vision, full-duplex, mmspeech]"]
    head += [f"size_categories: [{size}]", "configs: [{config_name: default, data_files: 'shard-*.parquet'}]", "---"]
    hours = frames_to_seconds(info.frames) / 3600
    return "\n".join(
        [
            *head,
            f"# {repo.partition('/')[2]}",
            "",
            f"{info.calls} calls ({hours:.2f} h) in which two people, one of them the model, talk about "
            f"{info.pictures} pictures and clips. Made with the data tools of mmspeech.",
            "",
            *_table("source", info.sources),
            "",
            *_table("licence", info.licences),
            "",
            "Calls named `unknown` came without a licence: find out before you use them. The pictures and texts keep "
            "the licences of their sources.",
            "",
            f"Each row is a call: `codes` (int16, {2 * info.codec.num_codebooks} rows at 12.5 Hz: the model's "
            f"{info.codec.num_codebooks} codebooks of {info.codec.codebook_size}, then the user's; codec "
            f"`{info.codec.hash}`), `words` with their times, `visuals`, `meta`.",
            "",
            "```yaml",
            f"data: {{sources: {{these: {{path: hub:{repo}}}}}}}   # in the configuration of a training of mmspeech",
            "```",
            "",
            "```python",
            "from datasets import load_dataset",
            f'calls = load_dataset("{repo}", split="train")',
            "```",
            "",
        ]
    )


def _table(name: str, counts: dict[str, int]) -> list[str]:
    return [f"| {name} | calls |", "|---|---|", *(f"| {key} | {count} |" for key, count in counts.items())]


def push_set(path: Path, repo: str, *, public: bool) -> str:
    """Upload the shard set with its card; returns where it is. ConfigError when it cannot be uploaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    info = read_info(path)
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"--repo {repo}: expected OWNER/NAME")
    if info.media_root is not None:
        raise ConfigError(f"{path}: its clips lie outside, in {info.media_root}; pack it again with --clips bytes")
    (path / CARD).write_text(card(info, repo), encoding="utf-8")
    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=str(path), commit_message="Calls by mmspeech")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{repo}: could not be uploaded ({reason}); logged in? (`hf auth login`)") from error
    return str(url)
