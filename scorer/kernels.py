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

MAX_DEPTH = 2047  # internal nodes of the largest tree, and so the longest path
_INVERSE = 1.0 / np.arange(1, MAX_DEPTH + 2)  # _INVERSE[depth] = 1 / (depth + 1): a load is cheaper than a division
_FEW_ROWS = 32  # rows at a node from which on it pays to take the node's rows together

_TINY = 1e-300  # turns 0 / 0 into 0, and is lost in any sum of float32 values that is not zero
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)

# No fastmath: NaN is meaningful here, and sums must come out the same on every machine.
_OPTIONS: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": False}
_compiled = njit(**_OPTIONS)
# Without reference counts, for functions that make no array: each array argument of a call would be counted up and down, and an
# atomic instruction takes longer than a box.
_uncounted = njit(**_OPTIONS | {"_nrt": False})


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
    point = points[row].astype(np.float64)
    below = corners[low].astype(np.float64) - point
    above = point - corners[high].astype(np.float64)
    gaps = np.where(below > above, below, above)
    gaps = np.where(gaps > 0.0, gaps, 0.0)
    total = np.zeros(LANES)
    for part in gaps.reshape(-1, LANES):
        total = total + part
    return _fold(total)


def _add_gaps_plain(corners, low, high, points, row, weight, sums, at):
    """`add_gaps` without compilation."""
    point = points[row].astype(np.float64)
    above = point - corners[high].astype(np.float64)
    below = corners[low].astype(np.float64) - point
    sums[at] += weight * np.where(above > 0.0, above, 0.0)
    sums[at + 1] += weight * np.where(below > 0.0, below, 0.0)


def _widen_plain(corners, low, high, points, row):
    """`widen` without compilation."""
    x, a, b = points[row], corners[low].copy(), corners[high].copy()
    corners[low] = np.where((x < a) | np.isnan(a), x, a)
    corners[high] = np.where((x > b) | np.isnan(b), x, b)
    return _gap_sum_plain(corners, high, high, corners, low)


def _join_plain(corners, mine, first_low, first_high, second_low, second_high):
    """`join` without compilation."""
    before = corners[mine : mine + 2].copy()
    a, b = corners[first_low], corners[second_low]
    corners[mine] = np.where((a < b) | np.isnan(b), a, b)
    a, b = corners[first_high], corners[second_high]
    corners[mine + 1] = np.where((a > b) | np.isnan(b), a, b)
    changed = not np.array_equal(before, corners[mine : mine + 2], equal_nan=True)
    total = _gap_sum_plain(corners, mine + 1, mine + 1, corners, mine)
    return -total if changed else total


def _pick_child_plain(nodes, node, points, row):
    """`pick_child` without compilation."""
    record = nodes[node]
    return int(record["right"] if points[row, record["cut_dim"]] > record["cut_value"] else record["left"])


_F32, _F64, _I1, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
_PACKED, _WIDE = ir.VectorType(_F32, LANES), ir.VectorType(_F64, LANES)
_ZEROS = ir.Constant(_WIDE, [0.0] * LANES)


class _Rows:
    """Rows of two-dimensional C-contiguous arrays as pointers; all arrays have the same number of columns."""

    def __init__(self, context, builder, signature, arguments, arrays):
        self.builder = builder
        self.arrays = {i: context.make_array(signature.args[i])(context, builder, arguments[i]) for i in arrays}
        self.width = cgutils.unpack_tuple(builder, self.arrays[arrays[-1]].shape)[-1]

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

    def total(self, lanes):
        """Sum of the lanes, folded in halves."""
        size = LANES
        while size > 1:
            size //= 2
            undefined = ir.Constant(lanes.type, ir.Undefined)
            mask = ir.VectorType(_I32, size)
            first = self.builder.shuffle_vector(lanes, undefined, ir.Constant(mask, list(range(size))))
            second = self.builder.shuffle_vector(lanes, undefined, ir.Constant(mask, list(range(size, 2 * size))))
            lanes = self.builder.fadd(first, second)
        return self.builder.extract_element(lanes, ir.Constant(_I32, 0))


