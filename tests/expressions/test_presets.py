"""Known data sets: names in every spelling, orders as published, normalisation that fits the pictures."""

import pytest

from affect.expressions.config import ImageModelConfig, ImagesConfig
from affect.expressions.presets import PRESETS, ClassNames, data_spec, expression, folder_names, is_expression
from affect.expressions.samples import GRAY_MEAN, IMAGENET_MEAN


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("RAF-DB", 7, "surprise", "neutral"),
        ("AffectNet-7", 7, "neutral", "anger"),
        ("AffectNet-8", 8, "neutral", "contempt"),
        ("CAER-S", 7, "anger", "surprise"),
        ("FERPlus", 8, "neutral", "contempt"),
        ("FER2013", 7, "angry", "neutral"),
    ],
)
def test_every_data_set_has_its_classes_in_order(name, count, first, last):
    classes = PRESETS[name].classes
    assert (len(classes), classes[0], classes[-1]) == (count, first, last)
    assert all(is_expression(each) for each in classes) and len({expression(each) for each in classes}) == count


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("Happy", "happiness"), (" SAD ", "sadness"), ("Angry", "anger"), ("fearful", "fear"), ("bored", "bored")],
)
def test_spellings_of_an_expression_are_one_name(spelling, name):
    assert expression(spelling) == name


def test_class_is_found_by_name_and_never_by_number():
    classes = ClassNames(PRESETS["FER2013"].classes)
    assert classes.index("Neutral") == 6 and classes.index("sadness") == 4 and classes.index("contempt") is None
    assert classes.index("4") is None


@pytest.mark.parametrize("classes", [(), ("happy", "Happiness"), ("a", "a")])
def test_class_list_without_different_names_is_an_error(classes):
    with pytest.raises(ValueError, match="each once"):
        ClassNames(classes)


def test_numbers_mean_what_the_data_set_says():
    assert folder_names(["3", "6"], "AffectNet-8") == {"3": "surprise", "6": "anger"}
    assert folder_names(["3", "6"], "FER2013") == {"3": "happy", "6": "neutral"}
    assert folder_names(["0", "3"], "RAF-DB") == {"0": "surprise", "3": "happiness"}
    assert folder_names(["3", "7", "Anger"], "RAF-DB") == {"3": "disgust", "7": "neutral", "Anger": "Anger"}
    assert folder_names(["3", "9"], "AffectNet-7")["9"] == "9"
    assert folder_names(["3"], None) == {"3": "3"} and folder_names(["3"], "CAER-S") == {"3": "3"}


def test_normalisation_is_the_data_sets_unless_given():
    colour, gray = ImageModelConfig(arch="poster_v2"), ImageModelConfig(arch="compact")
    assert data_spec(colour, ImagesConfig(data_type="RAF-DB")).mean == IMAGENET_MEAN
    assert data_spec(colour, ImagesConfig(data_type="FERPlus")).mean == GRAY_MEAN * 3
    assert data_spec(gray, ImagesConfig(data_type="RAF-DB")).mean == GRAY_MEAN
    own = ImagesConfig(data_type="FERPlus", mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert data_spec(colour, own).mean == (0.1, 0.2, 0.3)
