import math
from dataclasses import dataclass, field

import pytest

from domains.errors import UserError
from domains.genomics.config import TrainConfig
from domains.settings import flatten, from_dict, read_yaml, to_dict, write_yaml


@dataclass
class Inner:
    rate: float = 0.1
    names: list[str] = field(default_factory=list)
    pair: tuple[float, float] = (0.0, math.inf)


@dataclass
class Sizes:
    width: int = 8

    def __post_init__(self):
        if self.width < 1:
            raise ValueError("width must be positive")


@dataclass
class Outer:
    count: int = 1
    on: bool = True
    text: str = ""
    limit: float | None = None
    held: list[str] | None = None
    inner: Inner = field(default_factory=Inner)
    sizes: Sizes = field(default_factory=Sizes)


def test_values_find_their_places_and_the_rest_keeps_its_defaults():
    built = from_dict(Outer, {"count": 3, "limit": 2, "held": ["a"], "inner": {"pair": [1, 2], "rate": "1e-3"}})
    assert built == Outer(count=3, limit=2.0, held=["a"], inner=Inner(rate=1e-3, pair=(1.0, 2.0)))
    assert isinstance(built.limit, float)
    assert isinstance(built.inner.pair, tuple)


def test_every_default_survives_a_round_trip_through_yaml(tmp_path):
    config = TrainConfig()
    config.data.test = ["chr1", "no"]  # YAML 1.1 takes a bare no for false
    write_yaml(tmp_path / "config.yaml", to_dict(config))
    assert from_dict(TrainConfig, read_yaml(tmp_path / "config.yaml")) == config


def test_settings_from_before_backbones_knew_attention_still_load(tmp_path):
    """A model folder of then holds no attention and no mlp; with its pattern, the defaults make no difference."""
    saved = to_dict(TrainConfig())
    for name in ("attention", "mlp"):
        del saved["backbone"][name]
    write_yaml(tmp_path / "config.yaml", saved)
    assert from_dict(TrainConfig, read_yaml(tmp_path / "config.yaml")) == TrainConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "f.yaml: cuont is no setting; did you mean count?"),
        ({"inner": {"raet": 1}}, "f.yaml: inner.raet is no setting; did you mean inner.rate?"),
        ({"zzzz": 1}, "f.yaml: zzzz is no setting; there are count, held, inner, limit, on, sizes, text"),
        ({"count": "three"}, "f.yaml: count must be a whole number, not 'three'"),
        ({"count": 1.5}, "f.yaml: count must be a whole number, not 1.5"),
        ({"count": True}, "f.yaml: count must be a whole number, not True"),
        ({"count": None}, "f.yaml: count must be a whole number, not None"),
        ({"on": "yes"}, "f.yaml: on must be true or false, not 'yes'"),
        ({"text": 5}, "f.yaml: text must be text, not 5"),
        ({"limit": "far"}, "f.yaml: limit must be a number or nothing, not 'far'"),
        ({"limit": math.nan}, "f.yaml: limit must be a number or nothing, not nan"),
        ({"held": "chr1"}, "f.yaml: held must be a list or nothing, not 'chr1'"),
        ({"held": ["a", 1]}, "f.yaml: held[1] must be text, not 1"),
        ({"inner": {"pair": [1, 2, 3]}}, "f.yaml: inner.pair must be a list of 2, not [1, 2, 3]"),
        ({"sizes": {"width": 0}}, "f.yaml: sizes: width must be positive"),
        ({"inner": 3}, "f.yaml: inner must be a table of settings, not 3"),
    ],
)
def test_a_mistake_is_named_with_its_place(values, message):
    with pytest.raises(UserError) as error:
        from_dict(Outer, values, where="f.yaml")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "is not valid YAML"), ("- 1", "holds a list"), ("a: !!python/name:os.system", "YAML")],
)
def test_a_file_that_is_no_table_of_plain_values_is_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
