import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformer_vision.data.exclude import exclude, normal_name, read_exclusions, write_exclusions
from conformer_vision.errors import UserError
from image_sets import opened

Folders = Callable[..., Path]


def test_images_are_left_out(tmp_path: Path, class_folders: Folders) -> None:
    source = opened(class_folders(tmp_path / "set", ["a", "b"], count=4))
    names = [source.name(i) for i in (1, 2, 7)]
    rest = exclude(source, [*names, "no/such.png"])
    assert rest.classes == source.classes
    assert [rest.name(i) for i in range(len(rest))] == [source.name(i) for i in (0, 3, 4, 5, 6)]
    assert list(rest.labels) == [0, 0, 1, 1, 1]
    assert rest[1][0].getpixel((0, 0)) == (3, 0, 0)
    assert rest.unmatched == {os.path.abspath("no/such.png")}
    again = pickle.loads(pickle.dumps(rest))
    assert [again.name(i) for i in range(5)] == [rest.name(i) for i in range(5)]
    assert len(exclude(source, [])) == 8


def test_other_attributes_stay() -> None:
    rest = exclude(opened("digits"), ["digits row 0", "digits row 1797"])
    assert (len(rest), rest.mirrorable, rest.unmatched) == (1796, False, {"digits row 1797"})


def test_relative_and_absolute_paths_are_the_same(
    tmp_path: Path, class_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "set", ["a", "b"], count=3)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    write_exclusions("list.csv", [(opened("set").name(0), "")])
    monkeypatch.chdir(tmp_path / "other")
    for spec in (tmp_path / "set", Path("../set"), Path("../other/../set")):
        assert len(exclude(opened(spec), read_exclusions("../list.csv"))) == 5


def test_a_class_or_everything_cannot_be_left_out(tmp_path: Path, class_folders: Folders) -> None:
    source = opened(class_folders(tmp_path, ["a", "b"], count=2))
    with pytest.raises(UserError, match="every image of the class b is excluded"):
        exclude(source, [source.name(2), source.name(3)])
    assert len(exclude(source, [source.name(2), source.name(3)], every_class=False)) == 2
    for every_class in (True, False):
        with pytest.raises(UserError, match="all 4 images are excluded"):
            exclude(source, [source.name(i) for i in range(4)], every_class=every_class)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.text()),
        max_size=5,
    )
)
def test_any_name_survives(tmp_path: Path, entries: list[tuple[str, str]]) -> None:
    path = tmp_path / "list.csv"
    write_exclusions(path, entries)
    assert read_exclusions(path) == {normal_name(name) for name, _ in entries}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    for start in (b"", b"image,reason\n"):
        (tmp_path / "list.csv").write_bytes(start + content)
        try:
            names = read_exclusions(tmp_path / "list.csv")
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(name, str) for name in names)


def test_undecodable_file_names(tmp_path: Path, class_folders: Folders, encode: Callable[..., bytes]) -> None:
    class_folders(tmp_path / "set", ["a", "b"], count=2)
    odd = os.fsencode(tmp_path / "set" / "a") + b'/caf\xe9, "1"\r\n\n.png'
    with open(odd, "wb") as file:
        file.write(encode())
    source = opened(tmp_path / "set")
    write_exclusions(tmp_path / "list.csv", [(os.fsdecode(odd), "caf\udce9 is\nodd")])
    assert len(exclude(source, read_exclusions(tmp_path / "list.csv"))) == len(source) - 1 == 4


def test_format(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    write_exclusions(path, [("/set/a b.png", "twice  in\n the set"), ("/set/a,2.png", "")])
    assert path.read_bytes() == b'image,reason\r\n/set/a b.png,twice in the set\r\n"/set/a,2.png",\r\n'
    path.write_bytes('\ufeffImage;Reason\r\n/x/ü.png;"why; so"\r\n\r\n;;\r\n/y//./z.png\r\n'.encode())
    assert read_exclusions(path) == {"/x/ü.png", "/y/z.png"}
    path.write_bytes(b"image\n/a b.png\n")
    assert read_exclusions(path) == {"/a b.png"}, "a reason need not be given"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list\.csv is empty"),
        (b"/a.png\n/b.png\n", r"list\.csv is not an exclusion list: its first line must be image,reason"),
        (b"image\n/a,b.png\n", r"list\.csv line 2 has 2 cells, but the header has 1"),
        (b'image\n"/b.png', r"list\.csv line 2 cannot be read as a table"),
        (b"image,reason\n,blurred\n", r"list\.csv line 2 names no image"),
    ],
)
def test_wrong_lists_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_exclusions(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        read_exclusions(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"cannot write .*no/list\.csv"):
        write_exclusions(tmp_path / "no" / "list.csv", [])
