"""All compiled code and record types of the random cut forest.

Owns the arithmetic: random numbers, insertion, deletion, sampling, scores and attributions, one tree at a time. It
never allocates a forest, never checks its input and never raises: `scorer.forest` does that before it calls.
Everything numba compiles is in this one file because numba's cache notices a change in the file of a function, but
not in the files that it imports.

A forest is five arrays; T trees of S samples in `width` coordinates (the columns of the data, padded with zeros to a
multiple of `LANES`). The first axis of each is the tree, so that trees never share a cache line of state and can be
worked on in parallel:

    trees    (T,)               TREE   root and free lists
    nodes    (T, 2S-1)          NODE   records 0..S-2 are internal nodes, S-1..2S-2 are leaves
    corners  (T, 3S-2, width)   f4     rows 2n and 2n+1: low and high corner of the box of internal node n; the last S
    rows: points of leaves slots    (T, S)             SLOT   the reservoir, a max-heap by key

A missing coordinate is NaN and means "no evidence": it lies in every box (gap 0), never widens a box, and at a cut it
follows the heavier child. A box coordinate is NaN while no point below the node has a value there.

Source: Guha, Mishra, Roy, Schrijvers, "Robust random cut forest based anomaly detection on streams", ICML 2016,
sections 2 and 3 (cuts, insertion, deletion); Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
2006 (sampler). The score is the normalised expected inverse depth of the AWS random cut forest library.
"""

# mypy: allow-untyped-defs

import functools
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, config, types
from numba.extending import intrinsic

NODE = np.dtype(
    [
        (
            "range_sum",
            "<f8",
        ),  # sum of the box's side lengths; 0 in a leaf. float64, because it is a sum and a probability's denominator
        ("cut_value", "<f4"),  # left iff x[cut_dim] <= cut_value; float32 as the points
        ("mass", "<i4"),  # points at or below, duplicates counted
        (
            "left",
            "<i2",
        ),  # children and parent: at most 4,095 nodes; -1 is none. In a free record, left links to the next free one
        ("right", "<i2"),
        ("parent", "<i2"),
        ("cut_dim", "<u2"),  # at most 65,535 columns
    ]
)
TREE = np.dtype([("root", "<i4"), ("free_node", "<i4"), ("free_leaf", "<i4"), ("size", "<i4")])  # size: slots in use
SLOT = np.dtype(
    [("key", "<f8"), ("row", "<i8"), ("leaf", "<i4"), ("unused", "<i4")]
)  # key float64: it grows with the row number

LANES = 8  # partial sums in `gap_sum`; fixed, so that results do not depend on the processor's vector width
CHUNK_TREES = 4  # trees whose scores are added before chunks are; fixed, so that results do not depend on the number of threads
NONE = -1
_CERTAIN = 1.0 - 1e-9  # leaves room for rounding
_TINY = 1e-300  # turns 0 / 0 into 0, and is lost in any sum of float32 values that is not zero

MAX_DEPTH = 2047  # internal nodes of the largest tree, and so the longest path
_INVERSE = 1.0 / np.arange(1, MAX_DEPTH + 2)  # _INVERSE[depth] = 1 / (depth + 1): a load is cheaper than a division
_MANY_ROWS = 1024  # rows from which on it pays to go through the boxes of a tree, and not through those of each row
_BATCH = 96  # rows that go down and up a tree together; their paths stay in the first-level cache
_LANE = 3  # numbers that say what a lane of a batch is: a row, the tree that it is in, the tree's root
_RUN = 3  # numbers that say what a run of a tree is: its first row, one past its last, what becomes of that one
_STEP = 4  # boxes of a row that are taken at once on its way up
# _DOWNWARDS[MAX_DEPTH - level + i] = 1 / (level - i + 1): the weights of a level and of those above it, side by side.
_DOWNWARDS = np.concatenate([_INVERSE[::-1], np.zeros(_STEP)])
_WIDTHS = (8, 16, 24, 32, 40, 48)  # numbers of columns that have code of their own, without loops over columns

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)

# No fastmath: NaN is meaningful here, and sums must come out the same on every machine.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": False}
# For what is called from outside; its compiled code holds that of all it calls, and only it is in the cache.
_compiled = njit(**_OPTIONS, cache=True)
# Without reference counts, for functions that make no array: each array argument of a call would be counted up and down, and an
# atomic instruction takes longer than a box.
_uncounted = njit(**_OPTIONS | {"_nrt": False})
_inlined = njit(**_OPTIONS | {"_nrt": False, "forceinline": True})


# --- vector code ------------------------------------------------------------------------------------
#
# The compiler does not turn these loops into vector instructions by itself without permission to reorder sums, and it turns
# the choice of a child into a branch that no processor can predict. Each comes twice: as instructions, and in numpy, the same
# operations in the same order, for runs without compilation.


def _fold(lanes):
    """Sum of LANES partial sums, folded in halves."""
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def _gap_sum_plain(corners, low, high, points, row):
    """`gap_sum` without compilation."""
    with np.errstate(invalid="ignore", over="ignore"):
        x, a, b = points[row], corners[low], corners[high]
        inside = np.where(x < b, x, b)
        inside = np.where(inside > a, inside, a)
        gaps = np.abs(x - inside)
        whole = gaps.size // (2 * LANES) * (2 * LANES)
        sums = np.zeros(2 * LANES, np.float32)
        for part in gaps[:whole].reshape(-1, 2 * LANES):
            sums = sums + part
        lanes = sums[:LANES] + sums[LANES:]
        if whole < gaps.size:
            lanes = lanes + gaps[whole:]
        total = _fold(lanes.astype(np.float64))
    if total < math.inf:
        return total
    point = x.astype(np.float64)
    below, above = a.astype(np.float64) - point, point - b.astype(np.float64)
    gaps = np.where(below > above, below, above)
    return _sum_plain(np.where(gaps > 0.0, gaps, 0.0))


def _sum_plain(values):
    """Sum in float64, LANES partial sums."""
    total = np.zeros(LANES)
    for part in values.reshape(-1, LANES):
        total = total + part
    return _fold(total)


def _range_plain(corners, low, high):
    """Sum of the side lengths of a box."""
    lengths = corners[high].astype(np.float64) - corners[low].astype(np.float64)
    return _sum_plain(np.where(lengths > 0.0, lengths, 0.0))


def _add_gaps_plain(corners, low, high, points, row, weight, sums, at):
    """`add_gaps` without compilation."""
    point = points[row].astype(np.float64)
    above = point - corners[high].astype(np.float64)
    below = corners[low].astype(np.float64) - point
    sums[at] += weight * np.where(above > 0.0, above, 0.0)
    sums[at + 1] += weight * np.where(below > 0.0, below, 0.0)


def _widen_plain(corners, low, high, points, row, target):
    """`widen` without compilation."""
    x, a, b = points[row], corners[low].copy(), corners[high].copy()
    corners[target] = np.where((x < a) | np.isnan(a), x, a)
    corners[target + 1] = np.where((x > b) | np.isnan(b), x, b)
    return _range_plain(corners, target, target + 1)


def _copy_point_plain(corners, target, points, row):
    """`copy_point` without compilation."""
    corners[target] = points[row]


def _join_up_plain(nodes, corners, node, child):
    """`join_up` without compilation."""
    first_leaf = len(nodes) // 2
    while node != NONE:
        record, before = nodes[node], corners[2 * node : 2 * node + 2].copy()
        record["mass"] -= 1
        rows = [(2 * n, 2 * n + 1) if n < first_leaf else (n + first_leaf,) * 2 for n in (record["left"], record["right"])]
        (first_low, first_high), (second_low, second_high) = rows
        a, b = corners[first_low], corners[second_low]
        corners[2 * node] = np.where((a < b) | np.isnan(b), a, b)
        a, b = corners[first_high], corners[second_high]
        corners[2 * node + 1] = np.where((a > b) | np.isnan(b), a, b)
        record["range_sum"] = _range_plain(corners, 2 * node, 2 * node + 1)
        if np.array_equal(before, corners[2 * node : 2 * node + 2], equal_nan=True):
            return int(record["parent"])
        node = int(record["parent"])
    return NONE


def _list_gaps_plain(corners, low, high, points, row, gaps):
    """`list_gaps` without compilation."""
    point = points[row].astype(np.float64)
    below, above = corners[low].astype(np.float64) - point, point - corners[high].astype(np.float64)
    longer = np.where(below > above, below, above)
    gaps[:] = np.where(longer > 0.0, longer, 0.0)


def _measure_path_plain(nodes, corners, points, row, path, lane, count, gaps, totals):
    """`measure_path` without compilation."""
    first_leaf = len(nodes) // 2
    for level in range(count):
        node = path[level + _STEP - 1, lane]
        low, high = (2 * node, 2 * node + 1) if node < first_leaf else (node + first_leaf,) * 2
        gaps[level] = _gap_sum_plain(corners, low, high, points, row)
        totals[level] = nodes[node]["range_sum"] + gaps[level]
    return True


def _pick_child_plain(nodes, node, points, row):
    """`pick_child` without compilation."""
    record = nodes[node]
    return int(record["right"] if points[row, record["cut_dim"]] > record["cut_value"] else record["left"])


def _is_apart_plain(corners, leaf, points, row):
    """`is_apart` without compilation."""
    a, b = corners[leaf], points[row]
    return bool(((a < b) | (a > b)).any())


def _is_whole_plain(corners, row):
    """`is_whole` without compilation."""
    return not np.isnan(corners[row]).any()


def _find_lanes_plain(nodes, points, lanes, count, leaves, depths, path):
    """`find_few` and `find_many` without compilation."""
    for lane in range(count):
        row, tree, at = lanes[lane]
        level = 0
        while at < nodes.shape[1] // 2:
            path[level + _STEP - 1, lane] = at
            at, level = _pick_child_plain(nodes[tree], at, points, row), level + 1
        leaves[lane], depths[lane] = at, level


def _find_leaves_plain(nodes, node, points, first, last, leaves, depths):
    """`find_leaves` without compilation."""
    for k in range(first, last):
        at, level = node, 0
        while at < nodes.shape[0] // 2:
            at, level = _pick_child_plain(nodes, at, points, k), level + 1
        leaves[k], depths[k] = at, level


def _add_path_plain(corners, points, row, path, weights, first, last, leaf, leaf_weight, sums, at):
    """`add_path` without compilation."""
    point, boxes = points[row].astype(np.float64), corners.astype(np.float64)
    high = leaf_weight * np.where(point > boxes[leaf], point - boxes[leaf], 0.0)
    low = leaf_weight * np.where(boxes[leaf] > point, boxes[leaf] - point, 0.0)
    for level in range(first, last):
        above, below = point - boxes[2 * path[level] + 1], boxes[2 * path[level]] - point
        high = high + weights[level] * np.where(above > 0.0, above, 0.0)
        low = low + weights[level] * np.where(below > 0.0, below, 0.0)
    sums[at] += high
    sums[at + 1] += low


def _join_rows_plain(corners, low, points, order, values, target, first, last, range_sum, weight, least, value):
    """`join_rows` without compilation."""
    for k in range(first, last):
        row = order[k]
        gap = _gap_sum_plain(corners, low, low + 1, points, row)
        q = gap / (range_sum + gap + _TINY)
        value[row] = q * weight + (1.0 - q) * values[k]
        order[target], values[target] = row, value[row]
        target += int(gap > least)
    return target


def _climb_plain(nodes, corners, points, lanes, count, path, climbers, weights, value, shares=None, totals=None, tops=None):
    """`climb` and `climb_recorded` without compilation."""
    for lane, lowest in climbers[:count]:
        row, tree, _ = lanes[lane]
        for level in range(lowest, -1, -1):
            node = path[level + _STEP - 1, lane]
            gap = _gap_sum_plain(corners[tree], 2 * node, 2 * node + 1, points, row)
            total = float(nodes[tree, node]["range_sum"]) + gap + _TINY
            q = gap / total
            value[lane] = q * weights[MAX_DEPTH - level] + (1.0 - q) * value[lane]
            if shares is not None:
                shares[lane, level + _STEP - 1], totals[lane, level + _STEP - 1] = q, total
                tops[lane] = level if gap > 0.0 else tops[lane]


_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I1, _I16, _I32, _I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_PACKED, _PAIR, _WIDE = ir.VectorType(_F32, LANES), ir.VectorType(_F32, 2 * LANES), ir.VectorType(_F64, LANES)
_ZEROS = ir.Constant(_WIDE, [0.0] * LANES)


