"""Second opinion on mappings: walks a loop nest tile by tile and core by core, fetching a tile when it is not held.

Shares no code with `watos_jax.operators`: no closed form, only loops, sets and counters.
"""

from dataclasses import dataclass, field
from itertools import permutations, product
from math import ceil, floor, sqrt


@dataclass
class Count:
    """What a walk adds up: per core, per link, and of the whole die."""

    array: dict = field(default_factory=dict)
    port: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)
    dram: float = 0.0
    hops: float = 0.0
    first: tuple = (0.0, 0.0)
    last: tuple = (0.0, 0.0)

    def add(self, where, key, amount):
        table = getattr(self, where)
        table[key] = table.get(key, 0.0) + amount


def pieces(extent, size):
    """Ranges of the tiles of a dimension."""
    return [range(start, min(start + size, extent)) for start in range(0, extent, size)]


def shares(tile, ways):
    """How a tile is dealt out over an axis: equal shares, the last ones smaller or none."""
    size = ceil(len(tile) / ways)
    return [tile[i * size : (i + 1) * size] for i in range(ways)]


def passes(extent, side):
    return ceil(extent / side) if extent else 0


AXES = {"output": ("rows", "cols"), "weight": ("depth", "cols"), "input": ("rows", "depth")}
STREAM = {"output": "depth", "weight": "rows", "input": "cols"}
TOUCHES = {"A": ("rows", "depth"), "B": ("depth", "cols"), "C": ("rows", "cols")}


def walk(die, dims, sizes, dataflow, result_bytes=2.0):
    """Count everything of one product; of the two orders of the outer loops, the one that moves fewer DRAM bytes.

    Args:
        die: a `watos_jax.Die`, read for its numbers only.
        dims: elements of rows, cols and depth.
        sizes: elements of a tile of each.
        dataflow: a key of `AXES`.
        result_bytes: DRAM bytes per element of the result.
    """
    outer = [name for name in ("rows", "cols", "depth") if name != STREAM[dataflow]]
    walks = [
        _walk(die, dims, sizes, dataflow, (*order, STREAM[dataflow]), result_bytes) for order in permutations(outer)
    ]
    return min(walks, key=lambda count: count.dram)


def _walk(die, dims, sizes, dataflow, order, result_bytes):
    core_rows, core_cols = floor(float(die.core_rows)), floor(float(die.core_cols))
    side = sqrt(float(die.core.num_macs))
    by_row, by_col = AXES[dataflow]
    tiles = {name: pieces(dims[name], sizes[name]) for name in dims}
    count, held, opened, finished = Count(), {}, set(), {}
    number = 0
    for index in product(*(range(len(tiles[name])) for name in order)):
        at = dict(zip(order, index, strict=True))
        tile = {name: tiles[name][at[name]] for name in dims}
        loads, stores = [0.0, {}], [0.0, {}]
        for matrix, names in TOUCHES.items():
            key = tuple(at[name] for name in names)
            if held.get(matrix) == key:
                continue
            if matrix == "C":
                if "C" in held:
                    _store(count, held["C"], tiles, finished, dataflow, core_rows, core_cols, result_bytes, stores)
                if key in opened:
                    _reload(count, tile, dataflow, core_rows, core_cols, loads)
                opened.add(key)
            else:
                _load(count, matrix, tile, dataflow, core_rows, core_cols, loads)
            held[matrix] = key
        if number == 0:
            count.first = _seconds(die, loads)
        for r, c in product(range(core_rows), range(core_cols)):
            mine = {name: len(tile[name]) for name in dims}
            mine[by_row] = len(shares(tile[by_row], core_rows)[r])
            mine[by_col] = len(shares(tile[by_col], core_cols)[c])
            m, n, k = mine["rows"], mine["cols"], mine["depth"]
            if m and n and k:
                m_passes, n_passes = passes(m, side), passes(n, side)
                for _ in range(m_passes):
                    for _ in range(n_passes):
                        count.add("array", (r, c), k + m / m_passes + n / n_passes - 2)
                        count.add("port", (r, c), 2 * k * (m / m_passes + n / n_passes))
                count.add("port", (r, c), 2 * 4 * m * n)
        done = tuple(at[name] for name in TOUCHES["C"])
        finished[done] = finished.get(done, 0) + 1
        count.steps.append((loads, stores))
        number += 1
    stores = [0.0, {}]
    _store(count, held["C"], tiles, finished, dataflow, core_rows, core_cols, result_bytes, stores)
    count.last = _seconds(die, stores)
    return count


