"""Reads the materials of OBJ files (MTL) and adds them, with their image files, to a glTF document."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from data.file_content import HEAD_BYTES, stand_in
from data.gltf.editing import GltfEditor, image_type

# How many numbers follow an option of a texture statement; -s, -o and -t take up to three.
_OPTIONS = {"-mm": 2, "-s": 3, "-o": 3, "-t": 3}


def add_materials(editor: GltfEditor, obj: Path, libraries: list[str]) -> tuple[dict[str, int], list[str]]:
    """Add the materials of an OBJ file's libraries: ({name: index in the document}, notes).

    Colour (Kd, d, map_Kd), emission (Ke, map_Ke) and normal map (norm) are passed on; roughness comes from
    the shininess (Ns), or from Pr and Pm where the file has them. A texture replaces the colour Kd, as in
    most viewers. OBJ has no back sides: all materials are double-sided. Images keep their bytes; formats that
    glTF does not allow become PNG. Notes report libraries and images that are missing.
    """
    found: dict[str, int] = {}
    notes: list[str] = []
    textures: dict[Path, int | None] = {}
    for listed in libraries:
        whole = _locate(obj.parent, listed)
        for name in [listed] if whole else listed.split():
            library = _locate(obj.parent, name)
            if library is None:
                notes.append(f"the material file {name} is missing")
                continue
            content = library.read_bytes()
            if (problem := stand_in(content[:HEAD_BYTES])) is not None:
                notes.append(f"the material file {name}: {problem}")
            for statements in _read(content.decode("utf-8", "replace")):
                material = _material(editor, library.parent, statements, textures, notes)
                found.setdefault(material["name"], editor.add("materials", material))
    return found, notes


def add_image(editor: GltfEditor, content: bytes, name: str, notes: list[str]) -> int | None:
    """Add an image file as a texture and return the texture's index; PNG and JPEG keep their bytes.

    None if it is no readable image, with the reason in `notes`.
    """
    if (problem := stand_in(content[:HEAD_BYTES])) is not None:
        notes.append(f"the image file {name}: {problem}")
        return None
    kind = image_type(content)
    if kind not in ("image/png", "image/jpeg"):
        converted = io.BytesIO()
        try:
            Image.open(io.BytesIO(content)).save(converted, "PNG")
        except (OSError, ValueError, SyntaxError):  # what Pillow raises for damaged images
            notes.append(f"the image file {name} cannot be read; export it as PNG")
            return None
        content, kind = converted.getvalue(), "image/png"
    source = editor.add("images", {"name": name, "mimeType": kind, "bufferView": editor.add_view(content)})
    # 10497: repeat, as in OBJ.
    sampler = (
        editor.add("samplers", {"wrapS": 10497, "wrapT": 10497}) if not editor.json.get("samplers") else 0
    )
    return editor.add("textures", {"source": source, "sampler": sampler})


def _read(text: str) -> list[dict[str, str]]:
    """The statements of each material, by lower-case keyword; the name is under "newmtl"."""
    materials: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, rest = line.partition("#")[0].strip().partition(" ")
        if key.lower() == "newmtl":
            materials.append({})
        if materials and key:
            materials[-1].setdefault(key.lower(), rest.strip())
    return materials


def _material(
    editor: GltfEditor,
    folder: Path,
    statements: dict[str, str],
    textures: dict[Path, int | None],
    notes: list[str],
) -> dict[str, Any]:
    def texture(*keys: str) -> dict[str, int] | None:
        name = next((_file_name(statements[key]) for key in keys if key in statements), None)
        if not name:
            return None
        file = _locate(folder, name)
        if file is None:
            notes.append(f"the image file {name} is missing")
            return None
        if file not in textures:
            textures[file] = add_image(editor, file.read_bytes(), file.name, notes)
        index = textures[file]
        return None if index is None else {"index": index}

    alpha = _numbers(statements, "d") or [1 - value for value in _numbers(statements, "tr")] or [1.0]
    colour = _numbers(statements, "kd")
    shininess = _numbers(statements, "ns")
    roughness = _numbers(statements, "pr") or [(2 / (value + 2)) ** 0.5 for value in shininess] or [1.0]
    pbr: dict[str, Any] = {
        "metallicFactor": _unit(*(_numbers(statements, "pm") or [0.0])[:1]),
        "roughnessFactor": _unit(roughness[0]),
    }
    material: dict[str, Any] = {
        "name": statements["newmtl"],
        "pbrMetallicRoughness": pbr,
        "doubleSided": True,
    }
    base = texture("map_kd")
    if base is not None:
        pbr["baseColorTexture"] = base
        colour = []
    colour = [_unit(value) for value in (colour * 3 if len(colour) == 1 else colour)[:3]]
    pbr["baseColorFactor"] = [*(colour if len(colour) == 3 else [1.0] * 3), _unit(alpha[0])]
    if alpha[0] < 1:
        material["alphaMode"] = "BLEND"
    elif "map_d" in statements:
        material["alphaMode"] = "MASK"
    normal = texture("norm", "map_kn")
    if normal is not None:
        material["normalTexture"] = normal
    glow = texture("map_ke")
    emission = [_unit(value) for value in _numbers(statements, "ke")[:3]]
    if glow is not None:
        material["emissiveTexture"] = glow
        material["emissiveFactor"] = [1.0] * 3
    elif len(emission) == 3 and any(emission):
        material["emissiveFactor"] = emission
    return material


def _numbers(statements: dict[str, str], key: str) -> list[float]:
    """The numbers after a keyword, none if one of them is not a number ("Kd spectral file.rfl")."""
    words = statements.get(key, "").split()
    try:
        return [float(word) for word in words]
    except ValueError:
        return []


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _file_name(statement: str) -> str:
    """The file name of a texture statement, after its options."""
    words = statement.split()
    while words and words[0].startswith("-"):
        option = words.pop(0).lower()
        for _ in range(_OPTIONS.get(option, 1)):
            # -s, -o and -t may be followed by fewer than three numbers.
            if words and (option not in ("-s", "-o", "-t") or _is_number(words[0])):
                words.pop(0)
    return " ".join(words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _locate(folder: Path, name: str) -> Path | None:
    """The file that `name` means: in the folder, in any letter case, also by a path of another machine."""
    plain = name.strip().strip('"').replace("\\", "/")
    for candidate in (plain, plain.rpartition("/")[2]):
        found: Path | None = folder
        for part in candidate.split("/") if candidate else ["."]:
            found = None if found is None else _child(found, part)
        if found is not None and found.is_file():
            return found
    return None


def _child(folder: Path, name: str) -> Path | None:
    if (folder / name).exists() or not folder.is_dir():
        return folder / name
    return next((one for one in sorted(folder.iterdir()) if one.name.lower() == name.lower()), None)
