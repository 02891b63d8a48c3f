from stack.supervisor import Backoff


def test_pauses_grow_until_a_run_lasts() -> None:
    backoff = Backoff()
    assert [backoff.pause(1.0) for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [backoff.pause(60.0), backoff.pause(0.1)] == [0.5, 1.0]
