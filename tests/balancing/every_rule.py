"""The rules that run on the device, each with its usual settings, for tests of all of them."""

from collections.abc import Callable

from stem_torchrec.balancing.rule import Rule
from stem_torchrec.balancing.rules.cagrad import CaGrad
from stem_torchrec.balancing.rules.equal import Equal
from stem_torchrec.balancing.rules.mgda import Mgda
from stem_torchrec.balancing.rules.multi_balance import MultiBalance
from stem_torchrec.balancing.rules.pcgrad import PcGrad
from stem_torchrec.balancing.rules.static import Static

# Each is made for a number of tasks T.
EVERY_RULE: dict[str, Callable[[int], Rule]] = {
    "equal": lambda _: Equal(),
    "static": lambda num_tasks: Static([0.5 + task for task in range(num_tasks)]),
    "multi_balance": lambda _: MultiBalance(),
    "multi_balance@gram": lambda _: MultiBalance(matrix="gram"),
    "mgda": lambda _: Mgda(),
    "mgda@l2": lambda _: Mgda("l2"),
    "mgda@loss": lambda _: Mgda("loss"),
    "mgda@loss+": lambda _: Mgda("loss+"),
    "pcgrad": lambda _: PcGrad(),
    "cagrad": lambda _: CaGrad(),
}
# Rules whose result depends on nothing but which task is which.
SYMMETRIC = [name for name in EVERY_RULE if name not in ("static", "pcgrad")]
