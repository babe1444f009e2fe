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

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
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

_TINY = 1e-300  # turns 0 / 0 into 0, and is lost in any sum of float32 values that is not zero
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)

# No fastmath: NaN is meaningful here, and sums must come out the same on every machine.
_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=False)


# --- the hot sum -----------------------------------------------------------------------------------


def _gap_sum_plain(corners, low, high, points, row):
    """`gap_sum` without compilation: the same additions in the same order."""
    point = points[row].astype(np.float64)
    below = corners[low].astype(np.float64) - point
    above = point - corners[high].astype(np.float64)
    gaps = np.where(below > above, below, above)
    gaps = np.where(gaps > 0.0, gaps, 0.0)
    sums = gaps.reshape(-1, LANES)
    total = np.zeros(LANES)
    for part in sums:
        total = total + part
    while total.size > 1:
        half = total.size // 2
        total = total[:half] + total[half:]
    return float(total[0])


@intrinsic
def _gap_sum_vector(typing_context, corners, low, high, points, row):
    """`gap_sum` as vector instructions, which the compiler does not find by itself without permission to reorder sums."""

    def generate(context, builder, signature, arguments):
        f32, f64, i32 = ir.FloatType(), ir.DoubleType(), ir.IntType(32)
        packed, wide = ir.VectorType(f32, LANES), ir.VectorType(f64, LANES)
        box_array = context.make_array(signature.args[0])(context, builder, arguments[0])
        point_array = context.make_array(signature.args[3])(context, builder, arguments[3])
        width = cgutils.unpack_tuple(builder, point_array.shape)[1]

        def row_pointer(array, index):
            index = builder.sext(index, width.type) if index.type.width < width.type.width else index
            return builder.gep(array.data, [builder.mul(index, width)])

        pointers = [
            row_pointer(box_array, arguments[1]),
            row_pointer(box_array, arguments[2]),
            row_pointer(point_array, arguments[4]),
        ]
        zero = ir.Constant(wide, [0.0] * LANES)
        total = cgutils.alloca_once_value(builder, zero)
        start, step = ir.Constant(width.type, 0), ir.Constant(width.type, LANES)
        with cgutils.for_range_slice(builder, start, width, step, inc=True) as (index, _):

            def load(pointer):
                source = builder.bitcast(builder.gep(pointer, [index]), packed.as_pointer())
                values = builder.load(source)
                values.align = 4
                return builder.fpext(values, wide)

            box_low, box_high, point = [load(pointer) for pointer in pointers]
            below, above = builder.fsub(box_low, point), builder.fsub(point, box_high)
            gap = builder.select(builder.fcmp_ordered(">", below, above), below, above)
            gap = builder.select(builder.fcmp_ordered(">", gap, zero), gap, zero)
            builder.store(builder.fadd(builder.load(total), gap), total)
        lanes = builder.load(total)
        size = LANES
        while size > 1:
            size //= 2
            undefined = ir.Constant(lanes.type, ir.Undefined)
            mask = ir.VectorType(i32, size)
            first = builder.shuffle_vector(lanes, undefined, ir.Constant(mask, list(range(size))))
            second = builder.shuffle_vector(lanes, undefined, ir.Constant(mask, list(range(size, 2 * size))))
            lanes = builder.fadd(first, second)
        return builder.extract_element(lanes, ir.Constant(i32, 0))

    return types.float64(corners, low, high, points, row), generate


# gap_sum(corners, low, high, points, row) = sum over i of max(corners[low, i] - points[row, i], points[row, i] -
# corners[high, i], 0)
#
# in float64, in LANES partial sums that are folded in halves; a NaN on either side adds 0. Both arrays are float32,
# C-contiguous, with the same number of columns, a multiple of LANES.
if config.DISABLE_JIT:  # type: ignore[attr-defined]
    gap_sum = _gap_sum_plain
else:

    @_compiled
    def gap_sum(corners, low, high, points, row):
        """Sum of the gaps between points[row] and the box with corners in rows `low` and `high`; 0 inside."""
        return _gap_sum_vector(corners, low, high, points, row)


