"""Lists the files that a path, folder or pattern stands for, and counts those passed over in folders."""

import glob
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

Pattern = str | Path | Iterable[str | Path]

# Textures, materials, buffers, texts and pictures that lie beside meshes.
_COMPANIONS = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tga", ".gif", ".tif", ".tiff", ".exr", ".hdr", ".dds"),
        *(".ktx", ".ktx2", ".basis", ".svg", ".psd", ".mtl", ".bin"),
        *(".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".rtf", ".url", ".license", ".log"),
        *(".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml", ".csv", ".tsv", ".ini", ".db", ".meta"),
        *(".py", ".import", ".sha256", ".md5", ".mp4", ".mov", ".avi", ".webm", ".wav", ".mp3", ".ogg"),
    )
)
_ARCHIVES = frozenset([".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"])
_MESHES_ALONE = frozenset((".obj", ".ply", ".stl", ".off"))


def find_files(pattern: Pattern, wanted: Callable[[Path], bool]) -> list[Path]:
    """The files that match `pattern`, sorted and without duplicates; an empty list if there are none.

    pattern: a file, a folder (searched recursively for files that are `wanted` and not hidden), a glob
    pattern ("**" for any depth), or several of these. A file is hidden if its name, or that of a folder
    between it and the given one, starts with a dot.
    """
    found: set[Path] = set()
    for path in _paths(pattern):
        if path.is_dir():
            found.update(file for file in path.rglob("*") if not _hidden(file, path) and wanted(file))
        elif path.exists():
            found.add(path)
        else:
            found.update(Path(match) for match in glob.glob(str(path), recursive=True))
    return sorted(file for file in found if file.is_file())


def passed_over(pattern: Pattern, wanted: Callable[[Path], bool]) -> list[str]:
    """A line for each folder in `pattern` that holds files which `find_files` passes over, with the fix.

    Such as "assets: passed over 12 files (7 .blend, 5 .zip); convert 3D files to GLB, unpack archives".

    Textures and other usual companions of meshes do not count, nor do files without a suffix; hidden files
    count only if they would be wanted otherwise.
    """
    lines = []
    for folder in dict.fromkeys(path for path in _paths(pattern) if path.is_dir()):
        counts: Counter[str] = Counter()
        for file in folder.rglob("*"):
            suffix = file.suffix.lower()
            if not file.is_file():
                continue
            if _hidden(file, folder):
                counts["hidden"] += wanted(file)
            elif suffix and suffix not in _COMPANIONS and not wanted(file):
                counts[suffix] += 1
        counts = +counts
        if counts:
            lines.append(f"{folder}: {_counted(counts)}")
    return lines


def _counted(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=_most_first))
    fixes = []
    if counts.keys() - _ARCHIVES - {"hidden", ".npz"} - _MESHES_ALONE:
        fixes.append("convert 3D files to GLB")
    if counts.keys() & _MESHES_ALONE:
        fixes.append("bind meshes to a skeleton and export GLB")
    if ".npz" in counts:
        fixes.append("prepare NPZ rigs with `python -m data.prepare`")
    if counts.keys() & _ARCHIVES:
        fixes.append("unpack archives")
    if "hidden" in counts:
        fixes.append("rename hidden files that you need")
    total = counts.total()
    return f"passed over {total} file{'s' * (total != 1)} ({shown}); {', '.join(fixes)}"


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _paths(pattern: Pattern) -> list[Path]:
    patterns = [pattern] if isinstance(pattern, str | Path) else list(pattern)
    return [Path(one).expanduser() for one in patterns]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