class _Rows:
    """Rows of two-dimensional C-contiguous arrays as pointers; all arrays have the same number of columns, which is in
    `columns` where it is known while the code is made.
    """

    def __init__(self, context, builder, signature, arguments, arrays):
        self.builder = builder
        self.arrays = {i: context.make_array(signature.args[i])(context, builder, arguments[i]) for i in arrays}
        self.width = cgutils.unpack_tuple(builder, self.arrays[arrays[-1]].shape)[-1]
        self.columns = 0

    def by_width(self, emit):
        """The value of `emit()`, whose code is made once for each of `_WIDTHS` and once for any number of columns."""
        builder, width = self.builder, self.width
        blocks = {columns: builder.append_basic_block(f"columns_{columns}") for columns in (0, *_WIDTHS)}
        end = builder.append_basic_block("any_columns")
        switch = builder.switch(width, blocks[0])
        found = []
        for columns, block in blocks.items():
            if columns:
                switch.add_case(ir.Constant(_I64, columns), block)
            builder.position_at_end(block)
            self.columns, self.width = columns, ir.Constant(_I64, columns) if columns else width
            found.append((emit(), builder.block))
            builder.branch(end)
        self.columns, self.width = 0, width
        builder.position_at_end(end)
        value = builder.phi(found[0][0].type)
        for result, block in found:
            value.add_incoming(result, block)
        return value

    def pointer(self, array, row):
        """Address of the row's first value."""
        return self.builder.gep(self.arrays[array].data, [self.builder.mul(row, self.width)])

    def parts(self):
        """Loop over the columns, LANES at a time; yields the index of the first."""
        zero, step = ir.Constant(_I64, 0), ir.Constant(_I64, LANES)
        return cgutils.for_range_slice(self.builder, zero, self.width, step, inc=True)

    def load(self, pointer, index, kind=_PACKED, align=4):
        """LANES values."""
        value = self.builder.load(self.builder.bitcast(self.builder.gep(pointer, [index]), kind.as_pointer()))
        value.align = align
        return value

    def store(self, value, pointer, index, align=4):
        """LANES values."""
        target = self.builder.bitcast(self.builder.gep(pointer, [index]), value.type.as_pointer())
        self.builder.store(value, target).align = align

    def wide(self, value):
        """float64 of float32."""
        return self.builder.fpext(value, _WIDE)

    def larger(self, a, b):
        """The larger; b where either is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def halves(self, value):
        """First and second half of a vector."""
        size = value.type.count // 2
        undefined, mask = ir.Constant(value.type, ir.Undefined), ir.VectorType(_I32, size)
        return [
            self.builder.shuffle_vector(value, undefined, ir.Constant(mask, list(range(first, first + size))))
            for first in (0, size)
        ]

    def total(self, lanes):
        """Sum of the lanes, folded in halves."""
        while lanes.type.count > 1:
            lanes = self.builder.fadd(*self.halves(lanes))
        return self.builder.extract_element(lanes, ir.Constant(_I32, 0))

    def totals(self, parts):
        """`total` of each of several vectors, as one vector: the same additions, for all at once."""
        size, height = parts[0].type.count, parts[0].type.count // 2
        while height:
            blocks = range(0, size, 2 * height)
            first = [block + i for block in blocks for i in range(height)]
            second = [index + height for index in first]
            if len(parts) > 1:
                first, second = ([*half, *(size + index for index in half)] for half in (first, second))
                pairs = list(zip(parts[::2], parts[1::2], strict=True))
            else:
                pairs = [(parts[0], parts[0])]
            masks = [ir.Constant(ir.VectorType(_I32, len(half)), half) for half in (first, second)]
            parts = [self.builder.fadd(*(self.builder.shuffle_vector(a, b, mask) for mask in masks)) for a, b in pairs]
            size, height = parts[0].type.count, height // 2
        return parts[0]

    def gather(self, values):
        """A vector of several values."""
        made = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
        for i, each in enumerate(values):
            made = self.builder.insert_element(made, each, ir.Constant(_I32, i))
        return made

    def spread(self, value, count=LANES):
        """A vector of one value."""
        undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, count), [0] * count))

    def gaps(self, boxes):
        """`gap_sum` of several (low corner, high corner, point), given as pointers: a vector, and which are odd: something is
        missing, or too large for sums in float32. The others' boxes are whole.
        """
        builder, zero, pair = self.builder, ir.Constant(_I64, 0), ir.Constant(_I64, 2 * LANES)

        def distances(box, index, kind):
            # |x - the nearest number in the box|: fewest instructions, and NaN where anything is missing.
            low, high, x = (self.load(pointer, index, kind) for pointer in box)
            inside = builder.select(builder.fcmp_ordered("<", x, high), x, high)
            bits = builder.bitcast(builder.fsub(x, self.larger(inside, low)), ir.VectorType(_I32, kind.count))
            return builder.bitcast(builder.and_(bits, ir.Constant(bits.type, [2**31 - 1] * kind.count)), kind)

        # In float32: twice the lanes, half the conversions.
        if self.columns:
            whole = self.columns // (2 * LANES) * (2 * LANES)
            lanes = []
            for box in boxes:
                parts = [distances(box, ir.Constant(_I64, index), _PAIR) for index in range(0, whole, 2 * LANES)]
                halves = self.halves(functools.reduce(builder.fadd, parts)) if parts else []
                halves += [distances(box, ir.Constant(_I64, whole), _PACKED)] if whole < self.columns else []
                lanes.append(self.wide(functools.reduce(builder.fadd, halves)))
            return self._fold_gaps(boxes, lanes)
        pairs = builder.and_(self.width, ir.Constant(_I64, -2 * LANES))
        sums = [cgutils.alloca_once(builder, _PAIR) for _ in boxes]
        for place in sums:
            builder.store(ir.Constant(_PAIR, [0.0] * (2 * LANES)), place)
        with cgutils.for_range_slice(builder, zero, pairs, pair, inc=True) as (index, _):
            for box, place in zip(boxes, sums, strict=True):
                builder.store(builder.fadd(builder.load(place), distances(box, index, _PAIR)), place)
        lanes = [cgutils.alloca_once(builder, _PACKED) for _ in boxes]
        for place, lane in zip(sums, lanes, strict=True):
            builder.store(builder.fadd(*self.halves(builder.load(place))), lane)
        with builder.if_then(builder.icmp_signed("!=", pairs, self.width)):
            for box, lane in zip(boxes, lanes, strict=True):
                builder.store(builder.fadd(builder.load(lane), distances(box, pairs, _PACKED)), lane)
        return self._fold_gaps(boxes, [self.wide(builder.load(lane)) for lane in lanes])

    def _fold_gaps(self, boxes, lanes):
        """`gaps` from the float64 lanes of each."""
        builder, found = self.builder, self.totals(lanes)
        odd = builder.fcmp_unordered(">=", found, ir.Constant(found.type, [math.inf] * len(boxes)))
        bits = builder.bitcast(odd, ir.IntType(len(boxes)))
        before = builder.block
        with builder.if_then(builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), likely=False):
            full = found
            for i, box in enumerate(boxes):
                full = builder.insert_element(full, builder.call(self._full_gap(), [*box, self.width]), ir.Constant(_I32, i))
            full, after = builder.select(odd, full, found), builder.block
        sums = builder.phi(found.type)
        sums.add_incoming(found, before)
        sums.add_incoming(full, after)
        return sums, odd

    def keep(self, box):
        """A box in registers, where the number of columns is known: for each side the place of each part."""
        if not self.columns:
            return None
        values = [[self.load(pointer, index, kind) for index, kind in self.pieces()] for pointer in box]
        return [[cgutils.alloca_once_value(self.builder, value) for value in side] for side in values]

    def pieces(self):
        """(index, type) of the parts of a row of known length, as long as they can be."""
        whole = self.columns // (2 * LANES) * (2 * LANES)
        found = [(ir.Constant(_I64, index), _PAIR) for index in range(0, whole, 2 * LANES)]
        return found + ([(ir.Constant(_I64, whole), _PACKED)] if whole < self.columns else [])

    def join(self, first, second, target, kept=None):
        """Make `target` the box around two boxes, each (low corner, high corner); `kept`, where given, has the second one and
        then the result. The sum of its side lengths, and whether that changed it.
        """
        builder = self.builder
        total = cgutils.alloca_once_value(builder, _ZEROS)
        changed = cgutils.alloca_once_value(builder, ir.Constant(_I1, 0))

        def join_part(number, index, kind):
            ends = []
            differs = ir.Constant(_I1, 0)
            for side, sign in ((0, "<"), (1, ">")):
                a, old = self.load(first[side], index, kind), self.load(target[side], index, kind)
                b = builder.load(kept[side][number]) if kept else self.load(second[side], index, kind)
                end = builder.select(builder.fcmp_ordered(sign, a, b), a, b)
                end = builder.select(builder.fcmp_unordered("uno", b, b), a, end)
                self.store(end, target[side], index)
                if kept:
                    builder.store(end, kept[side][number])
                whole = ir.VectorType(_I32, kind.count)
                bits = builder.icmp_unsigned("!=", builder.bitcast(end, whole), builder.bitcast(old, whole))
                bits = builder.bitcast(bits, ir.IntType(kind.count))
                differs = builder.or_(differs, builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)))
                ends.append(self.halves(end) if kind is _PAIR else [end])
            for low, high in zip(*ends, strict=True):
                length = self.larger(builder.fsub(self.wide(high), self.wide(low)), _ZEROS)
                builder.store(builder.fadd(builder.load(total), length), total)
            builder.store(builder.or_(builder.load(changed), differs), changed)

        if self.columns:
            for number, (index, kind) in enumerate(self.pieces()):
                join_part(number, index, kind)
        else:
            with self.parts() as (index, _):
                join_part(0, index, _PACKED)
        return self.total(builder.load(total)), builder.load(changed)

    def _full_gap(self):
        """A function that sums one box's gaps in float64, what is missing left out: (low, high, point, columns)."""
        module, name = self.builder.module, "gap_sum_in_full"
        if name in module.globals:
            return module.globals[name]
        pointer = _F32.as_pointer()
        function = ir.Function(module, ir.FunctionType(_F64, [pointer, pointer, pointer, _I64]), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        box, columns = function.args[:3], function.args[3]
        apart = _Rows.__new__(_Rows)
        apart.builder, apart.width = builder, columns
        total = cgutils.alloca_once_value(builder, _ZEROS)
        with apart.parts() as (index, _):
            low, high, x = (apart.wide(apart.load(place, index)) for place in box)
            gap = apart.larger(apart.larger(builder.fsub(low, x), builder.fsub(x, high)), _ZEROS)
            builder.store(builder.fadd(builder.load(total), gap), total)
        builder.ret(apart.total(builder.load(total)))
        return function


@intrinsic
def _gap_sum_vector(typing_context, corners, low, high, points, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 3))
        box = rows.pointer(0, arguments[1]), rows.pointer(0, arguments[2]), rows.pointer(3, arguments[4])
        found, _ = rows.gaps([box])
        return builder.extract_element(found, ir.Constant(_I32, 0))

    return types.float64(corners, types.int64, types.int64, points, types.int64), generate


@intrinsic
def _add_gaps_vector(typing_context, corners, low, high, points, row, weight, sums, at):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 3, 6))
        box_low, box_high = rows.pointer(0, arguments[1]), rows.pointer(0, arguments[2])
        point = rows.pointer(3, arguments[4])
        sums_high = rows.pointer(6, arguments[7])
        sums_low = builder.gep(sums_high, [rows.width])
        first = builder.insert_element(ir.Constant(_WIDE, ir.Undefined), arguments[5], ir.Constant(_I32, 0))
        spread = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        weights = builder.shuffle_vector(first, ir.Constant(_WIDE, ir.Undefined), spread)
        with rows.parts() as (index, _):
            x = rows.wide(rows.load(point, index))
            above = builder.fsub(x, rows.wide(rows.load(box_high, index)))
            below = builder.fsub(rows.wide(rows.load(box_low, index)), x)
            for sums, gap in ((sums_high, above), (sums_low, below)):
                part = builder.fmul(weights, rows.larger(gap, _ZEROS))
                rows.store(builder.fadd(rows.load(sums, index, _WIDE, 8), part), sums, index, 8)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(corners, whole, whole, points, whole, types.float64, sums, whole), generate


