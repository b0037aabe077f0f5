import pytest

from profiles.errors import ConfigError, UnknownModelError
from trainer.model.model_name import weights_name


def test_a_folder_and_a_hub_id_are_themselves(tmp_path):
    assert weights_name(str(tmp_path)) == str(tmp_path)
    assert weights_name("someone/some-model") == "someone/some-model"


def test_an_alias_is_the_id_behind_it():
    assert weights_name("llama2-7b") == "meta-llama/Llama-2-7b-hf"


def test_a_size_has_no_weights():
    with pytest.raises(ConfigError, match="model is 7b, which is a size"):
        weights_name("7b")


def test_an_unknown_alias_is_refused():
    with pytest.raises(UnknownModelError, match="no-such-model"):
        weights_name("no-such-model")
