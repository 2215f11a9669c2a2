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
    source = opened(class_folders(tmp_path / "set", ["a", "b"], count=4), split="all")
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
    rest = exclude(opened("digits", split="all"), ["digits row 0", "digits row 1797"])
    assert (len(rest), rest.mirrorable, rest.unmatched) == (1796, False, {"digits row 1797"})


def test_relative_and_absolute_paths_are_the_same(
    tmp_path: Path, class_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "set", ["a", "b"], count=3)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = opened("set", split="all")
    write_exclusions("list.csv", [(relative.name(0), "")])
    monkeypatch.chdir(tmp_path / "other")
    for spec in (tmp_path / "set", Path("../set"), Path("../other/../set")):
        assert len(exclude(opened(spec, split="all"), read_exclusions("../list.csv"))) == 5


def test_a_class_or_everything_cannot_be_left_out(tmp_path: Path, class_folders: Folders) -> None:
    source = opened(class_folders(tmp_path, ["a", "b"], count=2), split="all")
    with pytest.raises(UserError, match="every image of the class b is to be left out"):
        exclude(source, [source.name(2), source.name(3)])
    assert len(exclude(source, [source.name(2), source.name(3)], every_class=False)) == 2
    for every_class in (True, False):
        with pytest.raises(UserError, match="all 4 images are to be left out"):
            exclude(source, [source.name(i) for i in range(4)], every_class=every_class)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(st.characters(exclude_characters="\0"), min_size=1), st.text()), max_size=5)
)
def test_any_name_survives(tmp_path: Path, entries: list[tuple[str, str]]) -> None:
    path = tmp_path / "list.csv"
    write_exclusions(path, entries)
    assert read_exclusions(path) == {normal_name(name) for name, _ in entries}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    try:
        names = read_exclusions(tmp_path / "list.csv")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(name, str) for name in names)


def test_undecodable_file_names(tmp_path: Path, class_folders: Folders, encode: Callable[..., bytes]) -> None:
    class_folders(tmp_path / "set", ["a", "b"], count=2)
    odd = os.fsencode(tmp_path / "set" / "a") + b"/caf\xe9 #1\n.png"
    with open(odd, "wb") as file:
        file.write(encode())
    source = opened(tmp_path / "set", split="all")
    write_exclusions(tmp_path / "list.csv", [(os.fsdecode(odd), "caf\udce9 is\nodd")])
    assert len(exclude(source, read_exclusions(tmp_path / "list.csv"))) == len(source) - 1 == 4


def test_format(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    write_exclusions(path, [("/set/a b#1.png", "twice  in\n the set"), ('/set/a, "2".png', "")])
    assert path.read_bytes() == (
        b'image,reason\r\n/set/a b#1.png,twice in the set\r\n"/set/a, ""2"".png",\r\n'
    )
    path.write_bytes('\ufefflabel,image\n3,/x/ü.png\n\n,/y//./z.png\n1,"/q,r.png"\n'.encode())
    assert read_exclusions(path) == {"/x/ü.png", "/y/z.png", "/q,r.png"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list\.csv: the first line must be image,reason"),
        (b"/a.png\n/b.png\n", r"list\.csv: the first line must be image,reason"),
        (b"image,reason\n/a.png,why\n,why\n", r"list\.csv line 3: the column image is empty"),
        (b'image,reason\n"/b.png', r"list\.csv line 2: not valid CSV"),
    ],
)
def test_wrong_lists_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_exclusions(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read the list of exclusions .*none\.csv"):
        read_exclusions(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"cannot write .*no/list\.csv"):
        write_exclusions(tmp_path / "no" / "list.csv", [])
