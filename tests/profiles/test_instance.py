import tomllib
from pathlib import Path

import pytest

import profiles
from profiles.errors import UnknownGpuError
from profiles.gpu_catalog import all_gpus, find_gpu
from profiles.instance import all_instances, find_instance

FILE = Path(profiles.__path__[0]) / "instances.toml"


def test_every_machine_has_cards_of_the_catalog_and_known_sources():
    sources, names = tomllib.loads(FILE.read_text())["sources"], {gpu.name for gpu in all_gpus()}
    for machine in all_instances():
        assert machine.gpu in names
        assert set(machine.sources) <= sources.keys()
        assert (machine.usd_per_hour is None) == (machine.date is None)
    assert {key for machine in all_instances() for key in machine.sources} == sources.keys()


def test_a_machine_is_found_in_any_case_with_what_was_read_of_it():
    machine = find_instance("P4D.24xlarge")
    assert machine is not None
    assert (machine.gpu, machine.num_gpus, machine.memory_bytes) == ("A100-SXM4-40GB", 8, 1152 * 2**30)
    assert machine.network_bytes_per_s == 50e9
    assert find_instance("p4x.24xlarge") is None


def test_the_price_of_eight_cards_agrees_with_that_of_one():
    for name in ("p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge"):
        machine = find_instance(name)
        assert machine
        assert machine.usd_per_hour
        offers = [o.usd_per_hour for g in all_gpus() if g.name == machine.gpu for o in g.offers if name in o.cloud]
        assert offers
        assert abs(machine.usd_per_hour / machine.num_gpus - offers[0]) < 0.01


def test_a_misspelt_machine_is_met_with_the_nearest_one():
    with pytest.raises(UnknownGpuError, match=r"no GPU is called 'p4d.24xlrge'; did you mean p4d.24xlarge"):
        find_gpu("p4d.24xlrge")