@intrinsic
def _gap_sum_vector(typing_context, corners, low, high, points, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 3))
        box_low, box_high = rows.pointer(0, arguments[1]), rows.pointer(0, arguments[2])
        point = rows.pointer(3, arguments[4])

        def add_parts(gap):
            total = cgutils.alloca_once_value(builder, _ZEROS)
            with rows.parts() as (index, _):
                x, low, high = (rows.load(pointer, index) for pointer in (point, box_low, box_high))
                builder.store(builder.fadd(builder.load(total), gap(x, low, high)), total)
            return rows.total(builder.load(total))

        def distance(x, low, high):
            # |x - the nearest number in the box|: fewest instructions for the units that add, which are what limits the sum.
            inside = builder.select(builder.fcmp_ordered("<", x, high), x, high)
            inside = rows.larger(inside, low)
            difference = builder.fsub(rows.wide(x), rows.wide(inside))
            bits = builder.bitcast(difference, ir.VectorType(_I64, LANES))
            bits = builder.and_(bits, ir.Constant(bits.type, [2**63 - 1] * LANES))
            return builder.bitcast(bits, _WIDE)

        def careful(x, low, high):
            x = rows.wide(x)
            below, above = builder.fsub(rows.wide(low), x), builder.fsub(x, rows.wide(high))
            return rows.larger(rows.larger(below, above), _ZEROS)

        found = cgutils.alloca_once_value(builder, add_parts(distance))
        missing = builder.fcmp_unordered("uno", builder.load(found), builder.load(found))
        with builder.if_then(missing, likely=False):
            builder.store(add_parts(careful), found)
        return builder.load(found)

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


@intrinsic
def _widen_vector(typing_context, corners, low, high, points, row):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0, 3))
        box_low, box_high = rows.pointer(0, arguments[1]), rows.pointer(0, arguments[2])
        point = rows.pointer(3, arguments[4])
        total = cgutils.alloca_once_value(builder, _ZEROS)
        with rows.parts() as (index, _):
            x = rows.load(point, index)
            ends = []
            for pointer, sign in ((box_low, "<"), (box_high, ">")):
                end = rows.load(pointer, index)
                beyond = builder.or_(builder.fcmp_ordered(sign, x, end), builder.fcmp_unordered("uno", end, end))
                ends.append(builder.select(beyond, x, end))
                rows.store(ends[-1], pointer, index)
            side = rows.larger(builder.fsub(rows.wide(ends[1]), rows.wide(ends[0])), _ZEROS)
            builder.store(builder.fadd(builder.load(total), side), total)
        return rows.total(builder.load(total))

    return types.float64(corners, types.int64, types.int64, points, types.int64), generate


@intrinsic
def _join_vector(typing_context, corners, mine, first_low, first_high, second_low, second_high):
    def generate(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, arguments, (0,))
        ours = rows.pointer(0, arguments[1]), rows.pointer(0, builder.add(arguments[1], ir.Constant(_I64, 1)))
        firsts = rows.pointer(0, arguments[2]), rows.pointer(0, arguments[3])
        seconds = rows.pointer(0, arguments[4]), rows.pointer(0, arguments[5])
        flags = ir.VectorType(_I1, LANES)
        total = cgutils.alloca_once_value(builder, _ZEROS)
        changed = cgutils.alloca_once_value(builder, ir.Constant(flags, [0] * LANES))
        with rows.parts() as (index, _):
            ends = []
            for side, sign in ((0, "<"), (1, ">")):
                a, b, old = (rows.load(pointer[side], index) for pointer in (firsts, seconds, ours))
                choose = builder.or_(builder.fcmp_ordered(sign, a, b), builder.fcmp_unordered("uno", b, b))
                end = builder.select(choose, a, b)
                ends.append(end)
                rows.store(end, ours[side], index)
                known = builder.or_(builder.fcmp_ordered("ord", end, end), builder.fcmp_ordered("ord", old, old))
                differs = builder.and_(builder.fcmp_unordered("!=", end, old), known)
                builder.store(builder.or_(builder.load(changed), differs), changed)
            length = rows.larger(builder.fsub(rows.wide(ends[1]), rows.wide(ends[0])), _ZEROS)
            builder.store(builder.fadd(builder.load(total), length), total)
        found = rows.total(builder.load(total))
        bits = builder.bitcast(builder.load(changed), ir.IntType(LANES))
        other = builder.fneg(found)
        return builder.select(builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), other, found)

    whole = types.int64
    return types.float64(corners, whole, whole, whole, whole, whole), generate


