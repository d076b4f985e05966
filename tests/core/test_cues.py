import pytest

from affect.core.cues import absent_streams, leave_out_absent


@pytest.mark.parametrize(
    ("text", "shown", "missing", "absent"),
    [
        ("The voice is low.", ["face"], ["audio"], ["voice"]),
        ("The voice is low.", ["audio"], [], []),
        ("The voice is low.", ["multi"], [], []),
        ("The voice is low.", ["multi", "face"], ["audio"], ["voice"]),
        ("The lips are parted.", ["multi", "audio"], ["face", "au"], ["face"]),
        ("The lips are parted.", ["multi", "au"], ["face"], []),
        ("In the background, people stand.", ["audio"], [], ["scene"]),
        ("The person is happy.", [], ["audio", "face", "frame", "au"], []),
        ("His smile is not in his eyes.", ["multi", "audio"], ["face", "au"], ["face"]),
        ("The lips are parted.", ["frame"], [], []),
        ("The lips are parted.", ["multi", "audio", "frame"], ["face", "au"], ["face"]),
        ("The lips are parted.", ["multi"], [], []),
        ("In the video, a hand is seen; music is heard.", [], [], ["voice", "scene", "video"]),
        ("On the other hand, she lowers her offer.", ["audio"], ["face", "frame"], []),
        ('She says "look at my face".', ["audio"], [], []),
    ],
)
def test_speaking_of_a_stream_that_is_not_there_is_noticed(text, shown, missing, absent):
    assert absent_streams(text, shown, missing) == absent


TEXT = "In the video, he frowns. His tone is harsh, Dr. Who says.\nPeople stand in the room. Therefore, he feels angry."


@pytest.mark.parametrize(
    ("shown", "missing", "left"),
    [
        (["multi", "face", "frame", "audio"], [], TEXT),
        (["face", "frame"], ["audio"], "In the video, he frowns. People stand in the room. Therefore, he feels angry."),
        (["face", "audio"], [], "In the video, he frowns. His tone is harsh, Dr. Who says. Therefore, he feels angry."),
        (["audio"], ["face", "au"], "His tone is harsh, Dr. Who says. Therefore, he feels angry."),
        ([], [], "Therefore, he feels angry."),
    ],
)
def test_sentences_about_what_is_not_shown_are_left_out(shown, missing, left):
    assert leave_out_absent(TEXT, shown, missing) == left


def test_a_text_of_which_nothing_would_be_left_stays_whole():
    text = "The brows are lowered, so the person feels sad."
    assert leave_out_absent(text, ["audio"], ["face"]) == text
