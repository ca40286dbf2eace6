"""ResNet-18 as HAWQ-V3 publishes it (arXiv 2011.10680, ILP.ipynb of its release): 19 layers without first and last.

Each row: mean Hessian trace, squared error of the weights at 8 and at 4 bits, weights, multiplications,
latency on a T4 at 8 and at 4 bits in units of 10 ns.
"""

from __future__ import annotations

from bitswitch_deploy.search.problem import Group, Problem, Row

_LAYERS = (
    (0.06857826, 0.0235, 6.7430, 36864, 115605504, 36189111, 21094404),
    (0.03162379, 0.0125, 3.9691, 36864, 115605504, 36211718, 21092674),
    (0.03298575, 0.0102, 3.3281, 36864, 115605504, 31141909, 21104113),
    (0.01205663, 0.0082, 2.6796, 36864, 115605504, 30454471, 21086851),
    (0.02222431, 0.0145, 4.7277, 73728, 57802752, 19184896, 13642465),
    (0.00596336, 0.0344, 10.5966, 147456, 115605504, 38948934, 19167506),
    (0.06931772, 0.0023, 0.6827, 8192, 6422528, 3341690, 2532183),
    (0.00807129, 0.0287, 9.0942, 147456, 115605504, 38904905, 19148203),
    (0.00372905, 0.0148, 4.8857, 147456, 115605504, 38928590, 19142914),
    (0.00530698, 0.0333, 10.7599, 294912, 57802752, 19134735, 11395316),
    (0.00209011, 0.0682, 21.7546, 589824, 115605504, 34307431, 20556011),
    (0.00737569, 0.0027, 0.8603, 32768, 6422528, 2802354, 1917474),
    (0.00210454, 0.0448, 14.5324, 589824, 115605504, 34313329, 20566918),
    (0.00151197, 0.0336, 10.9651, 589824, 115605504, 34310756, 20566509),
    (0.00158041, 0.0576, 18.7706, 1179648, 57802752, 21117103, 13185102),
    (0.00078146, 0.1130, 36.4044, 2359296, 115605504, 37376585, 22287786),
    (0.00451841, 0.0102, 3.1572, 131072, 6422528, 2896843, 1790088),
    (0.00098745, 0.0947, 29.6994, 2359296, 115605504, 37398187, 22304611),
    (0.00072944, 0.0532, 17.4016, 2359296, 115605504, 37405185, 22286099),
)
_TIED = {4: 6, 9: 11, 14: 16}


def hawq_resnet18(resource: str) -> Problem:
    """The problem at 8 and 4 bits under one budget, halfway between the two uniform widths; 16 groups."""
    members = [(i, _TIED[i]) if i in _TIED else (i,) for i in range(19) if i not in _TIED.values()]
    use = tuple((sum(_use(i, 8, resource) for i in tied), sum(_use(i, 4, resource) for i in tied)) for tied in members)
    high, low = (sum(each[k] for each in use) for k in (0, 1))
    groups = tuple(
        Group(
            layers=tuple(map(str, tied)),
            widths=(8, 4),
            costs=(sum(_LAYERS[i][0] * _LAYERS[i][1] for i in tied), sum(_LAYERS[i][0] * _LAYERS[i][2] for i in tied)),
        )
        for tied in members
    )
    return Problem(groups=groups, rows=(Row(name=resource, use=use, cap=(low + high) // 2),))


def _use(layer: int, bits: int, resource: str) -> int:
    _, _, _, weights, macs, at_eight, at_four = _LAYERS[layer]
    return {"size": bits * weights, "bops": bits**2 * macs, "latency": at_eight if bits == 8 else at_four}[resource]