@intrinsic
def _pick_child_vector(typing_context, nodes, node, points, row):
    def generate(context, builder, signature, arguments):
        records = context.make_array(signature.args[0])(context, builder, arguments[0])
        rows = _Rows(context, builder, signature, arguments, (2,))
        start = builder.bitcast(records.data, ir.IntType(8).as_pointer())
        record = builder.gep(start, [builder.mul(arguments[1], ir.Constant(_I64, NODE.itemsize))])

        def field(name, kind, beyond=None):
            offset = ir.Constant(_I64, NODE.fields[name][1])
            offset = offset if beyond is None else builder.add(offset, beyond)
            value = builder.load(builder.bitcast(builder.gep(record, [offset]), kind.as_pointer()))
            value.align = 1
            return value

        dim = builder.zext(field("cut_dim", ir.IntType(16)), _I64)
        value = builder.load(builder.gep(rows.pointer(2, arguments[3]), [dim]))
        right = builder.zext(builder.fcmp_ordered(">", value, field("cut_value", _F32)), _I64)
        # The right child stands two bytes after the left one.
        child = field("left", ir.IntType(16), builder.shl(right, ir.Constant(_I64, 1)))
        return builder.zext(child, _I64)

    return types.int64(nodes, types.int64, points, types.int64), generate


if config.DISABLE_JIT:  # type: ignore[attr-defined]
    gap_sum, add_gaps, widen, join, pick_child = _gap_sum_plain, _add_gaps_plain, _widen_plain, _join_plain, _pick_child_plain
else:

    @_uncounted
    def gap_sum(corners, low, high, points, row):
        """Sum of the gaps between points[row] and the box with corners in rows `low` and `high`; 0 inside.

        sum over i of max(corners[low, i] - points[row, i], points[row, i] - corners[high, i], 0) in float64, in LANES partial
        sums that are folded in halves; a NaN on either side adds 0. Both arrays are float32, C-contiguous, with the same number
        of columns, a multiple of LANES.
        """
        return _gap_sum_vector(corners, low, high, points, row)

    @_uncounted
    def add_gaps(corners, low, high, points, row, weight, sums, at):
        """sums[at] += weight * gap above the box, sums[at + 1] += weight * gap below it; float64. Modified in place."""
        _add_gaps_vector(corners, low, high, points, row, weight, sums, at)

    @_uncounted
    def widen(corners, low, high, points, row):
        """Grow the box in rows `low` and `high` to hold the point; NaN is ignored where the other side has a value.
        Returns the sum of its side lengths. Modified in place.
        """
        return _widen_vector(corners, low, high, points, row)

    @_uncounted
    def join(corners, mine, first_low, first_high, second_low, second_high):
        """Set rows `mine` and `mine` + 1 to the box around two boxes. Returns r, the sum of its side lengths; -r (or -0.0) if
        that changed the box. Modified in place.
        """
        return _join_vector(corners, mine, first_low, first_high, second_low, second_high)

    @_uncounted
    def pick_child(nodes, node, points, row):
        """The child of an internal node that a point with a value in the cut's dimension belongs to, without a branch."""
        return _pick_child_vector(nodes, node, points, row)


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
def _join_children(nodes, corners, node):
    """Set the node's box to the union of its children's and its range sum to match. True if that changed the box.
    Modified in place.
    """
    left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
    found = join(
        corners,
        2 * node,
        _low_row(nodes, left),
        _high_row(nodes, left),
        _low_row(nodes, right),
        _high_row(nodes, right),
    )
    nodes[node]["range_sum"] = abs(found)
    return math.copysign(1.0, found) < 0.0


@_uncounted
def _place_cut(corners, low, high, points, row, offset):
    """Cut that separates the point from the box: `offset` in [0, sum of gaps) is a place in the gaps laid end to end.

    Returns (dimension, value) with value in [point, low) or [high, point): "left iff x <= value" then holds for
    exactly one side.
    """
    dim, within = 0, 0.0
    for i in range(points.shape[1]):
        x = np.float64(points[row, i])
        below, above = np.float64(corners[low, i]) - x, x - np.float64(corners[high, i])
        gap = below if below > above else above
        if gap > 0.0:
            dim, within = i, offset
            if offset < gap:
                break
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
    for i in range(points.shape[1]):
        corners[leaf + first_leaf, i] = points[row, i]
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
    _join_children(nodes, corners, above)
    return leaf