class _Records:
    """Nodes as bytes: fields of a record, and the child that a point goes to."""

    def __init__(self, context, builder, signature, arguments, index):
        self.builder = builder
        records = context.make_array(signature.args[index])(context, builder, arguments[index])
        self.start = builder.bitcast(records.data, ir.IntType(8).as_pointer())
        self.nodes = cgutils.unpack_tuple(builder, records.shape)[-1]
        self.first_leaf = builder.lshr(self.nodes, ir.Constant(_I64, 1))

    def tree(self, number):
        """Address of the first record of a tree of a forest."""
        size = self.builder.mul(self.nodes, ir.Constant(_I64, NODE.itemsize))
        return self.builder.gep(self.start, [self.builder.mul(number, size)])

    def field(self, node, name, kind, beyond=None, start=None):
        """A field of a record of the tree that begins at `start`, or what lies `beyond` bytes behind it."""
        offset = ir.Constant(_I64, NODE.fields[name][1])
        offset = offset if beyond is None else self.builder.add(offset, beyond)
        record = self.builder.gep(start or self.start, [self.builder.mul(node, ir.Constant(_I64, NODE.itemsize))])
        value = self.builder.load(self.builder.bitcast(self.builder.gep(record, [offset]), kind.as_pointer()))
        value.align = 1
        return value

    def box(self, rows, corners, node):
        """Corners of a node's box, as pointers."""
        inner = self.builder.icmp_signed("<", node, self.first_leaf)
        low = self.builder.select(inner, self.builder.shl(node, ir.Constant(_I64, 1)), self.builder.add(node, self.first_leaf))
        return rows.pointer(corners, low), rows.pointer(corners, self.builder.add(low, self.builder.zext(inner, _I64)))

    def store(self, node, name, value):
        """Set a field of a record."""
        offset = self.builder.mul(node, ir.Constant(_I64, NODE.itemsize))
        offset = self.builder.add(offset, ir.Constant(_I64, NODE.fields[name][1]))
        place = self.builder.bitcast(self.builder.gep(self.start, [offset]), value.type.as_pointer())
        self.builder.store(value, place).align = 1

    def child(self, node, point, start=None):
        """Child of an internal node for a point with a value in the cut's dimension."""
        dim = self.builder.zext(self.field(node, "cut_dim", _I16, None, start), _I64)
        value = self.builder.load(self.builder.gep(point, [dim]))
        right = self.builder.fcmp_ordered(">", value, self.field(node, "cut_value", _F32, None, start))
        # The right child stands two bytes after the left one.
        beyond = self.builder.shl(self.builder.zext(right, _I64), ir.Constant(_I64, 1))
        return self.builder.zext(self.field(node, "left", _I16, beyond, start), _I64)


@intrinsic
def _widen_vector(typing_context, corners, low, high, points, row, target):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 3))
        box = rows.pointer(0, arguments[1]), rows.pointer(0, arguments[2])
        point, low = rows.pointer(3, arguments[4]), rows.pointer(0, arguments[5])
        return rows.by_width(lambda: rows.join(box, (point, point), (low, builder.gep(low, [rows.width])))[0])

    whole = types.int64
    return types.float64(corners, whole, whole, points, whole, whole), generate


@intrinsic
def _copy_point_vector(typing_context, corners, target, points, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 2))
        target, point = rows.pointer(0, arguments[1]), rows.pointer(2, arguments[3])
        with rows.parts() as (index, _):
            rows.store(rows.load(point, index), target, index)
        return context.get_dummy_value()

    return types.void(corners, types.int64, points, types.int64), generate


@intrinsic
def _list_gaps_vector(typing_context, corners, low, high, points, row, gaps):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 3))
        box_low, box_high = rows.pointer(0, arguments[1]), rows.pointer(0, arguments[2])
        point = rows.pointer(3, arguments[4])
        gaps = context.make_array(signature.args[5])(context, builder, arguments[5]).data
        with rows.parts() as (index, _):
            low, high, x = (rows.wide(rows.load(place, index)) for place in (box_low, box_high, point))
            gap = rows.larger(rows.larger(builder.fsub(low, x), builder.fsub(x, high)), _ZEROS)
            rows.store(gap, gaps, index, 8)
        return context.get_dummy_value()

    return types.void(corners, types.int64, types.int64, points, types.int64, gaps), generate


@intrinsic
def _measure_path_vector(typing_context, nodes, corners, points, row, path, lane, count, gaps, totals):
    def generate(context, builder, signature, arguments):
        records = _Records(context, builder, signature, arguments, 0)
        rows = _Rows(context, builder, signature, arguments, (1, 2))
        path, gaps, totals = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (4, 7, 8))
        path = builder.gep(path, [builder.add(arguments[5], ir.Constant(_I64, (_STEP - 1) * _BATCH))])
        point, zero, step = rows.pointer(2, arguments[3]), ir.Constant(_I64, 0), ir.Constant(_I64, _STEP)

        missing = cgutils.alloca_once_value(builder, ir.Constant(_I1, 0))

        def measure():
            with cgutils.for_range_slice(builder, zero, arguments[6], step, inc=True) as (level, _):
                entry = builder.gep(path, [builder.mul(level, ir.Constant(_I64, _BATCH))])
                places = [builder.gep(entry, [ir.Constant(_I64, i * _BATCH)]) for i in range(_STEP)]
                met = [builder.sext(builder.load(place), _I64) for place in places]
                found, odd = rows.gaps([(*records.box(rows, 1, node), point) for node in met])
                rows.store(found, gaps, level, 8)
                range_sums = rows.gather([records.field(node, "range_sum", _F64) for node in met])
                rows.store(builder.fadd(range_sums, found), totals, level, 8)
                bits = builder.bitcast(odd, ir.IntType(_STEP))
                bits = builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))
                builder.store(builder.or_(builder.load(missing), bits), missing)
            return zero

        rows.by_width(measure)
        return builder.load(missing)

    whole = types.int64
    return types.boolean(nodes, corners, points, whole, path, whole, whole, gaps, totals), generate


@intrinsic
def _join_up_vector(typing_context, nodes, corners, node, child):
    def generate(context, builder, signature, arguments):
        records = _Records(context, builder, signature, arguments, 0)
        rows = _Rows(context, builder, signature, arguments, (1,))
        none = ir.Constant(_I64, NONE)
        at, below = cgutils.alloca_once(builder, _I64), cgutils.alloca_once(builder, _I64)

        def box(node):
            return records.box(rows, 1, node)

        def climb():
            builder.store(arguments[2], at)
            builder.store(arguments[3], below)
            kept = rows.keep(box(arguments[3]))
            head, end = builder.append_basic_block("up"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("!=", arguments[2], none), head, end)
            builder.position_at_end(head)
            node, child = builder.load(at), builder.load(below)
            left, right = (builder.zext(records.field(node, side, _I16), _I64) for side in ("left", "right"))
            other = builder.xor(builder.xor(left, right), child)
            total, changed = rows.join(box(other), box(child), box(node), kept)
            records.store(node, "range_sum", total)
            records.store(node, "mass", builder.sub(records.field(node, "mass", _I32), ir.Constant(_I32, 1)))
            parent = builder.sext(records.field(node, "parent", _I16), _I64)
            builder.store(parent, at)
            builder.store(node, below)
            builder.cbranch(builder.and_(changed, builder.icmp_signed("!=", parent, none)), head, end)
            builder.position_at_end(end)
            return builder.load(at)

        return rows.by_width(climb)

    return types.int64(nodes, corners, types.int64, types.int64), generate


@intrinsic
def _pick_child_vector(typing_context, nodes, node, points, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (2,))
        records = _Records(context, builder, signature, arguments, 0)
        return records.child(arguments[1], rows.pointer(2, arguments[3]))

    return types.int64(nodes, types.int64, points, types.int64), generate


def _find_group(group, with_lanes):
    """The loop that takes `group` rows at a time down a tree, or each down its own: their loads do not wait for each other."""

    def make(context, builder, signature, arguments):
        def data(i):
            return context.make_array(signature.args[i])(context, builder, arguments[i]).data

        zero, one = ir.Constant(_I64, 0), ir.Constant(_I64, 1)
        records = _Records(context, builder, signature, arguments, 0)
        rows = _Rows(context, builder, signature, arguments, (1 if with_lanes else 2,))
        if with_lanes:
            first, last, leaves, depths = zero, arguments[3], data(4), data(5)
        else:
            first, last, leaves, depths = arguments[3], arguments[4], data(5), data(6)
        final = builder.sub(last, one)
        step = cgutils.alloca_once(builder, _I64)
        at = [cgutils.alloca_once(builder, _I64) for _ in range(group)]
        level = [cgutils.alloca_once(builder, _I64) for _ in range(group)]
        with cgutils.for_range_slice(builder, first, last, ir.Constant(_I64, group), inc=True) as (k, _):
            # Past the last row its like are taken, and what they find is what it finds.
            places = [builder.add(k, ir.Constant(_I64, i)) for i in range(group)]
            places = [builder.select(builder.icmp_signed("<", place, final), place, final) for place in places]
            if with_lanes:
                lanes = [builder.gep(data(2), [builder.mul(place, ir.Constant(_I64, _LANE))]) for place in places]
                numbers, trees, roots = (
                    [builder.load(builder.gep(lane, [ir.Constant(_I64, i)])) for lane in lanes] for i in range(_LANE)
                )
                starts = [records.tree(tree) for tree in trees]
                points = [rows.pointer(1, row) for row in numbers]
                here = builder.gep(data(6), [builder.add(k, ir.Constant(_I64, (_STEP - 1) * _BATCH))])
                entries = [builder.gep(here, [ir.Constant(_I64, i)]) for i in range(group)]
            else:
                roots, starts = [arguments[1]] * group, [records.start] * group
                points = [rows.pointer(2, place) for place in places]
            for i in range(group):
                builder.store(roots[i], at[i])
                builder.store(zero, level[i])
            builder.store(zero, step)
            head, end = builder.append_basic_block("level"), builder.append_basic_block("leaves")
            more = ir.Constant(_I1, 0)
            for root in roots:
                more = builder.or_(more, builder.icmp_signed("<", root, records.first_leaf))
            builder.cbranch(more, head, end)
            builder.position_at_end(head)
            more, offset = ir.Constant(_I1, 0), builder.load(step)
            for i in range(group):
                current = builder.load(at[i])
                if with_lanes:
                    builder.store(builder.trunc(current, _I32), builder.gep(entries[i], [offset]))
                inner = builder.icmp_signed("<", current, records.first_leaf)
                found = builder.select(inner, records.child(current, points[i], starts[i]), current)
                builder.store(found, at[i])
                builder.store(builder.add(builder.load(level[i]), builder.zext(inner, _I64)), level[i])
                more = builder.or_(more, builder.icmp_signed("<", found, records.first_leaf))
            builder.store(builder.add(offset, ir.Constant(_I64, _BATCH)), step)
            builder.cbranch(more, head, end)
            builder.position_at_end(end)
            for i in range(group):
                builder.store(builder.trunc(builder.load(at[i]), _I32), builder.gep(leaves, [places[i]]))
                builder.store(builder.trunc(builder.load(level[i]), _I32), builder.gep(depths, [places[i]]))
        return context.get_dummy_value()

    whole = types.int64
    if with_lanes:

        @intrinsic
        def find(typing_context, nodes, points, lanes, count, leaves, depths, path):
            return types.void(nodes, points, lanes, whole, leaves, depths, path), make

    else:

        @intrinsic
        def find(typing_context, nodes, node, points, first, last, leaves, depths):
            return types.void(nodes, whole, points, whole, whole, leaves, depths), make

    return find


_find_few_vector, _find_many_vector, _find_leaves_vector = _find_group(4, True), _find_group(12, True), _find_group(12, False)


@intrinsic
def _is_apart_vector(typing_context, corners, leaf, points, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 2))
        known, point = rows.pointer(0, arguments[1]), rows.pointer(2, arguments[3])
        apart = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(_I1, LANES), [0] * LANES))
        with rows.parts() as (index, _):
            differs = builder.fcmp_ordered("!=", rows.load(known, index), rows.load(point, index))
            builder.store(builder.or_(builder.load(apart), differs), apart)
        bits = builder.bitcast(builder.load(apart), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(corners, types.int64, points, types.int64), generate


@intrinsic
def _is_whole_vector(typing_context, corners, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0,))
        corner = rows.pointer(0, arguments[1])
        missing = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(_I1, LANES), [0] * LANES))
        with rows.parts() as (index, _):
            value = rows.load(corner, index)
            builder.store(builder.or_(builder.load(missing), builder.fcmp_unordered("uno", value, value)), missing)
        bits = builder.bitcast(builder.load(missing), ir.IntType(LANES))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, 0))

    return types.boolean(corners, types.int64), generate


@intrinsic
def _add_path_vector(typing_context, corners, points, row, path, weights, first, last, leaf, leaf_weight, sums, at):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 1, 9))
        point, sums_high = rows.pointer(1, arguments[2]), rows.pointer(9, arguments[10])
        path, weights = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (3, 4))
        one = ir.Constant(_I64, 1)
        leaf_point, leaf_weight = rows.pointer(0, arguments[7]), rows.spread(arguments[8])
        several = max(_WIDTHS) // LANES
        highs, lows = ([cgutils.alloca_once(builder, _WIDE) for _ in range(several)] for _ in range(2))

        def add_columns(indices):
            # Several groups of columns side by side: sums stay in registers.
            values = [rows.wide(rows.load(point, index)) for index in indices]
            for index, x, high, low in zip(indices, values, highs, lows, strict=False):
                known = rows.wide(rows.load(leaf_point, index))
                builder.store(builder.fmul(leaf_weight, rows.larger(builder.fsub(x, known), _ZEROS)), high)
                builder.store(builder.fmul(leaf_weight, rows.larger(builder.fsub(known, x), _ZEROS)), low)
            with cgutils.for_range_slice(builder, arguments[5], arguments[6], one, inc=True) as (level, _):
                node = builder.sext(builder.load(builder.gep(path, [level])), _I64)
                box_low = rows.pointer(0, builder.shl(node, one))
                box_high = builder.gep(box_low, [rows.width])
                weight = rows.spread(builder.load(builder.gep(weights, [level])))
                for index, x, high, low in zip(indices, values, highs, lows, strict=False):
                    above = builder.fsub(x, rows.wide(rows.load(box_high, index)))
                    below = builder.fsub(rows.wide(rows.load(box_low, index)), x)
                    for total, gap in ((high, above), (low, below)):
                        part = builder.fmul(weight, rows.larger(gap, _ZEROS))
                        builder.store(builder.fadd(builder.load(total), part), total)
            for index, high, low in zip(indices, highs, lows, strict=False):
                for pointer, total in ((sums_high, high), (builder.gep(sums_high, [rows.width]), low)):
                    rows.store(builder.fadd(rows.load(pointer, index, _WIDE, 8), builder.load(total)), pointer, index, 8)

        def add():
            if rows.columns:
                add_columns([ir.Constant(_I64, index) for index in range(0, rows.columns, LANES)])
            else:
                with rows.parts() as (index, _):
                    add_columns([index])
            return ir.Constant(_I64, 0)

        rows.by_width(add)
        return context.get_dummy_value()

    whole = types.int64
    given = corners, points, whole, path, weights, whole, whole, whole, types.float64, sums, whole
    return types.void(*given), generate


