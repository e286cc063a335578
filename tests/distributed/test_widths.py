"""``embedding.dims`` gives features their widths; what it cannot mean is said before any rank."""

import pytest

from stem_torchrec.config.reading import validate
from stem_torchrec.distributed.widths import feature_widths
from stem_torchrec.errors import UserError
from stem_torchrec.nn import MODELS
from stem_torchrec.training.checks import check_settings
from tests.support.steps import SCHEMA, config_of


def test_a_features_own_name_comes_first_then_the_first_pattern_then_dim(tmp_path):
    dims = {"*i*": 16, "i*": 64, "hour": 4}
    config = config_of(tmp_path, embedding={"dims": dims, "dim": 8})
    widths = feature_widths(SCHEMA, config.embedding)
    assert widths == {"user": 8, "history": 16, "item": 16, "tags": 8, "hour": 4}
    assert list(widths) == [feature.name for feature in SCHEMA.sparse]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"usr": 32}, r"embedding\.dims: 'usr' is no id or bag feature.*user, .*mean 'user'"),
        ({"price": 32}, r"embedding\.dims: 'price' is no id or bag feature"),
        ({"x*": 32, "*": 16}, r"embedding\.dims: 'x\*' is no id or bag feature"),
        ({"item": 32}, r"embedding\.dims: history has 8 and item 32, but they share .*'item'"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(tmp_path, dims, message):
    config = config_of(tmp_path, embedding={"dims": dims})
    with pytest.raises(UserError, match=message):
        check_settings(config, 1)


@pytest.mark.parametrize("width", [0, 6, -4, True, "wide", None])
def test_a_width_that_no_table_can_have_is_named(width):
    content = {"run": {"dir": "r"}, "data": {"path": "d"}, "embedding": {"dims": {"user": width}}}
    with pytest.raises(UserError, match=rf"^embedding\.dims\.user: .*found {width!r}$"):
        validate(content)


@pytest.mark.parametrize("name", MODELS)
def test_interactions_need_one_width(tmp_path, name):
    """And have it where ``dims`` gives every feature the same."""
    order = {"esmm": ["like", "share"], "aitm": ["like", "click", "share"]}.get(name)
    model = {"name": name, "expert": "nfwfm", "task_order": order}
    one = config_of(tmp_path, model=model, embedding={"dims": {"*": 12}})
    mixed = config_of(tmp_path, model=model, embedding={"dims": {"user": 12}})
    check_settings(one, 1)
    if "expert" in one.model.without_effect():
        check_settings(mixed, 1)
        return
    with pytest.raises(UserError, match=r"model\.expert: 'nfwfm' .*one embedding dim.*8, 12"):
        check_settings(mixed, 1)
