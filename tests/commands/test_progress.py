"""Progress without a terminal."""

from conformer_vision.commands.progress import lines_of_progress


def test_lines_of_progress() -> None:
    lines: list[str] = []
    times = iter([0.0, 3.0, 10.5, 10.5, 15.0, 30.0, 30.0])
    progress = lines_of_progress(lines.append, "read", clock=lambda: next(times))
    for done in (1, 2000, 3000, 4000):
        progress(done, 5000)
    assert lines == ["read 2,000 of 5,000 images", "read 4,000 of 5,000 images"]