@_uncounted
def insert_point(tree, nodes, corners, points, row, stream):
    """Insert one point; returns its leaf, which is an old one if the tree holds an equal point. Modified in place.

    Top down: at a node with range sum R and gap sum E the next cut of the widened box separates the point with
    probability E / (R + E), at a uniform place in the gaps; else the node's own cut stands. Source: Guha et al.,
    algorithm 2.
    """
    first_leaf = nodes.shape[0] // 2
    node = int(tree["root"])
    if node == NONE:
        leaf = int(tree["free_leaf"])
        tree["free_leaf"] = nodes[leaf]["left"]
        tree["root"] = leaf
        for i in range(points.shape[1]):
            corners[leaf + first_leaf, i] = points[row, i]
        nodes[leaf]["mass"] = 1
        nodes[leaf]["left"] = NONE
        nodes[leaf]["parent"] = NONE
        return leaf
    draw = 0
    while True:
        low, high = _low_row(nodes, node), _high_row(nodes, node)
        gap = gap_sum(corners, low, high, points, row)
        draw += 1
        offset = uniform(stream, draw) * (nodes[node]["range_sum"] + gap)
        if gap > 0.0 and (offset < gap or node >= first_leaf):
            dim, value = _place_cut(corners, low, high, points, row, offset)
            return _splice(tree, nodes, corners, node, points, row, dim, value)
        if node >= first_leaf:
            dim = _missing_dim(corners, low, points, row)
            if dim == NONE:
                nodes[node]["mass"] += 1
                return node
            # Points that differ only in what is missing: present to the left, missing to the right.
            return _splice(tree, nodes, corners, node, points, row, dim, np.float32(np.inf))
        child = _child(nodes, node, points, row)
        nodes[node]["range_sum"] = widen(corners, low, high, points, row)
        nodes[node]["mass"] += 1
        node = child


@_uncounted
def delete_leaf(tree, nodes, corners, leaf):
    """Take one point of this leaf out of the tree; boxes are rebuilt upwards until one does not change. Modified in place.

    Source: Guha et al., algorithm 1.
    """
    nodes[leaf]["mass"] -= 1
    node = int(nodes[leaf]["parent"])
    shrinking = False
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
            shrinking = True
        nodes[leaf]["left"] = tree["free_leaf"]
        tree["free_leaf"] = leaf
    while node != NONE:
        nodes[node]["mass"] -= 1
        if shrinking:
            shrinking = _join_children(nodes, corners, node)
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
        _join_children(nodes, corners, order[i])


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
    size = int(tree["size"])
    slots[0]["key"], slots[0]["row"], slots[0]["leaf"] = key, row, leaf
    i = 0
    while 2 * i + 1 < size:
        j = 2 * i + 1
        if j + 1 < size and slots[j + 1]["key"] > slots[j]["key"]:
            j += 1
        if slots[i]["key"] >= slots[j]["key"]:
            return
        _swap_slots(slots, i, j)
        i = j


@_uncounted
def _refusal_bound(tree, slots, age):
    """A row of this age or older whose number u is at most this is certain to be refused by the tree; 0 where none is.

    u stays iff log(-log(u)) - age < largest key kept, that is u > exp(-exp(largest key + age)); the bound leaves room for
    rounding. It saves two logarithms for nearly every row.
    """
    if tree["size"] < slots.shape[0]:
        return 0.0
    return math.exp(-math.exp(slots[0]["key"] + age)) * (1.0 - 1e-9)


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


@_uncounted
def learn_row(tree, nodes, corners, slots, points, row, number, stream, key, verdict):
    """Take the point in `points[row]`, row `number` of the stream, into tree and reservoir, as `wants_row` said. Modified in
    place.
    """
    if verdict == 2:
        delete_leaf(tree, nodes, corners, int(slots[0]["leaf"]))
    leaf = insert_point(tree, nodes, corners, points, row, stream)
    if verdict == 2:
        _replace_top(tree, slots, key, number, leaf)
    else:
        _append_slot(tree, slots, key, number, leaf)


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


@_uncounted
def _find_leaf(nodes, points, row, node, depth):
    """Leaf below `node` that the point belongs to, and its depth; whatever is missing in the point."""
    while node < nodes.shape[0] // 2:
        node = _child(nodes, node, points, row)
        depth += 1
    return node, depth


