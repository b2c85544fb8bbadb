"""`python docs/rig_pictures.py FOLDER`: rigs and draws the four characters of docs/rigging.md.

FOLDER holds the characters' GLB files (see `CHARACTERS`), which are not part of this repository. Each is
rigged by the commands that a user would type, with the shipped policy, and drawn by `rl.draw_posed`. Takes a
few minutes on a CPU. `--only NAME` makes one picture; further arguments override recipe values.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from rl import draw_posed, rig  # noqa: E402


@dataclass(frozen=True)
class Character:
    """A file, who made it, and what its picture shows.

    Attributes:
        file: name in the folder of characters.
        credit: author and licence, drawn below the picture.
        drawing: arguments of `rl.draw_posed`: the pose and the camera.
    """

    file: str
    credit: str
    drawing: tuple[str, ...] = ()

    @property
    def picture(self) -> Path:
        return ROOT / "docs" / "images" / f"rigged_{Path(self.file).stem.lower()}.png"


CHARACTERS = (
    Character(
        "CesiumMan.glb",
        "Cesium Man: © 2017 Cesium, CC-BY 4.0 with trademark limitations",
        ("--seed", "3", "--degrees", "20"),
    ),
    Character(
        "Fox.glb",
        "Fox: mesh by PixelMannen, CC0 1.0; original rig by @tomkranis, CC-BY 4.0; conversion by "
        "@AsoboStudio and @scurest",
        ("--seed", "1", "--degrees", "20", "--view", "40", "12"),
    ),
    Character(
        "kaykit_Knight.glb",
        "Knight: Kay Lousberg, KayKit Character Pack Adventurers 1.0, CC0 1.0",
        ("--seed", "5", "--degrees", "20", "--view", "30", "10"),
    ),
    Character(
        "RiggedFigure.glb",
        "Rigged Figure: © 2017 Cesium, CC-BY 4.0",
        ("--seed", "3", "--degrees", "20"),
    ),
)


def make_picture(character: Character, folder: Path, overrides: list[str]) -> int:
    """Rig one character and draw it; the exit code of the first command that fails, or 0."""
    source = folder / character.file
    with tempfile.TemporaryDirectory() as work:
        rigged = Path(work) / character.file
        policy = f"policy.path={ROOT / 'checkpoints' / 'small'}"
        files = [f"rig.mesh={source}", f"rig.out={rigged}", policy]
        failed = rig.main([str(ROOT / "recipes" / "base.yaml"), *files, "rig.candidates=32", *overrides])
        if failed:
            return failed
        arguments = [str(rigged), "--before", str(source), "--out", str(character.picture)]
        return draw_posed.main([*arguments, "--credit", character.credit, *character.drawing])


def main(argv: list[str] | None = None) -> int:
    """The command; the exit code of the first command that fails, or 0."""
    parser = argparse.ArgumentParser(prog="docs/rig_pictures.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the characters' GLB files")
    parser.add_argument("--only", metavar="NAME", help="one character, such as Fox")
    arguments, overrides = parser.parse_known_args(argv)
    for character in CHARACTERS:
        if arguments.only in (None, Path(character.file).stem):
            failed = make_picture(character, arguments.folder, overrides)
            if failed:
                return failed
            print(character.picture.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