@intrinsic
def _touch_vector(typing_context, array):
    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        size = builder.mul(view.nitems, view.itemsize)
        start = builder.bitcast(view.data, ir.IntType(8).as_pointer())
        seen = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(8), 0))
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), size, ir.Constant(_I64, 64), inc=True) as (offset, _):
            builder.store(builder.xor(builder.load(seen), builder.load(builder.gep(start, [offset]))), seen)
        return builder.zext(builder.load(seen), _I64)

    return types.int64(array), generate


def _climb_group(recorded):
    """The loop that takes rows up the tree, _STEP boxes at a time. Those are asked side by side, so that nothing waits for
    anything but the value itself; what lies above the root, or above a box that holds the row, leaves the value as it is.
    """

    def make(context, builder, signature, arguments):
        records = _Records(context, builder, signature, arguments, 0)
        rows = _Rows(context, builder, signature, arguments, (1, 2))
        lanes, path, climbers, weights, value = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (3, 5, 6, 7, 8)
        )
        corners_of_tree = cgutils.unpack_tuple(builder, rows.arrays[1].shape)[1]
        zero, one, step = (ir.Constant(_I64, number) for number in (0, 1, _STEP))
        numbers, wholes = ir.VectorType(_F64, _STEP), ir.VectorType(_I64, _STEP)
        counted, kept = (cgutils.alloca_once(builder, _I64) for _ in range(2))

        def constant(number):
            return ir.Constant(numbers, [number] * _STEP)

        def climb():
            builder.store(arguments[4], counted)
            head, end = builder.append_basic_block("up"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed(">", arguments[4], zero), head, end)
            builder.position_at_end(head)
            builder.store(zero, kept)
            with cgutils.for_range_slice(builder, zero, builder.load(counted), one, inc=True) as (i, _):
                pair = builder.gep(climbers, [builder.shl(i, one)])
                lane, level = builder.load(pair), builder.load(builder.gep(pair, [one]))
                goes_on = builder.zext(take_step(lane, level), _I64)
                place = builder.load(kept)
                pair = builder.gep(climbers, [builder.shl(place, one)])
                builder.store(lane, pair)
                builder.store(builder.sub(level, step), builder.gep(pair, [one]))
                builder.store(builder.add(place, goes_on), kept)
            builder.store(builder.load(kept), counted)
            builder.cbranch(builder.icmp_signed(">", builder.load(kept), zero), head, end)
            builder.position_at_end(end)
            return zero

        def take_step(lane, level):
            # Levels above the root are in the path too, as any node: they count for nothing.
            entry = builder.gep(path, [builder.add(builder.mul(level, ir.Constant(_I64, _BATCH)), lane)])
            places = [builder.gep(entry, [ir.Constant(_I64, (_STEP - 1 - i) * _BATCH)]) for i in range(_STEP)]
            met = [builder.sext(builder.load(place), _I64) for place in places]
            there = builder.icmp_signed(">=", rows.spread(level, _STEP), ir.Constant(wholes, list(range(_STEP))))
            given = builder.gep(lanes, [builder.mul(lane, ir.Constant(_I64, _LANE))])
            row, tree = builder.load(given), builder.load(builder.gep(given, [one]))
            start, first = records.tree(tree), builder.mul(tree, corners_of_tree)
            lows = [rows.pointer(1, builder.add(first, builder.shl(node, one))) for node in met]
            point = rows.pointer(2, row)
            gap, odd = rows.gaps([(low, builder.gep(low, [rows.width]), point) for low in lows])
            gap = builder.select(there, gap, constant(0.0))
            range_sum = rows.gather([records.field(node, "range_sum", _F64, None, start) for node in met])
            total = builder.fadd(builder.fadd(range_sum, gap), constant(_TINY))
            q = builder.fdiv(gap, total)
            weight = rows.load(weights, builder.sub(ir.Constant(_I64, MAX_DEPTH), level), numbers, 8)
            gained, rest = builder.fmul(q, weight), builder.fsub(constant(1.0), q)
            place = builder.gep(value, [lane])
            current = builder.load(place)
            for i in range(_STEP):
                share, left = (builder.extract_element(each, ir.Constant(_I32, i)) for each in (gained, rest))
                current = builder.fadd(share, builder.fmul(left, current))
            builder.store(current, place)
            outside = builder.fcmp_ordered(">", gap, constant(0.0))
            if recorded:
                keep_record(lane, level, q, total, outside)
            flags = builder.bitcast(builder.or_(outside, odd), ir.IntType(_STEP))
            not_held = builder.icmp_unsigned(">=", flags, ir.Constant(flags.type, 2 ** (_STEP - 1)))
            return builder.and_(not_held, builder.icmp_signed(">=", level, step))

        def keep_record(lane, level, q, total, outside):
            tables = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (9, 10)]
            backwards = ir.Constant(ir.VectorType(_I32, _STEP), list(range(_STEP))[::-1])
            for table, numbers_met in zip(tables, (q, total), strict=True):
                width = cgutils.unpack_tuple(builder, table.shape)[1]
                in_order = builder.shuffle_vector(numbers_met, numbers_met, backwards)
                rows.store(in_order, table.data, builder.add(builder.mul(lane, width), level), 8)
            # The highest box that does not hold the row.
            bits = builder.zext(builder.bitcast(outside, ir.IntType(_STEP)), _I64)
            place = builder.gep(context.make_array(signature.args[11])(context, builder, arguments[11]).data, [lane])
            distance = builder.sub(ir.Constant(_I64, 63), builder.ctlz(bits, ir.Constant(_I1, 0)))
            highest = builder.trunc(builder.sub(level, distance), _I32)
            some = builder.icmp_unsigned("!=", bits, zero)
            builder.store(builder.select(some, highest, builder.load(place)), place)

        rows.by_width(climb)
        return context.get_dummy_value()

    return make


@intrinsic
def _climb_vector(typing_context, nodes, corners, points, lanes, count, path, climbers, weights, value):
    whole = types.int64
    return types.void(nodes, corners, points, lanes, whole, path, climbers, weights, value), _climb_group(False)


@intrinsic
def _climb_recorded_vector(
    typing_context, nodes, corners, points, lanes, count, path, climbers, weights, value, shares, totals, tops
):
    whole = types.int64
    given = nodes, corners, points, lanes, whole, path, climbers, weights, value, shares, totals, tops
    return types.void(*given), _climb_group(True)


@intrinsic
def _join_rows_vector(
    typing_context, corners, low, points, order, values, target, first, last, range_sum, weight, least, value
):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 2))
        order, values, value = (context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (3, 4, 11))
        value_shape = cgutils.unpack_tuple(
            builder, context.make_array(signature.args[11])(context, builder, arguments[11]).shape
        )
        lanes, one = range(LANES), ir.Constant(_I64, 1)
        nowhere = builder.sub(value_shape[0], one)
        low = rows.pointer(0, arguments[1])
        final, group = builder.sub(arguments[7], one), ir.Constant(_I64, LANES)
        range_sums, weights, leasts = (rows.spread(arguments[i]) for i in (8, 9, 10))
        tiny, ones = (ir.Constant(_WIDE, [number] * LANES) for number in (_TINY, 1.0))
        place, found = cgutils.alloca_once(builder, _I64), cgutils.alloca_once(builder, _WIDE)
        builder.store(arguments[5], place)

        def join():
            with cgutils.for_range_slice(builder, arguments[6], arguments[7], group, inc=True) as (k, _):
                places = [builder.add(k, ir.Constant(_I64, i)) for i in lanes]
                there = [builder.icmp_signed("<", each, arguments[7]) for each in places]
                numbers = [
                    builder.load(builder.gep(order, [builder.select(is_there, each, final)]))
                    for is_there, each in zip(there, places, strict=True)
                ]
                wide_numbers = [builder.sext(row, _I64) for row in numbers]
                high = builder.gep(low, [rows.width])
                gap, _ = rows.gaps([(low, high, rows.pointer(2, row)) for row in wide_numbers])
                q = builder.fdiv(gap, builder.fadd(builder.fadd(range_sums, gap), tiny))
                kept = builder.fmul(builder.fsub(ones, q), rows.load(values, k, _WIDE, 8))
                builder.store(builder.fadd(builder.fmul(q, weights), kept), found)
                flags = builder.zext(builder.bitcast(builder.fcmp_ordered(">", gap, leasts), ir.IntType(LANES)), _I64)
                left = builder.sub(arguments[7], k)
                partly = builder.sub(builder.shl(one, left), one)
                mask = builder.select(builder.icmp_signed("<", left, group), partly, ir.Constant(_I64, 2**LANES - 1))
                flags = builder.and_(flags, mask)
                target = builder.load(place)
                results = builder.bitcast(found, _F64.as_pointer())
                for i in lanes:
                    result = builder.load(builder.gep(results, [ir.Constant(_I64, i)]))
                    builder.store(numbers[i], builder.gep(order, [target]))
                    builder.store(result, builder.gep(values, [target]))
                    builder.store(result, builder.gep(value, [builder.select(there[i], wide_numbers[i], nowhere)]))
                    flag = builder.and_(builder.lshr(flags, ir.Constant(_I64, i)), one)
                    target = builder.add(target, flag)
                builder.store(target, place)
            return builder.load(place)

        return rows.by_width(join)

    whole, number = types.int64, types.float64
    given = corners, whole, points, order, values, whole, whole, whole, number, number, number, value
    return types.int64(*given), generate


if config.DISABLE_JIT:  # type: ignore[attr-defined]
    gap_sum, add_gaps, pick_child = _gap_sum_plain, _add_gaps_plain, _pick_child_plain
    widen, copy_point, join_up = _widen_plain, _copy_point_plain, _join_up_plain
    list_gaps, measure_path = _list_gaps_plain, _measure_path_plain
    is_apart, is_whole = _is_apart_plain, _is_whole_plain
    find_few, find_many, find_leaves = _find_lanes_plain, _find_lanes_plain, _find_leaves_plain
    add_path, climb, climb_recorded, join_rows = _add_path_plain, _climb_plain, _climb_plain, _join_rows_plain

    def touch(array):
        """Nothing: there is no cache to fill."""
        return 0

