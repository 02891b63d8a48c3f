from collections import Counter

import numpy as np
import pytest

from contracts.recipes import Augmentation
from worker.compression.distillation.augmentation import changes_words, dropped, varied_input, varied_text

TEXT = " ".join(f"w{i}" for i in range(1000))
SPECIAL = np.array([101, 102], np.int32)


def varied(text: str, seed: int = 0, **options: float) -> str:
    return varied_text(text, Augmentation(**options), np.random.default_rng(seed))


def test_words_are_deleted_by_their_probability_and_keep_their_order() -> None:
    left = [len(varied(TEXT, seed, word_deletion=0.2).split()) for seed in range(50)]
    assert np.mean(left) == pytest.approx(800, abs=8)  # the deviation of the mean is 1.8
    words = varied(TEXT, word_deletion=0.2).split()
    assert sorted(words, key=lambda word: int(word[1:])) == words


def test_words_change_places_with_their_neighbours_by_their_probability() -> None:
    moved = []
    for seed in range(50):
        words = varied(TEXT, seed, word_swap=0.2).split()
        assert Counter(words) == Counter(TEXT.split())
        places = np.array([int(word[1:]) - i for i, word in enumerate(words)])
        assert set(places.tolist()) <= {-1, 0, 1}
        moved.append(int((places != 0).sum()))
    # Pairs begin at 0.2 of the words that are not the second of a pair: 0.2 / 1.2 of all.
    assert np.mean(moved) == pytest.approx(2 * 1000 / 6, abs=12)


def test_tokens_are_dropped_by_their_probability_and_special_ones_stay() -> None:
    ids = np.concatenate([[101], np.arange(1000, 2000), [102]]).astype(np.int32)
    left = [dropped(ids, SPECIAL, 0.3, np.random.default_rng(seed)) for seed in range(50)]
    assert all(row[0] == 101 and row[-1] == 102 and (np.diff(row[1:-1]) > 0).all() for row in left)
    assert np.mean([len(row) - 2 for row in left]) == pytest.approx(700, abs=9)


@pytest.mark.parametrize("text", ["one", "  two words ", "a b c", "x\n\ty"])
def test_a_text_is_never_empty(text: str) -> None:
    for seed in range(200):
        assert varied(text, seed, word_deletion=0.99, word_swap=0.5).split()
        ids = dropped(np.array([101, 7, 8, 102], np.int32), SPECIAL, 0.99, np.random.default_rng(seed))
        assert len(ids) >= 3


def test_what_stands_between_words_stays() -> None:
    assert varied("  a\n  b\tc ", 3, word_swap=0.99) == "  b\n  a\tc "
    assert varied("   ", word_deletion=0.9) == "   "
    assert varied(TEXT) == TEXT


def test_the_same_seed_gives_the_same() -> None:
    options = {"word_swap": 0.3, "word_deletion": 0.3}
    assert varied(TEXT, 5, **options) == varied(TEXT, 5, **options) != varied(TEXT, 6, **options)


def test_messages_of_a_chat_are_varied_one_by_one() -> None:
    chat = {"messages": [{"role": "system", "content": "a b"}, {"role": "user", "content": "c d"}]}
    found = varied_input(chat, Augmentation(word_swap=0.99), np.random.default_rng(1))
    assert [message["content"] for message in found["messages"]] == ["b a", "d c"]
    assert [message["role"] for message in found["messages"]] == ["system", "user"]
    assert chat["messages"][0]["content"] == "a b"


def test_only_words_make_texts_be_tokenized_again() -> None:
    assert not changes_words(Augmentation(token_dropout=0.5))
    assert changes_words(Augmentation(word_swap=0.1))
    assert changes_words(Augmentation(word_deletion=0.1))
