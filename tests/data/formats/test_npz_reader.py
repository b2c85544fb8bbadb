"""Untrusted NPZ files: NumPy's files are read as NumPy reads them, and nothing in them is ever run."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data.formats.npz_reader import npz_names, plain_pickle, read_npz
from data.mesh import MeshError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def check_same(read: Any, written: Any) -> None:
    assert type(read) is type(written)
    if isinstance(written, dict):
        assert list(read) == list(written)
        for key in written:
            check_same(read[key], written[key])
    elif isinstance(written, list | tuple):
        assert len(read) == len(written)
        for one, other in zip(read, written, strict=True):
            check_same(one, other)
    elif isinstance(written, np.ndarray):
        assert (read.shape, read.dtype) == (written.shape, written.dtype)
        if written.dtype.hasobject:
            check_same(list(read.flat), list(written.flat))
        else:
            np.testing.assert_array_equal(read, written)
    else:
        assert read == written


def plain_data() -> dict[str, Any]:
    names = np.empty(3, dtype=object)
    names[:] = ["hip", None, 3]
    return {
        "text": "é",
        "bytes": b"\xff\x00",
        "list": [1, 2.5, None, True, ["nested", (1, 2)]],
        "vertices": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "half": np.array([0.5], dtype=np.float16),
        "big endian": np.array([1, 2], dtype=">i4"),
        "strings": np.array(["a", "bcd"]),
        "bools": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(0.25),
        "integer": np.int64(-7),
        "objects": names,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_of_every_protocol(protocol: int) -> None:
    check_same(plain_pickle(pickle.dumps(plain_data(), protocol)), plain_data())


def test_names_of_older_numpy() -> None:
    """NumPy 1 wrote numpy.core where NumPy 2 writes numpy._core."""
    content = pickle.dumps(np.arange(3.0), 2).replace(b"numpy._core.", b"numpy.core.")
    np.testing.assert_array_equal(plain_pickle(content), [0, 1, 2])


def test_shared_objects_stay_shared() -> None:
    """Fourteen lists, each holding the one before 100 times: 100^14 entries if every path were walked."""
    deep: Any = [1]
    for _ in range(14):
        deep = [deep] * 100
    read = plain_pickle(pickle.dumps(deep))
    assert read[0] is read[1]


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_nothing_is_run(tmp_path: Path, protocol: int, wrapped: bool) -> None:
    marker = tmp_path / "ran"
    for evil in (
        Evil(eval, f"open({str(marker)!r}, 'w')"),
        Evil(open, str(marker), "w"),
        Evil(getattr, "a", "upper"),
        Evil(np.load, "x"),
        Evil(np.fromfile, "x"),
    ):
        value: Any = {"x": [evil]} if wrapped else evil
        with pytest.raises(ValueError, match="not allowed"):
            plain_pickle(pickle.dumps(value, protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"garbage",
        pickle.dumps(list(range(100)))[:-5],
        # The functions a pickle may call cannot be changed (BUILD with a state, BUILD with slots).
        b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
        b"cnumpy\ndtype\n(N}X\x09\x00\x00\x00_functionK\x01stb.",
        b"cnumpy\nndarray\n(I1\ntR.",
        # A function, a dtype, an array without content are no data.
        b"cnumpy\ndtype\n.",
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR.",
        b"cnumpy._core.multiarray\n_reconstruct\n(tR.",
        b"cnumpy\ndtype\n(X\x04\x00\x00\x00M8[s]tR.",
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR.",
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00aNK\x00K\x00K\x00tb.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
        b"Pname\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_malformed_pickles(content: bytes) -> None:
    with pytest.raises(ValueError):
        plain_pickle(content)


def test_arrays_that_lie_about_their_content() -> None:
    """24 bytes cannot be 4 numbers of 8 bytes, and raw bytes are no objects (they would be pointers)."""
    honest = pickle.dumps(np.arange(3), 2)
    # The shape (3,) is written as the byte 3 in a tuple, before the dtype.
    place = honest.index(b"K\x03\x85")
    with pytest.raises(ValueError, match="does not match its shape"):
        plain_pickle(honest[: place + 1] + b"\x04" + honest[place + 2 :])
    with pytest.raises(ValueError, match="does not match its shape"):
        plain_pickle(honest.replace(b"i8", b"O8"))


def test_dates_sets_and_classes_are_not_plain_data() -> None:
    for value in (np.array(["2020-01-01"], dtype="M8[D]"), {1, 2}, Path("x"), int, np.dtype("f4")):
        with pytest.raises(ValueError):
            plain_pickle(pickle.dumps(value))
    deep: Any = 1
    for _ in range(30):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        plain_pickle(pickle.dumps(deep))
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="nested too deeply"):
        plain_pickle(pickle.dumps(cycle))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_pickles_raise_only_value_error(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(plain_data(), data.draw(st.sampled_from(list(PROTOCOLS)))))
    for _ in range(data.draw(st.integers(1, 4))):
        # Opcodes with a 4-byte memo index may ask for much memory; single bytes elsewhere are enough here.
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte not in b"rj"))
    with contextlib.suppress(ValueError):
        plain_pickle(bytes(content))


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        arrays.scalar_dtypes().filter(lambda dtype: dtype.kind in "biuf"), arrays.array_shapes(min_side=0)
    )
)
def test_npz_as_numpy_reads_it(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez_compressed(path, a=array, b=np.asfortranarray(array))
    read = read_npz(path)
    for name in ("a", "b"):
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_object_arrays_only_if_enabled(tmp_path: Path) -> None:
    names = np.empty(2, dtype=object)
    names[:] = ["hip", None]
    np.savez(tmp_path / "a.npz", names=names, none=np.array(None), one=np.array([3], dtype=object), text="é")
    assert npz_names(tmp_path / "a.npz") == {"names", "none", "one", "text"}
    read = read_npz(tmp_path / "a.npz", objects=True)
    assert read["names"].tolist() == ["hip", None]
    assert read["none"] is None
    assert str(read["text"]) == "é"
    with pytest.raises(MeshError, match=r"a\.npz: array 'names' holds Python objects; "):
        read_npz(tmp_path / "a.npz")


def test_structured_arrays_with_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(2, dtype=[("x", object)]))
    with pytest.raises(MeshError, match="holds Python objects"):
        read_npz(tmp_path / "a.npz", objects=True)


def test_evil_object_arrays_name_the_file(tmp_path: Path) -> None:
    evil = np.empty(1, dtype=object)
    evil[0] = Evil(open, str(tmp_path / "ran"), "w")
    np.savez(tmp_path / "a.npz", a=evil)
    with pytest.raises(
        MeshError, match=r"a\.npz: array 'a' cannot be read as plain data \(it refers to .*open"
    ):
        read_npz(tmp_path / "a.npz", objects=True)
    assert not (tmp_path / "ran").exists()


def test_too_large_and_not_an_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**18))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with pytest.raises(MeshError, match="unpacks to 2 MiB, over the limit of 1 MiB"):
        read_npz(tmp_path / "a.npz", max_bytes=2**20)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 and no more")
    for read in (read_npz, npz_names):
        with pytest.raises(MeshError, match=r"b\.npz: not a complete NPZ file"):
            read(tmp_path / "b.npz")