@_uncounted
def _find_leaves(nodes, points, node, depth, order, first, last, holes, leaves, depths):
    """leaves[k], depths[k] for the rows order[k], first <= k < last, from `node` down; four at a time, so that the loads of one
    hide behind those of the others, and without a branch that depends on data. Output modified in place.
    """
    first_leaf = nodes.shape[0] // 2
    for k in range(first, last, 4):
        j, m, n = min(k + 1, last - 1), min(k + 2, last - 1), min(k + 3, last - 1)
        row_k, row_j, row_m, row_n = int(order[k]), int(order[j]), int(order[m]), int(order[n])
        if holes[row_k] or holes[row_j] or holes[row_m] or holes[row_n]:
            for i in range(k, min(k + 4, last)):
                leaves[i], depths[i] = _find_leaf(nodes, points, int(order[i]), node, depth)
            continue
        at_k, at_j, at_m, at_n = node, node, node, node
        depth_k, depth_j, depth_m, depth_n = depth, depth, depth, depth
        while True:
            # -1 at an internal node, 0 at a leaf, where the row stays
            inner_k, inner_j = (at_k - first_leaf) >> 63, (at_j - first_leaf) >> 63
            inner_m, inner_n = (at_m - first_leaf) >> 63, (at_n - first_leaf) >> 63
            if inner_k + inner_j + inner_m + inner_n == 0:
                break
            at_k ^= (pick_child(nodes, at_k, points, row_k) ^ at_k) & inner_k
            at_j ^= (pick_child(nodes, at_j, points, row_j) ^ at_j) & inner_j
            at_m ^= (pick_child(nodes, at_m, points, row_m) ^ at_m) & inner_m
            at_n ^= (pick_child(nodes, at_n, points, row_n) ^ at_n) & inner_n
            depth_k, depth_j, depth_m, depth_n = depth_k - inner_k, depth_j - inner_j, depth_m - inner_m, depth_n - inner_n
        leaves[n], leaves[m], leaves[j], leaves[k] = at_n, at_m, at_j, at_k
        depths[n], depths[m], depths[j], depths[k] = depth_n, depth_m, depth_j, depth_k


@_uncounted
def _is_whole(corners, row):
    """Whether a corner has a value in every coordinate."""
    missing = 0
    for i in range(corners.shape[1]):
        missing += corners[row, i] != corners[row, i]
    return missing == 0


@_uncounted
def _climb(nodes, corners, points, row, leaf, depth, total_mass):
    """value(root) of one row."""
    gap = gap_sum(corners, _low_row(nodes, leaf), _high_row(nodes, leaf), points, row)
    value = _leaf_term(depth, gap, nodes[leaf]["mass"], total_mass)
    node = int(nodes[leaf]["parent"])
    while node != NONE:
        gap = gap_sum(corners, 2 * node, 2 * node + 1, points, row)
        if gap <= 0.0 and _is_whole(corners, 2 * node):
            break
        depth -= 1
        q = gap / (nodes[node]["range_sum"] + gap + _TINY)
        value = q * _INVERSE[depth] + (1.0 - q) * value
        node = int(nodes[node]["parent"])
    return value


@_uncounted
def _climb_rows(nodes, corners, points, start, start_depth, order, first, last, total_mass, leaves, depths, value):
    """value[row] = value(start) of the rows order[first:last]. Returns how many lie outside the box of `start`, or may lie
    outside one above it; they are first in order[first:] after this. Modified in place.

    One loop over all boxes of all rows, and nothing in it branches on data: rows end at heights that no processor can predict,
    and a wrong guess costs as much as a few boxes.
    """
    first_leaf = nodes.shape[0] // 2
    least = 0.0 if _is_whole(corners, _low_row(nodes, start)) else -1.0
    visits = 0
    for k in range(first, last):
        visits += depths[k] - start_depth + 1
    k, outside = first, first
    node, depth, current = int(leaves[k]), int(depths[k]), 0.0
    for _ in range(visits):
        inner = (node - first_leaf) >> 63
        low = node + first_leaf + ((node - first_leaf) & inner)
        row = int(order[np.uint64(k)])
        gap = gap_sum(corners, low, low - inner, points, row)
        q = gap / (nodes[np.uint64(node)]["range_sum"] + gap + _TINY)
        current = q * _INVERSE[np.uint64(depth)] + (1.0 - q) * current
        if gap - inner <= 0.0:  # a leaf that holds the point
            current = _leaf_term(depth, gap, nodes[np.uint64(node)]["mass"], total_mass)
        value[np.uint64(row)] = current
        order[np.uint64(outside)] = row
        more = (start_depth - depth) >> 63  # -1 below `start`, 0 at it
        outside += int(gap > least) & ~more
        k += 1 + more
        parent = int(nodes[np.uint64(node)]["parent"])
        leaf, leaf_depth = int(leaves[np.uint64(k)]), int(depths[np.uint64(k)])
        node = leaf ^ ((parent ^ leaf) & more)
        depth = leaf_depth ^ (((depth - 1) ^ leaf_depth) & more)
    return outside - first


