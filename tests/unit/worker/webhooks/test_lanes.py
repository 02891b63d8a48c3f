from worker.webhooks.lanes import FAILING, MOST, START, TOTAL, Lanes


def answered(lanes: Lanes, count: int, **how: bool) -> None:
    for _ in range(count):
        lanes.take(1)
        lanes.give(1, **how)


def test_an_endpoint_that_answers_well_gets_more() -> None:
    lanes = Lanes()
    assert lanes.free == {}
    lanes.take(1)
    assert lanes.free == {1: START - 1}
    lanes.give(1, good=True)
    assert lanes.free == {1: START + 1}
    answered(lanes, 100, good=True)
    assert lanes.free == {1: MOST}


def test_one_that_fails_all_the_time_gets_one_at_a_time_until_it_answers() -> None:
    lanes = Lanes()
    answered(lanes, FAILING - 1, good=False)
    assert lanes.free == {1: START}
    answered(lanes, 1, good=False)
    assert lanes.free == {1: 1}
    lanes.take(1)
    assert lanes.free == {1: 0}
    lanes.give(1, good=True)
    assert lanes.free == {1: START}


def test_one_that_asks_for_less_gets_less() -> None:
    lanes = Lanes()
    answered(lanes, 100, good=True)
    answered(lanes, 1, good=False, throttled=True)
    assert lanes.free == {1: MOST // 2}


def test_the_room_for_all_is_bounded() -> None:
    lanes = Lanes()
    for endpoint_id in range(TOTAL):
        lanes.take(endpoint_id)
    assert lanes.room == 0
    lanes.give(7, good=False)
    assert lanes.room == 1
