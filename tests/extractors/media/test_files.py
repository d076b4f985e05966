"""Which files of a folder are clips."""

from extractors.media.files import find_video, list_videos


def test_hidden_files_and_folders_are_no_clips(tmp_path):
    for name in ("a.mp4", "._a.mp4", ".mp4", "a.b.MOV", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert list_videos(tmp_path) == {"a": 1, "a.b": 1}
    assert list_videos(tmp_path / "absent") == {}


def test_every_clip_that_is_listed_is_found_whatever_the_case_of_its_suffix(tmp_path):
    for name in ("a.mp4", "b.MP4", "c.Mp4", "d.e.Mov"):
        (tmp_path / name).touch()
    listed = list_videos(tmp_path)
    assert set(listed) == {"a", "b", "c", "d.e"}
    assert all(find_video(tmp_path, name) for name in listed)


def test_two_files_of_one_name_are_counted(tmp_path):
    for name in ("a.mp4", "a.AVI", "b.mp4"):
        (tmp_path / name).touch()
    assert list_videos(tmp_path) == {"a": 2, "b": 1}