# --- random numbers --------------------------------------------------------------------------------


@_compiled
def _mix(z):
    """Finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@_compiled
def random_stream(seed, tree, row):
    """Key (uint64) of the random numbers that `row` uses in `tree`: a pure function of its arguments, so nothing has
    to be saved.
    """
    key = _mix(np.uint64(seed) + _GOLDEN)
    key = _mix(key + np.uint64(tree + 1) * _GOLDEN)
    return _mix(key + np.uint64(row + 1) * _GOLDEN)


@_compiled
def uniform(stream, draw):
    """The `draw`-th number of a stream, float64 in the open interval (0, 1)."""
    return (np.float64(_mix(stream + np.uint64(draw + 1) * _GOLDEN) >> _S11) + 0.5) * 2.0**-53


# --- the tree --------------------------------------------------------------------------------------


@_compiled
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


@_compiled
def _low_row(nodes, node):
    """Row of `corners` with the low corner of the node's box; a leaf's box is its point."""
    first_leaf = nodes.shape[0] // 2
    return 2 * node if node < first_leaf else node + first_leaf


@_compiled
def _high_row(nodes, node):
    """Row of `corners` with the high corner of the node's box."""
    first_leaf = nodes.shape[0] // 2
    return 2 * node + 1 if node < first_leaf else node + first_leaf


@_compiled
def _child(nodes, node, points, row):
    """The child that the point belongs to; a missing coordinate follows the heavier child, the left one when they are equal."""
    value = points[row, nodes[node]["cut_dim"]]
    cut = nodes[node]["cut_value"]
    left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
    if value != value:
        return left if nodes[left]["mass"] >= nodes[right]["mass"] else right
    return left if value <= cut else right


@_compiled
def _widen(corners, low, high, points, row):
    """Grow the box in rows `low` and `high` to hold the point; NaN is ignored where the other side has a value.
    Modified in place.
    """
    for i in range(points.shape[1]):
        x, a, b = points[row, i], corners[low, i], corners[high, i]
        corners[low, i] = x if (x < a or a != a) else a
        corners[high, i] = x if (x > b or b != b) else b


@_compiled
def _join_children(nodes, corners, node):
    """Set the node's box to the union of its children's and its range sum to match. True if that changed the box.
    Modified in place.
    """
    left, right = int(nodes[node]["left"]), int(nodes[node]["right"])
    changed = False
    for side in range(2):
        mine = 2 * node + side
        first = _low_row(nodes, left) if side == 0 else _high_row(nodes, left)
        second = _low_row(nodes, right) if side == 0 else _high_row(nodes, right)
        for i in range(corners.shape[1]):
            a, b, old = corners[first, i], corners[second, i], corners[mine, i]
            inside = b > a if side == 0 else b < a
            value = a if (inside or b != b) else b
            corners[mine, i] = value
            changed |= value != old and (value == value or old == old)
    # Side lengths are gaps between the low corner and a box that is only the high corner.
    nodes[node]["range_sum"] = gap_sum(corners, 2 * node + 1, 2 * node + 1, corners, 2 * node)
    return changed


@_compiled
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


@_compiled
def _missing_dim(corners, leaf_row, points, row):
    """First dimension in which exactly one of leaf and point is missing; NONE if there is no such dimension."""
    for i in range(points.shape[1]):
        if (corners[leaf_row, i] != corners[leaf_row, i]) != (points[row, i] != points[row, i]):
            return i
    return NONE


@_compiled
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


@_compiled
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
        _widen(corners, low, high, points, row)
        nodes[node]["range_sum"] = gap_sum(corners, high, high, corners, low)
        nodes[node]["mass"] += 1
        node = child


@_compiled
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


@_compiled
def _sample_key(u, age):
    """Key of a row in the reservoir; the smallest keys stay. `age` = row * decay + offset, so that later rows get
    smaller keys.
    """
    return math.log(-math.log(u)) - age


