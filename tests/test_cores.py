import os

from tuyi.cores import cpu_cores


def test_cores_that_the_process_is_bound_to(tmp_path):
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(bound)})
    try:
        assert cpu_cores(tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, bound)
    assert cpu_cores(tmp_path / "none") == len(bound)


def test_the_limit_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    limit = tmp_path / "cpu.max"
    for said, cores in {"max 100000\n": 64, "250000 100000\n": 3, "50000 100000\n": 1, "9900000 100000\n": 64}.items():
        limit.write_text(said)
        assert cpu_cores(limit) == cores, said
