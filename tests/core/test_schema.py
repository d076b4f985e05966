import pytest

from affect.core.schema import check_name


@pytest.mark.parametrize("name", ["clip_001", "sample 7", "三号", "a.b-c"])
def test_ordinary_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", "a\x00b", "a\nb", None])
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        check_name(name)
