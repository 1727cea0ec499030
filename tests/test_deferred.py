import pytest

from mlx_ft.deferred import Deferred


def test_a_value_is_made_once_and_when_it_is_asked_for():
    made = []
    deferred = Deferred("key", lambda: made.append("made") or [])
    deferred.then(lambda value: value.append("ready"))
    assert (made, deferred.made) == ([], False)
    assert deferred.get() is deferred.get() == ["ready"]
    assert (made, deferred.made) == (["made"], True)
    deferred.then(lambda value: value.append("again"))  # at once now
    assert deferred.get() == ["ready", "again"]


def test_what_cannot_be_made_raises_each_time():
    deferred = Deferred("key", lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            deferred.get()
    assert not deferred.made