else:

    @_inlined
    def gap_sum(corners, low, high, points, row):
        """Sum of the gaps between points[row] and the box with corners in rows `low` and `high`; 0 inside.

        sum over i of max(corners[low, i] - points[row, i], points[row, i] - corners[high, i], 0): in float32 in 2 * LANES
        partial sums, halved, then the columns that are left over, folded in halves in float64. If something is missing (NaN
        on either side adds 0) or does not fit, in float64 in LANES partial sums. Both arrays are float32, C-contiguous, with
        the same number of columns, a multiple of LANES.
        """
        return _gap_sum_vector(corners, low, high, points, row)

    @_inlined
    def add_gaps(corners, low, high, points, row, weight, sums, at):
        """sums[at] += weight * gap above the box, sums[at + 1] += weight * gap below it; float64. Modified in place."""
        _add_gaps_vector(corners, low, high, points, row, weight, sums, at)

    @_uncounted
    def widen(corners, low, high, points, row, target):
        """Set rows `target` and `target` + 1 to the box in rows `low` and `high`, grown to hold the point; NaN is ignored where
        the other side has a value. Returns the sum of its side lengths. Modified in place.
        """
        return _widen_vector(corners, low, high, points, row, target)

    @_inlined
    def copy_point(corners, target, points, row):
        """corners[target] = points[row]."""
        _copy_point_vector(corners, target, points, row)

    @_uncounted
    def join_up(nodes, corners, node, child):
        """Take one from the mass of `node`, set its box to the union of its children's and its range sum to match, then the
        same for its ancestors, until a box does not change; `child`, one of the children, has changed. Returns the next
        ancestor, or NONE. Modified in place.
        """
        return _join_up_vector(nodes, corners, node, child)

    @_inlined
    def list_gaps(corners, low, high, points, row, gaps):
        """gaps[i] (float64) = gap between points[row, i] and the box, 0 inside and where something is missing."""
        _list_gaps_vector(corners, low, high, points, row, gaps)

    @_uncounted
    def measure_path(nodes, corners, points, row, path, lane, count, gaps, totals):
        """gaps[level] (float64) = `gap_sum` of the point and the box of the node path[level + _STEP - 1, lane], totals[level]
        that and its range sum, for the first `count` levels. Up to _STEP - 1 more are measured, which the path must have, as
        any node. False if nothing is missing on either side. Output modified in place.
        """
        return _measure_path_vector(nodes, corners, points, row, path, lane, count, gaps, totals)

    @_inlined
    def pick_child(nodes, node, points, row):
        """The child of an internal node that a point with a value in the cut's dimension belongs to, without a branch."""
        return _pick_child_vector(nodes, node, points, row)

    @_inlined
    def is_apart(corners, leaf, points, row):
        """Whether corners[leaf] and points[row] differ in a coordinate that both have: whether their gap sum is above 0."""
        return _is_apart_vector(corners, leaf, points, row)

    @_inlined
    def is_whole(corners, row):
        """Whether a corner has a value in every coordinate."""
        return _is_whole_vector(corners, row)

    @_inlined
    def find_few(nodes, points, lanes, count, leaves, depths, path):
        """leaves[lane], depths[lane] (int32) for the first `count` of `lanes`, and the internal nodes on the way in
        path[_STEP - 1 :, lane]. lanes (int64): number of a row without a missing value, of a tree, and its root. `nodes` are
        those of the forest. Output modified in place.
        """
        _find_few_vector(nodes, points, lanes, count, leaves, depths, path)

    @_inlined
    def find_many(nodes, points, lanes, count, leaves, depths, path):
        """`find_few`, faster from some five rows on."""
        _find_many_vector(nodes, points, lanes, count, leaves, depths, path)

    @_inlined
    def find_leaves(nodes, node, points, first, last, leaves, depths):
        """leaves[k], depths[k] (int32) of the rows first..last-1, none with a missing value, below the node of one tree. Output
        modified in place.
        """
        _find_leaves_vector(nodes, node, points, first, last, leaves, depths)

    @_inlined
    def add_path(corners, points, row, path, weights, first, last, leaf, leaf_weight, sums, at):
        """`add_gaps` for the boxes of the internal nodes path[first:last] (int32), each with its weight (float64), and for the
        point in row `leaf` of `corners` with its own; their sum is added at once.
        """
        _add_path_vector(corners, points, row, path, weights, first, last, leaf, leaf_weight, sums, at)

    @_uncounted
    def touch(array):
        """Read an array from end to end, so that what is asked for here and there later is in the cache: memory is read in
        order many times faster than here and there.
        """
        return _touch_vector(array)

    @_uncounted
    def climb(nodes, corners, points, lanes, count, path, climbers, weights, value):
        """value[lane] from that of the leaf to that of the root, for the `count` pairs of lane and lowest level in `climbers`
        (int64), with lanes and paths as of `find_few`, nodes and corners of the forest; `weights` is _DOWNWARDS. Some boxes of
        each lane, then some more of each that is not held by the last one: no branch depends on a single row. Modified in
        place.
        """
        _climb_vector(nodes, corners, points, lanes, count, path, climbers, weights, value)

    @_uncounted
    def climb_recorded(nodes, corners, points, lanes, count, path, climbers, weights, value, shares, totals, tops):
        """`climb` that keeps what it met: q and R + E of level l in shares and totals[lane, l + _STEP - 1], in tops[lane] the
        highest level, if any, whose box does not hold the row.
        """
        _climb_recorded_vector(nodes, corners, points, lanes, count, path, climbers, weights, value, shares, totals, tops)

    @_uncounted
    def join_rows(corners, low, points, order, values, target, first, last, range_sum, weight, least, value):
        """value[row] from that of the child to that of a node whose box begins in row `low`, for the rows order[first:last],
        whose values so far are values[first:last]. Those with a gap above `least` are moved to order[target:] and
        values[target:], target <= first; returns the end of them. `order` must have one entry more behind the list, `values`
        LANES, that may be overwritten, and so may the last of `value`.
        """
        return _join_rows_vector(corners, low, points, order, values, target, first, last, range_sum, weight, least, value)


# --- random numbers --------------------------------------------------------------------------------


@_uncounted
def _mix(z):
    """Finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@_uncounted
def random_stream(seed, tree, row):
    """Key (uint64) of the random numbers that `row` uses in `tree`: a pure function of its arguments, so nothing has
    to be saved.
    """
    key = _mix(np.uint64(seed) + _GOLDEN)
    key = _mix(key + np.uint64(tree + 1) * _GOLDEN)
    return _mix(key + np.uint64(row + 1) * _GOLDEN)


@_uncounted
def uniform(stream, draw):
    """The `draw`-th number of a stream, float64 in the open interval (0, 1)."""
    return (np.float64(_mix(stream + np.uint64(draw + 1) * _GOLDEN) >> _S11) + 0.5) * 2.0**-53


# --- the tree --------------------------------------------------------------------------------------


@_uncounted
def clear_tree(tree, nodes):
    """Empty the tree and thread all its records on the two free lists. Modified in place."""
    first_leaf = nodes.shape[0] // 2
    for i in range(nodes.shape[0]):
        nodes[i]["left"] = i + 1
        nodes[i]["right"] = NONE
        nodes[i]["parent"] = NONE
        nodes[i]["mass"] = 0
        nodes[i]["range_sum"] = 0.0
    nodes[first_leaf - 1]["left"] = NONE
    nodes[nodes.shape[0] - 1]["left"] = NONE
    tree["root"] = NONE
    tree["free_node"] = 0
    tree["free_leaf"] = first_leaf
    tree["size"] = 0


@_uncounted
def _low_row(nodes, node):
    """Row of `corners` with the low corner of the node's box; a leaf's box is its point."""
    first_leaf = nodes.shape[0] // 2
    return 2 * node if node < first_leaf else node + first_leaf


@_uncounted
def _high_row(nodes, node):
    """Row of `corners` with the high corner of the node's box."""
    first_leaf = nodes.shape[0] // 2
    return 2 * node + 1 if node < first_leaf else node + first_leaf


@_uncounted
def _child(nodes, node, points, row):
    """The child that the point belongs to; a missing coordinate follows the heavier child, the left one when they are equal."""
    value = points[row, nodes[node]["cut_dim"]]
    cut = nodes[node]["cut_value"]
    left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
    if value != value:
        return left if nodes[left]["mass"] >= nodes[right]["mass"] else right
    return left if value <= cut else right


@_uncounted
def _place_cut(corners, low, high, points, row, offset, gaps):
    """Cut that separates the point from the box: `offset` in [0, sum of gaps) is a place in the gaps laid end to end.

    Returns (dimension, value) with value in [point, low) or [high, point): "left iff x <= value" then holds for
    exactly one side. `gaps` (width,) float64 is scratch.
    """
    list_gaps(corners, low, high, points, row, gaps)
    # To the end, without a branch: where the place lies, no processor can guess.
    dim, within, left = 0, 0.0, 1
    for i in range(points.shape[1]):
        gap = gaps[np.uint64(i)]
        taken = left & int(gap > 0.0)
        dim, within = (i if taken else dim), (offset if taken else within)
        left &= int(not offset < gap)
        offset -= gap
    # When rounding leaves an offset past the last gap, the last gap is cut at its far end.
    x, a, b = points[row, dim], corners[low, dim], corners[high, dim]
    start, end = (x, a) if x < a else (b, x)
    value = np.float32(np.float64(start) + within)
    if value >= end:
        value = np.nextafter(end, start)
    if value < start:
        value = start
    return dim, value


@_uncounted
def _missing_dim(corners, leaf_row, points, row):
    """First dimension in which exactly one of leaf and point is missing; NONE if there is no such dimension."""
    for i in range(points.shape[1]):
        if (corners[leaf_row, i] != corners[leaf_row, i]) != (points[row, i] != points[row, i]):
            return i
    return NONE


@_uncounted
def _splice(tree, nodes, corners, node, points, row, dim, value):
    """Put a new internal node with cut (dim, value) above `node`, the point in a new leaf beside it. Returns the
    leaf. In place.
    """
    first_leaf = nodes.shape[0] // 2
    above = int(tree["free_node"])
    leaf = int(tree["free_leaf"])
    tree["free_node"] = nodes[above]["left"]
    tree["free_leaf"] = nodes[leaf]["left"]
    parent = int(nodes[node]["parent"])
    if parent == NONE:
        tree["root"] = above
    elif nodes[parent]["left"] == node:
        nodes[parent]["left"] = above
    else:
        nodes[parent]["right"] = above
    copy_point(corners, leaf + first_leaf, points, row)
    nodes[leaf]["mass"] = 1
    nodes[leaf]["left"] = NONE
    nodes[leaf]["parent"] = above
    nodes[node]["parent"] = above
    goes_left = points[row, dim] <= value
    nodes[above]["left"] = leaf if goes_left else node
    nodes[above]["right"] = node if goes_left else leaf
    nodes[above]["parent"] = parent
    nodes[above]["cut_dim"] = dim
    nodes[above]["cut_value"] = value
    nodes[above]["mass"] = nodes[node]["mass"] + 1
    nodes[above]["range_sum"] = widen(corners, _low_row(nodes, node), _high_row(nodes, node), points, row, 2 * above)
    return leaf


@_uncounted
def insert_point(tree, nodes, corners, points, row, stream, work):
    """`insert_on_way` of a point whose way is not known. `work` is of `make_scratch`."""
    node, depth, path = int(tree["root"]), 0, work[0][2]
    while NONE < node < nodes.shape[0] // 2:
        path[np.uint64(depth + _STEP - 1), 0] = node
        node, depth = _child(nodes, node, points, row), depth + 1
    return insert_on_way(tree, nodes, corners, points, row, stream, 0, node, depth, work)