def _load(count, matrix, tile, dataflow, core_rows, core_cols, loads):
    names = TOUCHES[matrix]
    size = 2.0 * len(tile[names[0]]) * len(tile[names[1]])
    count.dram += size
    loads[0] += size
    by_row, by_col = AXES[dataflow]
    for r, c in product(range(core_rows), range(core_cols)):
        mine = dict(tile)
        mine[by_row] = shares(tile[by_row], core_rows)[r]
        mine[by_col] = shares(tile[by_col], core_cols)[c]
        count.add("port", (r, c), 2.0 * len(mine[names[0]]) * len(mine[names[1]]))
    # A enters by rows: what each row needs; B by columns
    enters, ways, axis = ("row", core_rows, by_row) if matrix == "A" else ("col", core_cols, by_col)
    other = by_col if matrix == "A" else by_row
    across = core_cols if matrix == "A" else core_rows
    for i in range(ways):
        mine = dict(tile)
        mine[axis] = shares(tile[axis], ways)[i]
        size = 2.0 * len(mine[names[0]]) * len(mine[names[1]])
        count.add("links", (enters, i), size)
        loads[1][enters, i] = loads[1].get((enters, i), 0.0) + size
        others = shares(tile[other], across)
        if other in names:  # each core takes its own piece, the further the more links
            for far, piece in enumerate(others):
                part = dict(mine)
                part[other] = piece
                count.hops += 2.0 * len(part[names[0]]) * len(part[names[1]]) * (far + 1)
        else:
            count.hops += size * sum(bool(len(piece)) for piece in others)


def _store(count, key, tiles, finished, dataflow, core_rows, core_cols, result_bytes, stores):
    rows, cols = (tiles[name][i] for name, i in zip(TOUCHES["C"], key, strict=True))
    complete = finished[key] == len(tiles["depth"])
    size = (result_bytes if complete else 4.0) * len(rows) * len(cols)
    count.dram += size
    stores[0] += size
    for name, amount, hops in _result_links(rows, cols, dataflow, core_rows, core_cols, tiles, 2.0):
        count.add("links", ("out", name), amount)
        count.hops += hops
        stores[1]["out", name] = stores[1].get(("out", name), 0.0) + amount


def _reload(count, tile, dataflow, core_rows, core_cols, loads):
    size = 4.0 * len(tile["rows"]) * len(tile["cols"])
    count.dram += size
    loads[0] += size
    enters = "row" if dataflow == "input" else "col"
    depth = {"depth": [tile["depth"]]}
    for name, amount, hops in _result_links(tile["rows"], tile["cols"], dataflow, core_rows, core_cols, depth, 4.0):
        count.add("links", (enters, name), amount)
        count.hops += hops
        loads[1][enters, name] = loads[1].get((enters, name), 0.0) + amount


def _result_links(rows, cols, dataflow, core_rows, core_cols, tiles, element_bytes):
    # busiest link of each line of cores along which results leave, and byte hops on the whole line
    if dataflow == "output":
        for c, piece in enumerate(shares(cols, core_cols)):
            hops = sum(2.0 * len(part) * len(piece) * (far + 1) for far, part in enumerate(shares(rows, core_rows)))
            yield c, 2.0 * len(rows) * len(piece), hops
        return
    # partial sums are reduced along the line: every link carries all of them, in 32 bits
    whole = tiles["depth"][0]
    if dataflow == "weight":
        line = sum(bool(len(part)) for part in shares(whole, core_rows))
        for c, piece in enumerate(shares(cols, core_cols)):
            yield c, 4.0 * len(rows) * len(piece), 4.0 * len(rows) * len(piece) * line
    else:
        line = sum(bool(len(part)) for part in shares(whole, core_cols))
        for r, piece in enumerate(shares(rows, core_rows)):
            yield r, 4.0 * len(piece) * len(cols), 4.0 * len(piece) * len(cols) * line


def _rates(die):
    clock = float(die.core.clock)
    return float(die.memory.bandwidth) / clock, float(die.core.noc_bytes_per_clock)


def _seconds(die, transfers):
    dram, link = _rates(die)
    return transfers[0] / dram, max(transfers[1].values(), default=0.0) / link


def work(die, count):
    """Cycles of the busiest core: its array, or its SRAM port."""
    port = float(die.core.sram_bytes_per_clock)
    return max(max(count.array[core], count.port[core] / port) for core in count.array)


def cycles(die, count):
    """Cycles of a product whose resources are each busy throughout, but for the first loads and the last stores."""
    dram, link = _rates(die)
    busy = work(die, count)
    moved = max(count.dram / dram, max(count.links.values()) / link)
    return max(max(count.first) + busy + max(count.last), busy / len(count.steps) + moved)


def replayed(die, count):
    """Cycles of a strict double buffer: loads run one step ahead, and every step waits for its loads."""
    each = work(die, count) / len(count.steps)
    loads = [max(_seconds(die, step[0])) for step in count.steps]
    stores = [max(_seconds(die, step[1])) for step in count.steps] + [max(count.last)]
    channel, ends = 0.0, []
    for i, load in enumerate(loads):
        free = ends[i - 2] if i >= 2 else 0.0
        channel = max(channel, free) + load
        start = max(channel, ends[-1] if ends else 0.0)
        ends.append(start + each)
        channel += stores[i]
    return max(ends[-1], channel) + stores[-1]