@_uncounted
def _divide_rows(nodes, points, node, order, first, last, right):
    """Put those of the rows order[first:last] first that belong to the left child of `node`. Returns where the others begin.
    `right` is scratch.
    """
    cut = nodes[node]["cut_value"]
    dim = np.uint64(nodes[node]["cut_dim"])
    heavy_right = nodes[int(nodes[node]["right"])]["mass"] > nodes[int(nodes[node]["left"])]["mass"]
    middle, count = first, 0
    for k in range(first, last):
        row = int(order[np.uint64(k)])
        x = points[np.uint64(row), dim]
        goes_right = int((x > cut) | ((x != x) & heavy_right))
        order[np.uint64(middle)] = row
        right[np.uint64(count)] = row
        middle += 1 - goes_right
        count += goes_right
    for k in range(count):
        order[np.uint64(middle + k)] = right[np.uint64(k)]
    return middle


@_uncounted
def _join_rows(nodes, corners, points, node, depth, order, target, first, last, value):
    """value[row] from that of the child to that of `node`, for the rows order[first:last]. Those that lie outside the box of
    `node`, or may lie outside one above it, are moved to order[target:], target <= first; returns the end of them.
    """
    range_sum, weight = nodes[node]["range_sum"], _INVERSE[depth]
    least = 0.0 if _is_whole(corners, 2 * node) else -1.0
    for k in range(first, last):
        row = int(order[np.uint64(k)])
        gap = gap_sum(corners, 2 * node, 2 * node + 1, points, row)
        q = gap / (range_sum + gap + _TINY)
        value[np.uint64(row)] = q * weight + (1.0 - q) * value[np.uint64(row)]
        order[np.uint64(target)] = row
        target += int(gap > least)
    return target


@_uncounted
def score_run(tree, nodes, corners, points, first, last, holes, order, leaves, depths, stack, value):
    """value[j] = score of row j in one tree, for first <= j < last; in [0, log2(1 + mass)]. Output modified in place.

    The score is the expected inverse depth times log2(1 + mass of the tree). Many rows go down the tree together, dividing at
    every node as in a sort, and come up together, so that a box is loaded once for all that reach it; those that it holds are
    done. Few rows at a node go on by themselves. `holes[j]` says whether row j has a missing value. `order`, `leaves` and
    `depths` (one entry more than rows) and `stack` are scratch.
    """
    root = int(tree["root"])
    for j in range(first, last):
        order[j] = j
        value[j] = 0.0
    if root == NONE or first >= last:
        return
    first_leaf, mass = nodes.shape[0] // 2, int(nodes[root]["mass"])
    # A frame: node, rows begin:end, where the right child's rows begin, rows left over by the left child, what comes next.
    top = 0
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 5] = root, first, last, 0
    found = 0
    while top >= 0:
        node, begin, end = int(stack[top, 0]), int(stack[top, 1]), int(stack[top, 2])
        if begin == end:
            found = 0
            top -= 1
        elif end - begin < _FEW_ROWS or node >= first_leaf:
            _find_leaves(nodes, points, node, top, order, begin, end, holes, leaves, depths)
            found = _climb_rows(nodes, corners, points, node, top, order, begin, end, mass, leaves, depths, value)
            top -= 1
        elif stack[top, 5] == 0:
            middle = _divide_rows(nodes, points, node, order, begin, end, leaves)
            stack[top, 3], stack[top, 5] = middle, 1
            top += 1
            stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 5] = int(nodes[node]["left"]), begin, middle, 0
        elif stack[top, 5] == 1:
            stack[top, 4], stack[top, 5] = found, 2
            middle = int(stack[top, 3])
            top += 1
            stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 5] = int(nodes[node]["right"]), middle, end, 0
        else:
            middle, left_over = int(stack[top, 3]), int(stack[top, 4])
            target = _join_rows(nodes, corners, points, node, top, order, begin, begin, begin + left_over, value)
            target = _join_rows(nodes, corners, points, node, top, order, target, middle, middle + found, value)
            found = target - begin
            top -= 1
    scale = math.log2(1.0 + mass)
    for j in range(first, last):
        value[j] *= scale


@_compiled
def _find_holes(points):
    """Whether a row has a missing value, shape (n,), bool."""
    holes = np.zeros(points.shape[0], np.bool_)
    for j in range(points.shape[0]):
        for i in range(points.shape[1]):
            holes[j] |= points[j, i] != points[j, i]
    return holes