@_uncounted
def insert_on_way(tree, nodes, corners, points, row, stream, lane, leaf, depth, work):
    """Insert one point; returns its leaf, which is an old one if the tree holds an equal point. Modified in place.

    Top down: at a node with range sum R and gap sum E the next cut of the widened box separates the point with
    probability E / (R + E), at a uniform place in the gaps; else the node's own cut stands. Source: Guha et al.,
    algorithm 2. The point's way to `leaf` at `depth` is in the path of `work`, as `lane`; all boxes on it are measured at once.
    """
    first_leaf = nodes.shape[0] // 2
    if tree["root"] == NONE:
        leaf = int(tree["free_leaf"])
        tree["free_leaf"] = nodes[leaf]["left"]
        tree["root"] = leaf
        copy_point(corners, leaf + first_leaf, points, row)
        nodes[leaf]["mass"] = 1
        nodes[leaf]["left"] = NONE
        nodes[leaf]["parent"] = NONE
        return leaf
    path, (gap_sums, totals, draws, gaps) = work[0][2], work[2]
    for level in range(depth, depth + _STEP):
        path[np.uint64(level + _STEP - 1), lane] = leaf
    missing = measure_path(nodes, corners, points, row, path, lane, depth + 1, gap_sums, totals)
    for level in range((depth + LANES) // LANES * LANES):
        draws[np.uint64(level)] = uniform(stream, level + 1)
    # The topmost node above which the point is cut off, and the topmost whose box it widens, without a branch.
    above, offset, widened = depth + 1, 0.0, depth + 1
    for step in range(depth + 1):
        level = np.uint64(depth - step)
        gap, place = gap_sums[level], draws[level] * totals[level]
        cut = (gap > 0.0) & ((place < gap) | (step == 0))
        above, offset = (depth - step if cut else above), (place if cut else offset)
        widened = depth - step if gap > 0.0 else widened
    if missing:
        widened = 0  # a box may know less than the point without a gap
    for level in range(min(above, depth)):
        nodes[np.uint64(path[np.uint64(level + _STEP - 1), lane])]["mass"] += 1
    for level in range(widened, min(above, depth)):
        node = int(path[np.uint64(level + _STEP - 1), lane])
        nodes[np.uint64(node)]["range_sum"] = widen(corners, 2 * node, 2 * node + 1, points, row, 2 * node)
    node = int(path[np.uint64(min(above, depth) + _STEP - 1), lane])
    if above <= depth:
        dim, value = _place_cut(corners, _low_row(nodes, node), _high_row(nodes, node), points, row, offset, gaps)
        return _splice(tree, nodes, corners, node, points, row, dim, value)
    dim = _missing_dim(corners, node + first_leaf, points, row)
    if dim == NONE:
        nodes[node]["mass"] += 1
        return node
    # Points that differ only in what is missing: present to the left, missing to the right.
    return _splice(tree, nodes, corners, node, points, row, dim, np.float32(np.inf))


@_uncounted
def delete_leaf(tree, nodes, corners, leaf):
    """Take one point of this leaf out of the tree; boxes are rebuilt upwards until one does not change. Modified in place.

    Source: Guha et al., algorithm 1.
    """
    nodes[leaf]["mass"] -= 1
    node = int(nodes[leaf]["parent"])
    if nodes[leaf]["mass"] == 0:
        if node == NONE:
            tree["root"] = NONE
        else:
            parent = node
            node = int(nodes[parent]["parent"])
            sibling = int(nodes[parent]["right"] if nodes[parent]["left"] == leaf else nodes[parent]["left"])
            nodes[sibling]["parent"] = node
            if node == NONE:
                tree["root"] = sibling
            elif nodes[node]["left"] == parent:
                nodes[node]["left"] = sibling
            else:
                nodes[node]["right"] = sibling
            nodes[parent]["mass"] = 0
            nodes[parent]["left"] = tree["free_node"]
            tree["free_node"] = parent
            node = join_up(nodes, corners, node, sibling)
        nodes[leaf]["left"] = tree["free_leaf"]
        tree["free_leaf"] = leaf
    while node != NONE:
        nodes[node]["mass"] -= 1
        node = int(nodes[node]["parent"])


@_compiled
def rebuild_boxes(tree, nodes, corners):
    """Recompute every box and range sum from the points of the leaves: a checkpoint leaves them out. Modified in place."""
    first_leaf = nodes.shape[0] // 2
    root = int(tree["root"])
    if root == NONE or root >= first_leaf:
        return
    order = np.empty(first_leaf, np.int64)
    order[0] = root
    count, done = 1, 0
    while done < count:
        node = order[done]
        done += 1
        left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
        if left < first_leaf:
            order[count] = left
            count += 1
        if right < first_leaf:
            order[count] = right
            count += 1
    for i in range(count - 1, -1, -1):
        node = order[i]
        left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
        widen(corners, _low_row(nodes, left), _high_row(nodes, left), corners, _low_row(nodes, right), 2 * node)
        nodes[node]["range_sum"] = widen(corners, 2 * node, 2 * node + 1, corners, _high_row(nodes, right), 2 * node)


# --- the sampler -----------------------------------------------------------------------------------


@_uncounted
def _sample_key(u, age):
    """Key of a row in the reservoir; the smallest keys stay. `age` = row * decay + offset, so that later rows get
    smaller keys.
    """
    return math.log(-math.log(u)) - age


@_uncounted
def _swap_slots(slots, i, j):
    key, row, leaf = slots[i]["key"], slots[i]["row"], slots[i]["leaf"]
    slots[i]["key"], slots[i]["row"], slots[i]["leaf"] = slots[j]["key"], slots[j]["row"], slots[j]["leaf"]
    slots[j]["key"], slots[j]["row"], slots[j]["leaf"] = key, row, leaf


@_uncounted
def _append_slot(tree, slots, key, row, leaf):
    """Add an entry to a reservoir that has room, and restore the heap. Modified in place."""
    i = int(tree["size"])
    tree["size"] = i + 1
    slots[i]["key"], slots[i]["row"], slots[i]["leaf"] = key, row, leaf
    while i > 0 and slots[(i - 1) // 2]["key"] < slots[i]["key"]:
        _swap_slots(slots, i, (i - 1) // 2)
        i = (i - 1) // 2


@_uncounted
def _replace_top(tree, slots, key, row, leaf):
    """Replace the entry with the largest key, and restore the heap. Modified in place."""
    size, i, j = int(tree["size"]), np.uint64(0), np.uint64(1)
    while j < size:
        j += np.uint64((j + np.uint64(1) < size) & (slots[min(j + np.uint64(1), np.uint64(size - 1))]["key"] > slots[j]["key"]))
        if key >= slots[j]["key"]:
            break
        slots[i]["key"], slots[i]["row"], slots[i]["leaf"] = slots[j]["key"], slots[j]["row"], slots[j]["leaf"]
        i, j = j, np.uint64(2) * j + np.uint64(1)
    slots[i]["key"], slots[i]["row"], slots[i]["leaf"] = key, row, leaf


@_uncounted
def _wanted_share(tree, slots, age):
    """A bound of the share of the rows of this age that the tree takes, infinite while it has room: a row is certain to be
    refused if its number u plus this is at most _CERTAIN.

    u stays iff log(-log(u)) - age < largest key kept, that is -log(u) < exp(largest key + age); and 1 - u <= -log(u). It saves
    two logarithms for nearly every row.
    """
    if tree["size"] < slots.shape[0]:
        return np.inf
    return math.exp(slots[0]["key"] + age)


@_uncounted
def _draw_rows(seed, tree, numbers, draws):
    """draws[j] = the number u of row numbers[j] in a tree. Output modified in place."""
    for j in range(numbers.shape[0]):
        draws[np.uint64(j)] = uniform(random_stream(seed, tree, numbers[np.uint64(j)]), 0)


@_uncounted
def wants_row(tree, slots, key, stream, accept_fraction):
    """What the reservoir does with a row: 0 refuses it, 1 adds it, 2 puts it in the place of the row with the largest key.

    With size < S a row is added with probability 1 below accept_fraction * S, falling to 0 as the reservoir fills; a row that
    is not may still replace another, as in a full reservoir.
    """
    size, samples = int(tree["size"]), slots.shape[0]
    if size < samples:
        share = size / samples
        if share < accept_fraction or uniform(stream, NONE) < 1.0 - (share - accept_fraction) / (1.0 - accept_fraction):
            return 1
    return 2 if size > 0 and key < slots[0]["key"] else 0


# --- the score -------------------------------------------------------------------------------------


@_uncounted
def _leaf_term(depth, gap, leaf_mass, total_mass):
    """Inverse depth credited at a leaf: damped by the leaf's mass if the point is there already, else as if it were
    split off there.
    """
    if gap > 0.0:
        return _INVERSE[depth]
    return (1.0 - leaf_mass / (2.0 * total_mass)) / (depth + math.log2(1.0 + leaf_mass))


# value(node) = q / (depth + 1) + (1 - q) * value(child), with q = E / (R + E) the probability that the next cut isolates the
# point at this node, is evaluated from the leaf up to the root. A leaf that differs from the point has R = 0 and q = 1. A box
# that holds the point has q = 0, which leaves the value as it is to the bit, and so have all boxes above it, unless it is one
# that knows nothing of a coordinate: they can be left out. The functions below do the same operations in the same order, so
# that a row's score does not depend on its company.


@_compiled
def make_scratch(rows, nodes, columns):
    """Arrays that the functions of this file work in, for so many rows, nodes of a tree and columns: `work`."""
    leaves, depths = np.zeros(max(rows, _BATCH), np.int32), np.zeros(max(rows, _BATCH), np.int32)
    path, climbers = np.empty((nodes // 2 + 2 * _STEP, _BATCH), np.int32), np.zeros((_BATCH, 2), np.int64)
    path[: _STEP - 1] = 0
    levels = nodes // 2 + LANES + _STEP
    way = np.zeros(levels), np.zeros(levels), np.zeros(levels), np.zeros(columns)
    lanes, found = np.zeros((_BATCH, _LANE), np.int64), np.zeros(_BATCH)
    many = rows if rows >= _MANY_ROWS else 0
    lists, values = np.zeros(many + nodes + LANES, np.int32), np.zeros(many + nodes + LANES)
    begins, stack, sequence = np.zeros(nodes, np.int32), np.zeros((nodes + 1, 2), np.int32), np.zeros((nodes, 2), np.int32)
    return (leaves, depths, path, climbers, lanes, found), (lists, values, begins, stack, sequence), way


@_uncounted
def _find_leaf(nodes, points, row, node):
    """Leaf below `node` that the point belongs to, and how far below; whatever is missing in the point."""
    depth = 0
    while node < nodes.shape[0] // 2:
        node = _child(nodes, node, points, row)
        depth += 1
    return node, depth


@_uncounted
def _leaf_value(nodes, corners, points, row, leaf, depth, total_mass):
    """value(leaf)."""
    if is_apart(corners, leaf + nodes.shape[0] // 2, points, row):
        return _INVERSE[np.uint64(depth)]
    return _leaf_term(depth, 0.0, nodes[np.uint64(leaf)]["mass"], total_mass)


@_uncounted
def _add_lanes(lanes, count, first, last, tree, root):
    """Append the rows first..last-1 in a tree to the `count` lanes; returns the new count. Modified in place."""
    for j in range(first, last):
        lane = np.uint64(count)
        lanes[lane, 0], lanes[lane, 1], lanes[lane, 2] = j, tree, root
        count += 1
    return count


@_uncounted
def _find_ways(nodes, points, count, holes, any_holes, places):
    """Leaves, depths and paths of the first `count` lanes, whatever is missing in their rows. Modified in place."""
    leaves, depths, path, _, lanes, _ = places
    if count > 4:
        find_many(nodes, points, lanes, count, leaves, depths, path)
    else:
        find_few(nodes, points, lanes, count, leaves, depths, path)
    for k in range(count if any_holes else 0):
        row, tree, node = lanes[k, 0], lanes[k, 1], lanes[k, 2]
        if holes[row]:
            depth = 0
            while node < nodes.shape[1] // 2:
                path[depth + _STEP - 1, k] = node
                node, depth = _child(nodes[tree], node, points, row), depth + 1
            leaves[k], depths[k] = node, depth


@_uncounted
def _start_climb(nodes, corners, points, count, holes, any_holes, places):
    """Take the rows of the first `count` lanes to their leaves: `found` becomes the value of the leaf. Lists those that have
    boxes above it as (lane, level of the lowest) in `climbers`; returns how many. Modified in place.
    """
    leaves, depths, _, climbers, lanes, found = places
    _find_ways(nodes, points, count, holes, any_holes, places)
    climbing = 0
    for k in range(count):
        lane = np.uint64(k)
        tree, depth = lanes[lane, 1], int(depths[lane])
        mass = nodes[tree, lanes[lane, 2]]["mass"]
        found[lane] = _leaf_value(nodes[tree], corners[tree], points, lanes[lane, 0], int(leaves[lane]), depth, mass)
        climbers[np.uint64(climbing), 0], climbers[np.uint64(climbing), 1] = k, depth - 1
        climbing += int(depth > 0)
    return climbing


@_uncounted
def _list_nodes(nodes, root, first, last, leaves, begins, stack, sequence):
    """Nodes of the tree, children before their parents: (node, depth) in `sequence`, their number returned. begins[leaf]
    becomes where the leaf's rows begin in a list by leaf, from left to right, with one place left free after each. Modified in
    place.
    """
    first_leaf = nodes.shape[0] // 2
    begins[:] = 0
    for k in range(first, last):
        begins[np.uint64(leaves[np.uint64(k)])] += 1
    count, top, begin = 0, 0, 0
    stack[0, 0], stack[0, 1] = root, 0
    while top >= 0:
        node, depth = int(stack[top, 0]), int(stack[top, 1])
        if node < 0:  # both sides are done
            sequence[count, 0], sequence[count, 1] = ~node, depth
            count += 1
            top -= 1
        elif node >= first_leaf:
            rows = int(begins[node])
            begins[node] = begin
            begin += rows + 1
            sequence[count, 0], sequence[count, 1] = node, depth
            count += 1
            top -= 1
        else:
            stack[top, 0] = ~node
            stack[top + 1, 0], stack[top + 1, 1] = int(nodes[node]["right"]), depth + 1
            stack[top + 2, 0], stack[top + 2, 1] = int(nodes[node]["left"]), depth + 1
            top += 2
    return count


@_uncounted
def _score_many(nodes, corners, points, root, first, last, leaves, mass, listing, value):
    """`score_run` without scale, with the rows' leaves known: box by box, so that a box is loaded once for all rows that reach
    it; those that it holds are done, and no branch depends on data. Modified in place.
    """
    lists, values, begins, stack, sequence = listing
    first_leaf = nodes.shape[0] // 2
    count = _list_nodes(nodes, root, first, last, leaves, begins, stack, sequence)
    for k in range(first, last):
        leaf = np.uint64(leaves[np.uint64(k)])
        lists[np.uint64(begins[leaf])] = k
        begins[leaf] += 1
    # Of each node on the stack: where its rows begin in `lists`, and the end of those that are not done.
    top, begin = -1, 0
    for i in range(count):
        node, depth = int(sequence[i, 0]), int(sequence[i, 1])
        if node >= first_leaf:
            target, end, corner = begin, int(begins[node]), node + first_leaf
            least = 0 if is_whole(corners, corner) else -1
            for k in range(begin, end):
                row = np.uint64(lists[np.uint64(k)])
                apart = int(is_apart(corners, corner, points, int(row)))
                found = _INVERSE[depth]
                if apart == 0:
                    found = _leaf_term(depth, 0.0, nodes[node]["mass"], mass)
                value[row] = found
                lists[np.uint64(target)], values[np.uint64(target)] = row, found
                target += int(apart > least)
            top += 1
            stack[top, 0], stack[top, 1] = begin, target
            begin = end + 1
        else:
            left, left_end, right, right_end = (
                int(stack[top - 1, 0]),
                int(stack[top - 1, 1]),
                int(stack[top, 0]),
                int(stack[top, 1]),
            )
            low, range_sum, weight = 2 * node, nodes[node]["range_sum"], _INVERSE[depth]
            least = 0.0 if is_whole(corners, low) else -1.0
            end = join_rows(corners, low, points, lists, values, left, left, left_end, range_sum, weight, least, value)
            end = join_rows(corners, low, points, lists, values, end, right, right_end, range_sum, weight, least, value)
            top -= 1
            stack[top, 1] = end


@_uncounted
def score_point(tree, nodes, corners, points, row):
    """`score_run` of one row."""
    root = int(tree["root"])
    if root == NONE:
        return 0.0
    mass = int(nodes[root]["mass"])
    node, depth = _find_leaf(nodes, points, row, root)
    value = _leaf_value(nodes, corners, points, row, node, depth, mass)
    node = int(nodes[node]["parent"])
    while node != NONE:
        gap = gap_sum(corners, 2 * node, 2 * node + 1, points, row)
        if gap <= 0.0 and is_whole(corners, 2 * node):
            break
        depth -= 1
        q = gap / (nodes[node]["range_sum"] + gap + _TINY)
        value = q * _INVERSE[depth] + (1.0 - q) * value
        node = int(nodes[node]["parent"])
    return value * math.log2(1.0 + mass)


@_uncounted
def score_run(trees, forest_nodes, forest_corners, t, points, first, last, holes, any_holes, work, value):
    """value[j] = score of row j in tree t, for first <= j < last; in [0, log2(1 + mass)]. Output modified in place.

    The score is the expected inverse depth times log2(1 + mass of the tree). `holes[j]` says whether row j has a missing value,
    `any_holes` whether any has. `work` is of `make_scratch`.
    One or two rows come up by themselves, several some boxes at a time, many box by box.
    """
    tree, nodes, corners = trees[t], forest_nodes[t], forest_corners[t]
    root = int(tree["root"])
    if root == NONE:
        for j in range(first, last):
            value[j] = 0.0
        return
    if last - first <= 2:
        for j in range(first, last):
            value[j] = score_point(tree, nodes, corners, points, j)
        return
    places, listing, _ = work
    leaves, depths, path, climbers, lanes, found = places
    mass = int(nodes[root]["mass"])
    if last - first >= _MANY_ROWS:
        find_leaves(nodes, root, points, first, last, leaves, depths)
        if any_holes:
            for j in range(first, last):
                if holes[j]:
                    leaves[j], depths[j] = _find_leaf(nodes, points, j, root)
        _score_many(nodes, corners, points, root, first, last, leaves, mass, listing, value)
    else:
        for start in range(first, last, _BATCH):
            end = min(start + _BATCH, last)
            count = _add_lanes(lanes, 0, start, end, t, root)
            count = _start_climb(forest_nodes, forest_corners, points, count, holes, any_holes, places)
            climb(forest_nodes, forest_corners, points, lanes, count, path, climbers, _DOWNWARDS, found)
            for j in range(start, end):
                value[np.uint64(j)] = found[np.uint64(j - start)]
    scale = math.log2(1.0 + mass)
    for j in range(first, last):
        value[np.uint64(j)] *= scale


@_compiled
def _find_holes(points):
    """Whether a row has a missing value, shape (n,), bool."""
    holes = np.zeros(points.shape[0], np.bool_)
    for j in range(points.shape[0]):
        holes[j] = not is_whole(points, j)
    return holes


@_uncounted
def score_without(tree, nodes, corners, points, row, leaf):
    """Score that the point would get, had it not been sampled: `leaf`, which holds it, is deleted and put back exactly.

    The tree is as before when the function returns. A tree that holds nothing else scores 0.
    """
    first_leaf = nodes.shape[0] // 2
    parent = int(nodes[leaf]["parent"])
    parent_left = nodes[parent]["left"] if parent != NONE else NONE
    delete_leaf(tree, nodes, corners, leaf)
    score = score_point(tree, nodes, corners, points, row)
    nodes[leaf]["mass"] += 1
    node = parent
    if nodes[leaf]["mass"] == 1:
        # The records of leaf and parent are at the head of the free lists, and whole but for mass and left link.
        tree["free_leaf"] = nodes[leaf]["left"]
        nodes[leaf]["left"] = NONE
        if parent == NONE:
            tree["root"] = leaf
        else:
            tree["free_node"] = nodes[parent]["left"]
            nodes[parent]["left"] = parent_left
            node = int(nodes[parent]["parent"])
            sibling = int(nodes[parent]["right"] if parent_left == leaf else parent_left)
            nodes[sibling]["parent"] = parent
            nodes[parent]["mass"] = nodes[sibling]["mass"] + 1
            if node == NONE:
                tree["root"] = parent
            elif nodes[node]["left"] == sibling:
                nodes[node]["left"] = parent
            else:
                nodes[node]["right"] = parent
    while node != NONE:
        nodes[node]["mass"] += 1
        nodes[node]["range_sum"] = widen(corners, 2 * node, 2 * node + 1, corners, leaf + first_leaf, 2 * node)
        node = int(nodes[node]["parent"])
    return score


# --- attribution -----------------------------------------------------------------------------------


@_uncounted
def _depth(nodes, node):
    depth = 0
    while nodes[node]["parent"] != NONE:
        node = int(nodes[node]["parent"])
        depth += 1
    return depth


@_uncounted
def _sibling(nodes, node):
    parent = int(nodes[node]["parent"])
    return int(nodes[parent]["right"] if nodes[parent]["left"] == node else nodes[parent]["left"])


@_uncounted
def _add_evenly(points, row, columns, amount, sums, at):
    """Spread `amount` over both directions of every coordinate that has a value; over all if none has. Modified in place."""
    present = 0
    for i in range(columns):
        present += 1 if points[row, i] == points[row, i] else 0
    share = amount / (2.0 * (present if present > 0 else columns))
    for i in range(columns):
        if present == 0 or points[row, i] == points[row, i]:
            sums[at, i] += share
            sums[at + 1, i] += share


@_uncounted
def _explain_seen(nodes, corners, points, row, leaf, columns, amount, sums, at, shadow, vector):
    """Spread `amount`, the score of a point that is in the tree, as it would be were the leaf not there. Modified in place.

    No box sets a known point apart, so the boxes of the siblings passed on the way up (`shadow`) stand in for those
    of the ancestors, and the result is scaled to the score that the point really has. `shadow` (2, width) float32 and
    `vector` (2, width) float64 are scratch.
    """
    vector[:] = 0.0
    depth = _depth(nodes, leaf)
    _add_evenly(points, row, columns, 1.0 / (depth + 1.0), vector, 0)
    node = leaf
    while depth > 0:
        sibling = _sibling(nodes, node)
        low, high = _low_row(nodes, sibling), _high_row(nodes, sibling)
        if node == leaf:
            for i in range(points.shape[1]):
                shadow[0, i] = corners[low, i]
                shadow[1, i] = corners[high, i]
        else:
            widen(shadow, 0, 1, corners, low, 0)
            widen(shadow, 0, 1, corners, high, 0)
        node = int(nodes[node]["parent"])
        gap = gap_sum(shadow, 0, 1, points, row)
        if gap <= 0.0:
            break
        total = widen(shadow, 0, 1, shadow, 0, 0) + gap  # by a corner of its own: only the sum of the sides is wanted
        vector *= 1.0 - gap / total
        add_gaps(shadow, 0, 1, points, row, 1.0 / (total * depth), vector, 0)
        depth -= 1
    total = 0.0
    for i in range(columns):
        total += vector[0, i] + vector[1, i]
    for i in range(columns):
        sums[at, i] += vector[0, i] * (amount / total)
        sums[at + 1, i] += vector[1, i] * (amount / total)


@_inlined
def explain_point(nodes, corners, points, row, lane, leaf, depth, scale, mass, columns, record, sums, at, shadow, vector):
    """Add the tree's score of the point to `sums`, rows `at` (high) and `at` + 1 (low), float64, by coordinate. Modified in
    place.

    Each term of the score is split over the coordinates in proportion to their gaps. `leaf` at `depth` is the one that the
    point leads to, `record` what `climb_recorded` met on its way, in place `lane`; `mass` the tree's, `scale` log2(1 + mass).
    """
    path, shares, totals, tops, nodes_met, weights = record
    alive, count = scale, depth - int(tops[lane])
    unseen = count > 0
    for step in range(count - 1, -1, -1):
        level = np.uint64(depth - 1 - step)
        place = level + np.uint64(_STEP - 1)
        nodes_met[step] = path[place, lane]
        weights[step] = alive * _INVERSE[level] / totals[lane, place]
        alive *= 1.0 - shares[lane, place]
    first_leaf = nodes.shape[0] // 2
    gap = 0.0
    if is_apart(corners, leaf + first_leaf, points, row):
        gap = gap_sum(corners, leaf + first_leaf, leaf + first_leaf, points, row)
    amount = alive * _leaf_term(depth, gap, nodes[leaf]["mass"], mass)
    leaf_weight = amount / gap if gap > 0.0 else 0.0
    add_path(corners, points, row, nodes_met, weights, 0, count, leaf + first_leaf, leaf_weight, sums, at)
    if gap <= 0.0:
        if unseen:
            _add_evenly(points, row, columns, amount, sums, at)
        else:
            _explain_seen(nodes, corners, points, row, leaf, columns, amount, sums, at, shadow, vector)


# --- other measures ----------------------------------------------------------------------------------


@_uncounted
def measure_point(tree, nodes, corners, points, row, kind):
    """Expectation over where the point would be split off, were it inserted, of
    kind 0: its depth;
    kind 1: its displacement, the mass that it pushes down, as a share of mass + 1 (a known point: damped as in the score);
    kind 2: its collusive displacement, the largest ratio of the mass of a sibling to the mass of the branch with the point,
    over the branches that hold it;
    kind 3: the mass below the place, as a share of the tree's;
    kind 4: the sum of gaps at the place.

    Nothing is inserted: at each node on its way the point is split off with probability q, else it goes on. Source of kinds 1
    and 2: Guha et al., definitions 2 and 3; of taking the expectation: the score of the AWS random cut forest library.
    """
    root = int(tree["root"])
    if root == NONE:
        return 0.0
    first_leaf, total_mass = nodes.shape[0] // 2, float(nodes[root]["mass"])
    node, depth, alive, value, collusion = root, 0, 1.0, 0.0, 0.0
    while True:
        mass = float(nodes[node]["mass"])
        gap = gap_sum(corners, _low_row(nodes, node), _high_row(nodes, node), points, row)
        q = gap / (nodes[node]["range_sum"] + gap + _TINY)
        found = 0.0
        if kind == 0:
            found = depth + 1.0
        elif kind == 1:
            found = mass / (1.0 + total_mass)
        elif kind == 2:
            found = max(collusion, mass)
        elif kind == 3:
            found = mass / total_mass
        else:
            found = gap
        value += alive * q * found
        alive *= 1.0 - q
        if node >= first_leaf:
            if gap <= 0.0:
                if kind == 0:
                    found = depth + math.log2(1.0 + mass)
                elif kind == 1:
                    found = (1.0 - mass / (2.0 * total_mass)) / (1.0 + mass) / (1.0 + total_mass)
                elif kind == 2:
                    found = collusion
                value += alive * found
            return value
        child = _child(nodes, node, points, row)
        beside = float(nodes[_sibling(nodes, child)]["mass"])
        collusion = max(collusion, beside / (nodes[child]["mass"] + 1.0))
        node = child
        depth += 1


@_uncounted
def nearest_leaf(tree, nodes, corners, points, row, stack):
    """Leaf that the point leads to; where the cut's coordinate is missing both ways are looked at, and the leaf with the
    smallest sum of gaps over the known coordinates is taken, the first of equals. NONE in an empty tree. `stack` (int32, one
    entry per node) is scratch.
    """
    first_leaf = nodes.shape[0] // 2
    root = int(tree["root"])
    best, least = NONE, np.inf
    top = 0
    if root != NONE:
        stack[0] = root
        top = 1
    while top > 0:
        top -= 1
        node = int(stack[top])
        gap = gap_sum(corners, _low_row(nodes, node), _high_row(nodes, node), points, row)
        if gap >= least:
            continue
        if node >= first_leaf:
            best, least = node, gap
            continue
        value = points[row, nodes[node]["cut_dim"]]
        left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
        if value != value:
            stack[top], stack[top + 1] = right, left
            top += 2
        else:
            stack[top] = left if value <= nodes[node]["cut_value"] else right
            top += 1
    return best


# --- blocks of rows: trees in the outer loop, so that a tree stays in the cache while all rows pass through it ---
#
# Each works on the chunks of trees first_chunk..last_chunk-1 (CHUNK_TREES trees each) and touches nothing of the
# others, so threads can share a forest by chunks. `points` is (n, width) float32; outputs have one row per chunk and
# are added up by the caller in chunk order.


@_compiled
def fit_trees(trees, nodes, corners, slots, points, seed, first_chunk, last_chunk):
    """Give every tree a uniform sample of the rows without replacement, and build the tree from it in row order.
    Modified in place.

    The result is what offering the rows one by one without decay leads to, in distribution; and bit for bit, if n <= S.
    """
    work = make_scratch(0, nodes.shape[1], points.shape[1])
    for t in range(first_chunk * CHUNK_TREES, min(last_chunk * CHUNK_TREES, trees.shape[0])):
        tree = trees[t]
        clear_tree(tree, nodes[t])
        share = np.inf
        for j in range(points.shape[0]):
            u = uniform(random_stream(seed, t, j), 0)
            if u + share <= _CERTAIN:
                continue
            key = _sample_key(u, 0.0)
            if tree["size"] < slots.shape[1]:
                _append_slot(tree, slots[t], key, j, NONE)
            elif key < slots[t][0]["key"]:
                _replace_top(tree, slots[t], key, j, NONE)
            share = _wanted_share(tree, slots[t], 0.0)
        size = int(tree["size"])
        rows = np.empty(size, np.int64)
        for i in range(size):
            rows[i] = slots[t][i]["row"]
        for i in np.argsort(rows):
            j = rows[i]
            slots[t][i]["leaf"] = insert_point(tree, nodes[t], corners[t], points, j, random_stream(seed, t, j), work)


@_compiled
def score_rows(trees, nodes, corners, points, scores, first_chunk, last_chunk):
    """scores[chunk, j] (float64) = sum over the chunk's trees of the score of row j. Output modified in place."""
    n = points.shape[0]
    holes, value, work = _find_holes(points), np.zeros(n + 1), make_scratch(n, nodes.shape[1], points.shape[1])
    any_holes = holes.any()
    for chunk in range(first_chunk, last_chunk):
        scores[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            if n > 1:
                value[n] = touch(corners[t]) + touch(nodes[t])
            score_run(trees, nodes, corners, t, points, 0, n, holes, any_holes, work, value)
            for j in range(n):
                scores[chunk, j] += value[j]


@_uncounted
def _find_run(trees, slots, t, draws, growth, ages, numbers, seed, accept_fraction, begin, run):
    """Find the next row from `begin` on that the tree takes: run = (begin, one past that row, what `wants_row` says of it), or
    (begin, number of rows, 0). Returns the row's key. Modified in place.
    """
    tree, tree_slots, j, n = trees[t], slots[t], begin, draws.shape[0]
    share = _wanted_share(tree, tree_slots, ages[0])
    run[0], run[1], run[2] = begin, n, 0
    while j < n:
        if not draws[np.uint64(j)] + share * growth[np.uint64(j)] <= _CERTAIN:  # nor if that is NaN
            key = _sample_key(draws[j], ages[j])
            verdict = wants_row(tree, tree_slots, key, random_stream(seed, t, numbers[j]), accept_fraction)
            if verdict != 0:
                run[1], run[2] = j + 1, verdict
                return key
        j += 1
    return 0.0


@_uncounted
def _score_runs(trees, nodes, corners, points, first, runs, holes, any_holes, work, values):
    """Score rows of the runs of the trees from `first` on, a batch of all trees together: a short run by itself would wait for
    memory and for wrong guesses more than it computes. A long run is scored at once. Modified in place.
    """
    places, _, _ = work
    _, _, path, climbers, lanes, found = places
    count, most = 0, _BATCH // runs.shape[0]
    for i in range(runs.shape[0]):
        begin, end, root = int(runs[i, 0]), int(runs[i, 1]), int(trees[first + i]["root"])
        if root == NONE or end - begin >= _BATCH:
            score_run(trees, nodes, corners, first + i, points, begin, end, holes, any_holes, work, values[i])
            runs[i, 0] = end
    for i in range(runs.shape[0]):
        begin, end, root = int(runs[i, 0]), int(runs[i, 1]), int(trees[first + i]["root"])
        count = _add_lanes(lanes, count, begin, min(end, begin + most), first + i, root)
    count = _start_climb(nodes, corners, points, count, holes, any_holes, places)
    climb(nodes, corners, points, lanes, count, path, climbers, _DOWNWARDS, found)
    count = 0
    for i in range(runs.shape[0]):
        begin = int(runs[i, 0])
        end = min(int(runs[i, 1]), begin + most)
        if begin < end:
            scale = math.log2(1.0 + nodes[first + i, trees[first + i]["root"]]["mass"])
            for j in range(begin, end):
                values[i, np.uint64(j)] = found[np.uint64(count)] * scale
                count += 1
        runs[i, 0] = end


@_uncounted
def _change_trees(trees, nodes, corners, slots, points, numbers, seed, first, runs, keys, holes, any_holes, work):
    """Take the last row of each run that is scored to its end, if the tree takes it, into tree and reservoir: the ways of
    several rows down their trees are found side by side. Modified in place.
    """
    places, _, _ = work
    leaves, depths, _, _, lanes, _ = places
    count = 0
    for i in range(runs.shape[0]):
        if runs[i, 0] == runs[i, 1] and runs[i, 2] != 0:
            t = first + i
            if runs[i, 2] == 2:
                delete_leaf(trees[t], nodes[t], corners[t], int(slots[t, 0]["leaf"]))
            root = int(trees[t]["root"])
            root = nodes.shape[1] // 2 if root == NONE else root  # any leaf
            count = _add_lanes(lanes, count, runs[i, 1] - 1, runs[i, 1], t, root)
    if count > 0:
        _find_ways(nodes, points, count, holes, any_holes, places)
    for k in range(count):
        row, t = int(lanes[k, 0]), int(lanes[k, 1])
        given = points, row, random_stream(seed, t, numbers[row]), k, int(leaves[k]), int(depths[k]), work
        leaf = insert_on_way(trees[t], nodes[t], corners[t], *given)
        if runs[t - first, 2] == 2:
            _replace_top(trees[t], slots[t], keys[t - first], numbers[row], leaf)
        else:
            _append_slot(trees[t], slots[t], keys[t - first], numbers[row], leaf)


@_compiled
def learn_rows(
    trees, nodes, corners, slots, points, numbers, ages, seed, accept_fraction, with_scores, scores, first_chunk, last_chunk
):
    """Score every row and then offer it to every tree. Modified in place.

    numbers (int64) and ages (float64, never falling) have one entry per row. scores[chunk, j] as in `score_rows`, of the forest
    as it was before row j; left alone unless `with_scores`. Between two rows that a tree takes it does not change, so the rows
    up to and with the second are scored together: a run. The trees of a chunk go from run to run side by side.
    """
    n = points.shape[0]
    holes, work = _find_holes(points), make_scratch(n, nodes.shape[1], points.shape[1])
    any_holes = holes.any()
    values, draws = np.zeros((CHUNK_TREES, n + 1)), np.zeros((CHUNK_TREES, n))
    all_runs, keys = np.zeros((CHUNK_TREES, _RUN), np.int64), np.zeros(CHUNK_TREES)
    growth = np.empty(n)
    for j in range(n):
        growth[j] = math.exp(ages[j] - ages[0]) if ages[j] - ages[0] < 500.0 else np.inf
    for chunk in range(first_chunk, last_chunk):
        first = chunk * CHUNK_TREES
        runs = all_runs[: min(CHUNK_TREES, trees.shape[0] - first)]
        for i in range(runs.shape[0] if n > 0 else 0):
            if n > 1:
                values[i, n] = touch(corners[first + i]) + touch(nodes[first + i])
            _draw_rows(seed, first + i, numbers, draws[i])
            keys[i] = _find_run(trees, slots, first + i, draws[i], growth, ages, numbers, seed, accept_fraction, 0, runs[i])
        left = n > 0
        while left:
            left = False
            if with_scores:
                _score_runs(trees, nodes, corners, points, first, runs, holes, any_holes, work, values)
            else:
                runs[:, 0] = runs[:, 1]
            _change_trees(trees, nodes, corners, slots, points, numbers, seed, first, runs, keys, holes, any_holes, work)
            for i in range(runs.shape[0]):
                if runs[i, 0] == runs[i, 1] and runs[i, 2] != 0:
                    begin = int(runs[i, 1])
                    keys[i] = _find_run(
                        trees, slots, first + i, draws[i], growth, ages, numbers, seed, accept_fraction, begin, runs[i]
                    )
                left |= runs[i, 0] < runs[i, 1]
        if with_scores:
            scores[chunk] = 0.0
            for i in range(runs.shape[0]):
                for j in range(n):
                    scores[chunk, j] += values[i, j]


@_compiled
def score_training_rows(trees, nodes, corners, slots, points, numbers, scores, first_chunk, last_chunk):
    """`score_rows` for rows that the forest was fitted to: a tree that sampled a row scores it as if it had not. `numbers`
    (int64, ascending) are the rows' numbers.

    Output modified in place; the trees are as before in the end.
    """
    n = points.shape[0]
    holes, value, work = _find_holes(points), np.zeros(n + 1), make_scratch(n, nodes.shape[1], points.shape[1])
    any_holes = holes.any()
    for chunk in range(first_chunk, last_chunk):
        scores[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            if n > 1:
                value[n] = touch(corners[t]) + touch(nodes[t])
            score_run(trees, nodes, corners, t, points, 0, n, holes, any_holes, work, value)
            for i in range(trees[t]["size"]):
                number = slots[t][i]["row"]
                j = np.searchsorted(numbers, number)
                if j < n and numbers[j] == number:
                    value[j] = score_without(trees[t], nodes[t], corners[t], points, j, int(slots[t][i]["leaf"]))
            for j in range(n):
                scores[chunk, j] += value[j]


@_compiled
def explain_rows(trees, nodes, corners, points, columns, attributions, scores, first_chunk, last_chunk):
    """attributions[chunk, j] (2, width) float64 = sum over the chunk's trees of `explain_point` of row j, scores[chunk, j] as
    in `score_rows`. Output modified in place.
    """
    n = points.shape[0]
    shadow, vector = np.empty((2, points.shape[1]), np.float32), np.empty((2, points.shape[1]), np.float64)
    holes, value, work = _find_holes(points), np.zeros(n + 1), make_scratch(n, nodes.shape[1], points.shape[1])
    any_holes = holes.any()
    places, _, _ = work
    leaves, depths, path, climbers, lanes, found = places
    levels = nodes.shape[1] // 2 + 1
    shares, totals = np.empty((_BATCH, levels + 2 * _STEP)), np.empty((_BATCH, levels + 2 * _STEP))
    tops, nodes_met, weights = np.empty(_BATCH, np.int32), np.empty(levels, np.int32), np.empty(levels)
    record = path, shares, totals, tops, nodes_met, weights
    for chunk in range(first_chunk, last_chunk):
        attributions[chunk] = 0.0
        scores[chunk] = 0.0
        # One view for all rows: a view counts references, which takes longer than a box.
        sums = attributions[chunk].reshape(2 * n, points.shape[1])
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            root = int(trees[t]["root"])
            if root == NONE:
                continue
            tree_nodes, tree_corners = nodes[t], corners[t]
            if n > 1:
                value[n] = touch(tree_corners) + touch(tree_nodes)
            mass = int(tree_nodes[root]["mass"])
            scale = math.log2(1.0 + mass)
            for first in range(0, n, _BATCH):
                last = min(first + _BATCH, n)
                count = _add_lanes(lanes, 0, first, last, t, root)
                count = _start_climb(nodes, corners, points, count, holes, any_holes, places)
                tops[: last - first] = depths[: last - first]
                climb_recorded(nodes, corners, points, lanes, count, path, climbers, _DOWNWARDS, found, shares, totals, tops)
                for j in range(first, last):
                    explain_point(
                        tree_nodes,
                        tree_corners,
                        points,
                        j,
                        j - first,
                        int(leaves[j - first]),
                        int(depths[j - first]),
                        scale,
                        mass,
                        columns,
                        record,
                        sums,
                        2 * j,
                        shadow,
                        vector,
                    )
                for j in range(first, last):
                    scores[chunk, j] += found[j - first] * scale


@_compiled
def measure_rows(trees, nodes, corners, points, kind, values, first_chunk, last_chunk):
    """values[chunk, j] (float64) = sum over the chunk's trees of `measure_point` of row j. Output modified in place."""
    for chunk in range(first_chunk, last_chunk):
        values[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            for j in range(points.shape[0]):
                values[chunk, j] += measure_point(trees[t], nodes[t], corners[t], points, j, kind)


@_compiled
def find_nearest_leaves(trees, nodes, corners, points, leaves, first_chunk, last_chunk):
    """leaves[t, j] (int32) = `nearest_leaf` of row j in tree t. Output modified in place."""
    stack = np.empty(nodes.shape[1] + 1, np.int32)
    for t in range(first_chunk * CHUNK_TREES, min(last_chunk * CHUNK_TREES, trees.shape[0])):
        for j in range(points.shape[0]):
            leaves[t, j] = nearest_leaf(trees[t], nodes[t], corners[t], points, j, stack)


@_compiled
def clear_trees(trees, nodes):
    """Empty all trees. Modified in place."""
    for t in range(trees.shape[0]):
        clear_tree(trees[t], nodes[t])


@_compiled
def rebuild_trees(trees, nodes, corners):
    """Recompute all boxes of all trees from the points. Modified in place."""
    for t in range(trees.shape[0]):
        rebuild_boxes(trees[t], nodes[t], corners[t])