def footprint(die, dims, sizes, dataflow):
    """Bytes of SRAM on the busiest core: one buffer for an operand that is a single tile, else two."""
    core_rows, core_cols = floor(float(die.core_rows)), floor(float(die.core_cols))
    by_row, by_col = AXES[dataflow]
    share = dict(sizes)
    share[by_row] = ceil(sizes[by_row] / core_rows)
    share[by_col] = ceil(sizes[by_col] / core_cols)
    total = 0.0
    for matrix, names in TOUCHES.items():
        many = any(sizes[name] < dims[name] for name in names)
        bytes_each = 4.0 if matrix == "C" else 2.0
        total += (2.0 if many else 1.0) * bytes_each * share[names[0]] * share[names[1]]
    return total


def walk_attention(die, sizes, rectangles, block, chunk):
    """Count everything of the forward pass of an attention core, and its cycles.

    Args:
        die: a `watos_jax.Die`.
        sizes: units, rows of a unit, query heads in its rows, mean keys, sequence, head_dim and value_dim.
        rectangles: rows and columns of rectangles that the cores are cut into.
        block: rows of a block of queries.
        chunk: keys of a block of keys.
    """
    units, rows, group, keys, sequence, head, value = sizes
    high, wide = (floor(float(n)) // r for n, r in zip((die.core_rows, die.core_cols), rectangles, strict=True))
    met = min(ceil(keys + 0.5 * (block / group - 1)), sequence)
    count, steps = Count(), {}
    start, stop = [0.0, {}], [0.0, {}]
    for unit in range(units):  # down the rectangles first, then across
        down, across = unit % rectangles[0], unit // rectangles[0] % rectangles[1]
        opening = unit < rectangles[0] * rectangles[1]
        fetched, held = 0, None
        for number, query in enumerate(pieces(rows, block)):
            parts = shares(query, high)
            for r, part in enumerate(parts):
                port = (down * high + r,)
                count.add("links", port, 2.0 * head * len(part))
                if opening and number == 0:
                    start[1][port] = start[1].get(port, 0.0) + 2.0 * head * len(part)
            if opening and number == 0:
                start[0] += 2.0 * head * len(query)
            last = number == len(pieces(rows, block)) - 1
            if opening and last:
                stop[0] += 2.0 * value * len(query)
                for r, part in enumerate(parts):
                    stop[1][r + down * high] = stop[1].get(r + down * high, 0.0) + 2.0 * value * len(part)
            count.dram += 2.0 * (head + value) * len(query)
            for key_number, key in enumerate(pieces(met, chunk)):
                fetched += len(key) if held != key_number else 0
                if opening and number == key_number == 0:
                    start[0] += 2.0 * (head + value) * len(key)
                    for r in range(high):
                        port = (down * high + r,)
                        start[1][port] = start[1].get(port, 0.0) + 2.0 * (head + value) * len(key)
                held = key_number
                steps[down, across] = steps.get((down, across), 0) + 1
                for r, part in enumerate(parts):
                    for c, mine in enumerate(shares(part, wide)):
                        _attend(count, die, (down * high + r, across * wide + c), len(mine), len(key), head, value)
            for r, part in enumerate(parts):
                for c, mine in enumerate(shares(part, wide)):
                    core = (down * high + r, across * wide + c)
                    count.add("port", core, 2.0 * (head + value) * len(mine))
        fetched = max(fetched, sequence)  # every key is read at least once
        count.dram += 2.0 * (head + value) * fetched
        for r in range(high):
            count.add("links", (down * high + r,), 2.0 * (head + value) * fetched)
            for c in range(wide):
                count.add("port", (down * high + r, across * wide + c), 2.0 * (head + value) * fetched)
    busy = work(die, count)
    dram, link = _rates(die)
    moved = max(count.dram / dram, max(count.links.values()) / link)
    ends = max(_seconds(die, start)) + max(_seconds(die, stop))
    return count, max(busy + ends, busy / max(steps.values()) + moved)


def _attend(count, die, core, queries, keys, head, value):
    side = sqrt(float(die.core.num_macs))
    if not queries:
        return
    for m, n, k in ((queries, keys, head), (queries, value, keys)):
        m_passes, n_passes = passes(m, side), passes(n, side)
        for _ in range(m_passes * n_passes):
            count.add("array", core, k + m / m_passes + n / n_passes - 2)
            count.add("port", core, 2 * k * (m / m_passes + n / n_passes))
    count.add("port", core, (4 + 4 + 2) * queries * keys + (4 + 4) * queries * value)