@_compiled
def _swap_slots(slots, i, j):
    key, row, leaf = slots[i]["key"], slots[i]["row"], slots[i]["leaf"]
    slots[i]["key"], slots[i]["row"], slots[i]["leaf"] = slots[j]["key"], slots[j]["row"], slots[j]["leaf"]
    slots[j]["key"], slots[j]["row"], slots[j]["leaf"] = key, row, leaf


@_compiled
def _append_slot(tree, slots, key, row, leaf):
    """Add an entry to a reservoir that has room, and restore the heap. Modified in place."""
    i = int(tree["size"])
    tree["size"] = i + 1
    slots[i]["key"], slots[i]["row"], slots[i]["leaf"] = key, row, leaf
    while i > 0 and slots[(i - 1) // 2]["key"] < slots[i]["key"]:
        _swap_slots(slots, i, (i - 1) // 2)
        i = (i - 1) // 2


@_compiled
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


@_compiled
def learn_row(tree, nodes, corners, slots, points, row, number, stream, decay, decay_offset):
    """Offer the point in `points[row]`, row `number` of the stream, to the tree's reservoir; True if it was taken.
    Modified in place.
    """
    key = _sample_key(uniform(stream, 0), number * decay + decay_offset)
    if tree["size"] < slots.shape[0]:
        leaf = insert_point(tree, nodes, corners, points, row, stream)
        _append_slot(tree, slots, key, number, leaf)
        return True
    if key >= slots[0]["key"]:
        return False
    delete_leaf(tree, nodes, corners, int(slots[0]["leaf"]))
    leaf = insert_point(tree, nodes, corners, points, row, stream)
    _replace_top(tree, slots, key, number, leaf)
    return True


# --- the score -------------------------------------------------------------------------------------


@_compiled
def _leaf_term(depth, gap, leaf_mass, total_mass):
    """Inverse depth credited at a leaf: damped by the leaf's mass if the point is there already, else as if it were
    split off there.
    """
    if gap > 0.0:
        return 1.0 / (depth + 1.0)
    return (1.0 - leaf_mass / (2.0 * total_mass)) / (depth + math.log2(1.0 + leaf_mass))


@_compiled
def _inverse_depth(nodes, corners, points, row, node, depth, total_mass):
    """Expected inverse depth of the point, if it were inserted into the subtree of `node`, which is at `depth`.

    With q = E / (R + E), the probability that the next cut isolates the point here, the expectation is the recursion
        value(node) = q / (depth + 1) + (1 - q) * value(child)
    from the root down; `alive` is the product of the (1 - q) passed so far.
    """
    first_leaf = nodes.shape[0] // 2
    alive, value = 1.0, 0.0
    while node < first_leaf:
        gap = gap_sum(corners, 2 * node, 2 * node + 1, points, row)
        q = gap / (nodes[node]["range_sum"] + gap + _TINY)
        depth += 1
        value += alive * q / depth
        alive *= 1.0 - q
        node = _child(nodes, node, points, row)
    leaf_row = node + first_leaf
    gap = gap_sum(corners, leaf_row, leaf_row, points, row)
    return value + alive * _leaf_term(depth, gap, nodes[node]["mass"], total_mass)


@_compiled
def score_point(tree, nodes, corners, points, row):
    """Score of the point in one tree, in [0, log2(1 + mass)]: expected inverse depth times log2(1 + mass of the tree)."""
    root = int(tree["root"])
    if root == NONE:
        return 0.0
    mass = nodes[root]["mass"]
    return _inverse_depth(nodes, corners, points, row, root, 0, mass) * math.log2(1.0 + mass)


@_compiled
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
        _widen(corners, 2 * node, 2 * node + 1, corners, leaf + first_leaf)
        nodes[node]["range_sum"] = gap_sum(corners, 2 * node + 1, 2 * node + 1, corners, 2 * node)
        node = int(nodes[node]["parent"])
    return score


# --- attribution -----------------------------------------------------------------------------------


@_compiled
def _depth(nodes, node):
    depth = 0
    while nodes[node]["parent"] != NONE:
        node = int(nodes[node]["parent"])
        depth += 1
    return depth


@_compiled
def _sibling(nodes, node):
    parent = int(nodes[node]["parent"])
    return int(nodes[parent]["right"] if nodes[parent]["left"] == node else nodes[parent]["left"])


@_compiled
def _add_gaps(corners, low, high, points, row, weight, attribution):
    """attribution[0] += weight * gap above the box, attribution[1] += weight * gap below it. Modified in place."""
    for i in range(points.shape[1]):
        x = np.float64(points[row, i])
        above, below = x - np.float64(corners[high, i]), np.float64(corners[low, i]) - x
        attribution[0, i] += weight * above if above > 0.0 else 0.0
        attribution[1, i] += weight * below if below > 0.0 else 0.0


@_compiled
def _add_evenly(points, row, columns, amount, attribution):
    """Spread `amount` over both directions of every coordinate that has a value; over all if none has. Modified in place."""
    present = 0
    for i in range(columns):
        present += 1 if points[row, i] == points[row, i] else 0
    share = amount / (2.0 * (present if present > 0 else columns))
    for i in range(columns):
        if present == 0 or points[row, i] == points[row, i]:
            attribution[0, i] += share
            attribution[1, i] += share


@_compiled
def _explain_seen(nodes, corners, points, row, leaf, columns, amount, attribution, shadow, vector):
    """Spread `amount`, the score of a point that is in the tree, as it would be were the leaf not there. Modified in place.

    No box sets a known point apart, so the boxes of the siblings passed on the way up (`shadow`) stand in for those
    of the ancestors, and the result is scaled to the score that the point really has. `shadow` (2, width) float32 and
    `vector` (2, width) float64 are scratch.
    """
    vector[:] = 0.0
    depth = _depth(nodes, leaf)
    _add_evenly(points, row, columns, 1.0 / (depth + 1.0), vector)
    node = leaf
    while depth > 0:
        sibling = _sibling(nodes, node)
        low, high = _low_row(nodes, sibling), _high_row(nodes, sibling)
        if node == leaf:
            for i in range(points.shape[1]):
                shadow[0, i] = corners[low, i]
                shadow[1, i] = corners[high, i]
        else:
            _widen(shadow, 0, 1, corners, low)
            _widen(shadow, 0, 1, corners, high)
        node = int(nodes[node]["parent"])
        gap = gap_sum(shadow, 0, 1, points, row)
        if gap <= 0.0:
            break
        total = gap_sum(shadow, 1, 1, shadow, 0) + gap
        vector *= 1.0 - gap / total
        _add_gaps(shadow, 0, 1, points, row, 1.0 / (total * depth), vector)
        depth -= 1
    total = 0.0
    for i in range(columns):
        total += vector[0, i] + vector[1, i]
    for i in range(columns):
        attribution[0, i] += vector[0, i] * (amount / total)
        attribution[1, i] += vector[1, i] * (amount / total)


@_compiled
def explain_point(tree, nodes, corners, points, row, columns, attribution, shadow, vector):
    """Add the tree's score of the point to `attribution` (2, width) float64, high before low, by coordinate. Modified in place.

    Each term of the sum in `_inverse_depth` is split over the coordinates in proportion to their gaps.
    """
    root = int(tree["root"])
    if root == NONE:
        return
    first_leaf = nodes.shape[0] // 2
    mass = nodes[root]["mass"]
    alive, depth, node = math.log2(1.0 + mass), 0, root
    unseen = True
    while node < first_leaf:
        gap = gap_sum(corners, 2 * node, 2 * node + 1, points, row)
        depth += 1
        if gap > 0.0:
            total = nodes[node]["range_sum"] + gap
            _add_gaps(corners, 2 * node, 2 * node + 1, points, row, alive / (total * depth), attribution)
            alive *= 1.0 - gap / total
            unseen = False
        node = _child(nodes, node, points, row)
    leaf_row = node + first_leaf
    gap = gap_sum(corners, leaf_row, leaf_row, points, row)
    amount = alive * _leaf_term(depth, gap, nodes[node]["mass"], mass)
    if gap > 0.0:
        _add_gaps(corners, leaf_row, leaf_row, points, row, amount / gap, attribution)
    elif unseen:
        _explain_seen(nodes, corners, points, row, node, columns, amount, attribution, shadow, vector)
    else:
        _add_evenly(points, row, columns, amount, attribution)


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
        for j in range(points.shape[0]):
            key = _sample_key(uniform(random_stream(seed, t, j), 0), 0.0)
            if tree["size"] < slots.shape[1]:
                _append_slot(tree, slots[t], key, j, NONE)
            elif key < slots[t][0]["key"]:
                _replace_top(tree, slots[t], key, j, NONE)
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
    for chunk in range(first_chunk, last_chunk):
        for j in range(points.shape[0]):
            scores[chunk, j] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            tree, tree_nodes, tree_corners = trees[t], nodes[t], corners[t]
            for j in range(points.shape[0]):
                scores[chunk, j] += score_point(tree, tree_nodes, tree_corners, points, j)


@_compiled
def learn_rows(
    trees, nodes, corners, slots, points, first_row, seed, decay, decay_offset, with_scores, scores, first_chunk, last_chunk
):
    """Score every row and then offer it to every tree; rows are numbered from `first_row`. Modified in place.

    scores[chunk, j] as in `score_rows`, of the forest as it was before row j; left alone unless `with_scores`.
    """
    for chunk in range(first_chunk, last_chunk):
        if with_scores:
            for j in range(points.shape[0]):
                scores[chunk, j] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            tree, tree_nodes, tree_corners, tree_slots = trees[t], nodes[t], corners[t], slots[t]
            for j in range(points.shape[0]):
                if with_scores:
                    scores[chunk, j] += score_point(tree, tree_nodes, tree_corners, points, j)
                number = first_row + j
                stream = random_stream(seed, t, number)
                learn_row(tree, tree_nodes, tree_corners, tree_slots, points, j, number, stream, decay, decay_offset)


@_compiled
def score_training_rows(trees, nodes, corners, slots, points, first_row, scores, first_chunk, last_chunk):
    """`score_rows` for rows that the forest was fitted to, numbered from `first_row`: a tree that sampled a row
    scores it as if it had not.

    Output modified in place; the trees are as before in the end.
    """
    leaves = np.empty(points.shape[0], np.int32)
    for chunk in range(first_chunk, last_chunk):
        for j in range(points.shape[0]):
            scores[chunk, j] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            leaves[:] = NONE
            for i in range(trees[t]["size"]):
                j = slots[t][i]["row"] - first_row
                if 0 <= j < points.shape[0]:
                    leaves[j] = slots[t][i]["leaf"]
            for j in range(points.shape[0]):
                if leaves[j] == NONE:
                    scores[chunk, j] += score_point(trees[t], nodes[t], corners[t], points, j)
                else:
                    scores[chunk, j] += score_without(trees[t], nodes[t], corners[t], points, j, int(leaves[j]))


@_compiled
def explain_rows(trees, nodes, corners, points, columns, attributions, first_chunk, last_chunk):
    """attributions[chunk, j] (2, width) float64 = sum over the chunk's trees of `explain_point` of row j. Output
    modified in place.
    """
    shadow = np.empty((2, points.shape[1]), np.float32)
    vector = np.empty((2, points.shape[1]), np.float64)
    for chunk in range(first_chunk, last_chunk):
        attributions[chunk] = 0.0
        for t in range(chunk * CHUNK_TREES, min((chunk + 1) * CHUNK_TREES, trees.shape[0])):
            for j in range(points.shape[0]):
                explain_point(trees[t], nodes[t], corners[t], points, j, columns, attributions[chunk, j], shadow, vector)


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