@_uncounted
def score_point(tree, nodes, corners, points, row):
    """`score_run` of one row."""
    root = int(tree["root"])
    if root == NONE:
        return 0.0
    mass = int(nodes[root]["mass"])
    leaf, depth = _find_leaf(nodes, points, row, root, 0)
    return _climb(nodes, corners, points, row, leaf, depth, mass) * math.log2(1.0 + mass)


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
        nodes[node]["range_sum"] = widen(corners, 2 * node, 2 * node + 1, corners, leaf + first_leaf)
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
            widen(shadow, 0, 1, corners, low)
            widen(shadow, 0, 1, corners, high)
        node = int(nodes[node]["parent"])
        gap = gap_sum(shadow, 0, 1, points, row)
        if gap <= 0.0:
            break
        total = gap_sum(shadow, 1, 1, shadow, 0) + gap
        vector *= 1.0 - gap / total
        add_gaps(shadow, 0, 1, points, row, 1.0 / (total * depth), vector, 0)
        depth -= 1
    total = 0.0
    for i in range(columns):
        total += vector[0, i] + vector[1, i]
    for i in range(columns):
        sums[at, i] += vector[0, i] * (amount / total)
        sums[at + 1, i] += vector[1, i] * (amount / total)


@_uncounted
def explain_point(nodes, corners, points, row, leaf, depth, scale, mass, columns, sums, at, shadow, vector, path, gaps):
    """Add the tree's score of the point to `sums`, rows `at` (high) and `at` + 1 (low), float64, by coordinate. Modified in
    place.

    Each term of the score is split over the coordinates in proportion to their gaps. `leaf` at `depth` is the one that the
    point leads to, `mass` the tree's, `scale` log2(1 + mass). `path` (int32) and `gaps` (float64), one entry per level, are
    scratch.
    """
    leaf_gap = gap_sum(corners, _low_row(nodes, leaf), _high_row(nodes, leaf), points, row)
    # Up to the first box that holds the point, then down again, where the parts are known.
    node, top = int(nodes[leaf]["parent"]), depth
    unseen = False
    while node != NONE:
        gap = gap_sum(corners, 2 * node, 2 * node + 1, points, row)
        if gap <= 0.0 and _is_whole(corners, 2 * node):
            break
        unseen |= gap > 0.0
        top -= 1
        path[top], gaps[top] = node, gap
        node = int(nodes[node]["parent"])
    alive = scale
    for level in range(top, depth):
        node, gap = int(path[level]), gaps[level]
        total = nodes[node]["range_sum"] + gap + _TINY
        add_gaps(corners, 2 * node, 2 * node + 1, points, row, alive / total * _INVERSE[level], sums, at)
        alive *= 1.0 - gap / total
    amount = alive * _leaf_term(depth, leaf_gap, nodes[leaf]["mass"], mass)
    leaf_row = _low_row(nodes, leaf)
    if leaf_gap > 0.0:
        add_gaps(corners, leaf_row, leaf_row, points, row, amount / leaf_gap, sums, at)
    elif not unseen:
        _explain_seen(nodes, corners, points, row, leaf, columns, amount, sums, at, shadow, vector)
    else:
        _add_evenly(points, row, columns, amount, sums, at)


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
    for t in range(first_chunk * CHUNK_TREES, min(last_chunk * CHUNK_TREES, trees.shape[0])):
        tree = trees[t]
        clear_tree(tree, nodes[t])
        bound = 0.0
        for j in range(points.shape[0]):
            u = uniform(random_stream(seed, t, j), 0)
            if u <= bound:
                continue
            key = _sample_key(u, 0.0)
            if tree["size"] < slots.shape[1]:
                _append_slot(tree, slots[t], key, j, NONE)
            elif key < slots[t][0]["key"]:
                _replace_top(tree, slots[t], key, j, NONE)
            bound = _refusal_bound(tree, slots[t], 0.0)
        size = int(tree["size"])
        rows = np.empty(size, np.int64)
        for i in range(size):
            rows[i] = slots[t][i]["row"]
        for i in np.argsort(rows):
            j = rows[i]
            slots[t][i]["leaf"] = insert_point(tree, nodes[t], corners[t], points, j, random_stream(seed, t, j))


