"""Short texts that all outputs write alike."""

from malt.text import count_noun, find_close, list_first, shorten


def test_a_long_text_is_cut_to_its_length_with_an_ellipsis_in_it() -> None:
    assert shorten("12345", 5) == "12345"
    assert shorten("123456", 5) == "1234…"


def test_a_count_of_one_takes_the_singular() -> None:
    assert [count_noun(number, "question") for number in (0, 1, 1200)] == [
        "0 questions",
        "1 question",
        "1,200 questions",
    ]


def test_the_first_of_many_names_are_listed_and_the_others_counted() -> None:
    assert list_first(["a", "b", "c"]) == "a, b, c"
    assert list_first(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_a_wrong_name_is_taken_for_the_nearest_one_or_for_none() -> None:
    assert find_close("genrator", ["verifier", "generator"]) == "generator"
    assert find_close("x", ["verifier", "generator"]) is None