@_compiled
def score_rows(trees, nodes, corners, points, scores, first_chunk, last_chunk):
    """scores[chunk, j] (float64) = sum over the chunk's trees of the score of row j. Output modified in place."""
    n = points.shape[0]
    holes, value = _find_holes(points), np.empty(n)
    order, leaves, depths = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)
    stack = np.empty((nodes.shape[1] // 2 + 2, 6), np.int32)
    for chunk in range(first_chunk, last_chunk):
        scores[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            score_run(trees[t], nodes[t], corners[t], points, 0, n, holes, order, leaves, depths, stack, value)
            for j in range(n):
                scores[chunk, j] += value[j]


@_compiled
def learn_rows(
    trees, nodes, corners, slots, points, numbers, ages, seed, accept_fraction, with_scores, scores, first_chunk, last_chunk
):
    """Score every row and then offer it to every tree. Modified in place.

    numbers (int64) and ages (float64, never falling) have one entry per row. scores[chunk, j] as in `score_rows`, of the forest
    as it was before row j; left alone unless `with_scores`. Between two rows that a tree takes it does not change, so the rows
    up to and with the second are scored together.
    """
    n = points.shape[0]
    holes, value = _find_holes(points), np.empty(n)
    order, leaves, depths = np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32), np.zeros(n + 1, np.int32)
    stack = np.empty((nodes.shape[1] // 2 + 2, 6), np.int32)
    for chunk in range(first_chunk, last_chunk):
        if with_scores:
            scores[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            tree, tree_nodes, tree_corners, tree_slots = trees[t], nodes[t], corners[t], slots[t]
            scored = 0
            bound = _refusal_bound(tree, tree_slots, ages[n - 1]) if n > 0 else 0.0
            for j in range(n):
                stream = random_stream(seed, t, numbers[j])
                u = uniform(stream, 0)
                if u <= bound:
                    continue
                key = _sample_key(u, ages[j])
                verdict = wants_row(tree, tree_slots, key, stream, accept_fraction)
                if verdict == 0:
                    continue
                if with_scores:
                    score_run(tree, tree_nodes, tree_corners, points, scored, j + 1, holes, order, leaves, depths, stack, value)
                    scored = j + 1
                learn_row(tree, tree_nodes, tree_corners, tree_slots, points, j, numbers[j], stream, key, verdict)
                bound = _refusal_bound(tree, tree_slots, ages[n - 1])
            if with_scores:
                score_run(tree, tree_nodes, tree_corners, points, scored, n, holes, order, leaves, depths, stack, value)
                for j in range(n):
                    scores[chunk, j] += value[j]


@_compiled
def score_training_rows(trees, nodes, corners, slots, points, numbers, scores, first_chunk, last_chunk):
    """`score_rows` for rows that the forest was fitted to: a tree that sampled a row scores it as if it had not. `numbers`
    (int64, ascending) are the rows' numbers.

    Output modified in place; the trees are as before in the end.
    """
    n = points.shape[0]
    leaves = np.empty(n, np.int32)
    for chunk in range(first_chunk, last_chunk):
        scores[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            leaves[:] = NONE
            for i in range(trees[t]["size"]):
                number = slots[t][i]["row"]
                j = np.searchsorted(numbers, number)
                if j < n and numbers[j] == number:
                    leaves[j] = slots[t][i]["leaf"]
            for j in range(n):
                if leaves[j] == NONE:
                    scores[chunk, j] += score_point(trees[t], nodes[t], corners[t], points, j)
                else:
                    scores[chunk, j] += score_without(trees[t], nodes[t], corners[t], points, j, int(leaves[j]))


@_compiled
def explain_rows(trees, nodes, corners, points, columns, attributions, first_chunk, last_chunk):
    """attributions[chunk, j] (2, width) float64 = sum over the chunk's trees of `explain_point` of row j. Output
    modified in place.
    """
    n = points.shape[0]
    shadow = np.empty((2, points.shape[1]), np.float32)
    vector = np.empty((2, points.shape[1]), np.float64)
    path, gaps = np.empty(nodes.shape[1], np.int32), np.empty(nodes.shape[1], np.float64)
    holes, order = _find_holes(points), np.arange(n).astype(np.int32)
    leaves, depths = np.empty(n, np.int32), np.empty(n, np.int32)
    for chunk in range(first_chunk, last_chunk):
        attributions[chunk] = 0.0
        # One view for all rows: a view counts references, which takes longer than a box.
        sums = attributions[chunk].reshape(2 * n, points.shape[1])
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            root = int(trees[t]["root"])
            if root == NONE:
                continue
            tree_nodes, tree_corners = nodes[t], corners[t]
            mass = int(tree_nodes[root]["mass"])
            scale = math.log2(1.0 + mass)
            _find_leaves(tree_nodes, points, root, 0, order, 0, n, holes, leaves, depths)
            for j in range(n):
                leaf, depth = int(leaves[j]), int(depths[j])
                explain_point(
                    tree_nodes,
                    tree_corners,
                    points,
                    j,
                    leaf,
                    depth,
                    scale,
                    mass,
                    columns,
                    sums,
                    2 * j,
                    shadow,
                    vector,
                    path,
                    gaps,
                )


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
