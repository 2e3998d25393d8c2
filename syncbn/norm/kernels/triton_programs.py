"""Device code of `triton.py`: the program of each kernel.

A tensor (N, C, *) is read in memory order: channels last (ROWS) as N·S rows of C values, contiguous as planes of S
values. A program processes tiles of OUTER rows or planes by INNER values. The number of values in a row or plane is
`inner_units`·ALIGN, since the compiler vectorizes loads only by known divisors.
"""

import triton
import triton.language as tl

# Tiles prefetched while a program processes one: without them a multiprocessor would need twice as many programs to
# saturate its share of the memory bandwidth.
_AHEAD = tl.constexpr(3)


@triton.jit
def moments_parts(
    x,
    parts,
    outer_size,
    inner_units,
    channels,
    tiles,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    """Sum every `splits`-th tile of some channels: count n, a point K, Σ(x - K), Σ(x - K)²; parts (4, C, splits).

    K is the mean of the first of these tiles. This avoids cancellation for data far from 0, and a single outlier
    changes K little.
    """
    part, splits = tl.program_id(1), tl.num_programs(1)
    offsets, valid, count = _tile(part, outer_size, inner_units * ALIGN, channels, ROWS, OUTER, INNER)
    near = _over_tile(tl.load(x + offsets, mask=valid, other=0.0).to(ACC), ROWS) / count
    total = tl.zeros((OUTER, INNER), ACC)
    squares = tl.zeros((OUTER, INNER), ACC)
    seen = 0
    for index in tl.range(part, tiles, splits, num_stages=_AHEAD):
        offsets, valid, count = _tile(index, outer_size, inner_units * ALIGN, channels, ROWS, OUTER, INNER)
        values = tl.load(x + offsets, mask=valid, other=0.0).to(ACC)
        centred = tl.where(valid, values - _along(near, ROWS), 0.0)
        total += centred
        squares += centred * centred
        seen += count
    _store_part(parts, 0, tl.zeros_like(near) + seen, channels, ROWS, INNER)
    _store_part(parts, 1, near, channels, ROWS, INNER)
    _store_part(parts, 2, _over_tile(total, ROWS), channels, ROWS, INNER)
    _store_part(parts, 3, _over_tile(squares, ROWS), channels, ROWS, INNER)


@triton.jit
def moments_merge(parts, mean, m2, splits, SPLITS: tl.constexpr):
    """Merge the parts of a channel to mean and M2, by the law of total variance, in float64."""
    count = _load_parts(parts, 0, splits, SPLITS)
    share = _load_parts(parts, 2, splits, SPLITS) / tl.maximum(count, 1.0)
    means = _load_parts(parts, 1, splits, SPLITS) + share
    merged = tl.sum(count * means) / tl.sum(count)
    within = _load_parts(parts, 3, splits, SPLITS) - count * share * share
    between = count * (means - merged) * (means - merged)
    total = tl.sum(within + between)
    tl.store(mean + tl.program_id(0), merged)
    # May be negative by rounding. `tl.maximum` would hide a NaN.
    tl.store(m2 + tl.program_id(0), tl.where(total < 0, 0.0, total))


@triton.jit
def grad_parts(
    x,
    dy,
    y,
    dz,
    mean,
    parts,
    outer_size,
    inner_units,
    channels,
    tiles,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    """Sum every `splits`-th tile of some channels: Σdy and Σdy·(x - mean); parts (2, C, splits).

    With a SLOPE, dz = dy where y > 0 and SLOPE·dy elsewhere is written, and used instead of dy.
    """
    part, splits = tl.program_id(1), tl.num_programs(1)
    channel = _channel(ROWS, INNER)
    center = _along(_or(mean, channel, channels, 0.0), ROWS)
    total = tl.zeros((OUTER, INNER), ACC)
    products = tl.zeros((OUTER, INNER), ACC)
    for index in tl.range(part, tiles, splits, num_stages=_AHEAD):
        offsets, valid, _ = _tile(index, outer_size, inner_units * ALIGN, channels, ROWS, OUTER, INNER)
        grads = tl.load(dy + offsets, mask=valid, other=0.0)
        values = tl.load(x + offsets, mask=valid, other=0.0).to(ACC)
        if SLOPE is not None:
            outputs = tl.load(y + offsets, mask=valid, other=0.0).to(ACC)
            grads = tl.where(outputs > 0, grads, (grads.to(ACC) * SLOPE).to(grads.dtype))
            tl.store(dz + offsets, grads, mask=valid)
        grads = grads.to(ACC)
        total += grads
        products += grads * (values - center)
    _store_part(parts, 0, _over_tile(total, ROWS), channels, ROWS, INNER)
    _store_part(parts, 1, _over_tile(products, ROWS), channels, ROWS, INNER)


@triton.jit
def grad_merge(parts, var, sums, splits, EPS: tl.constexpr, SPLITS: tl.constexpr):
    """Merge the parts of a channel to Σdy and Σdy·x̂ in float64; sums (2, C)."""
    channel, channels = tl.program_id(0), tl.num_programs(0)
    invstd = tl.rsqrt(tl.load(var + channel) + EPS)
    tl.store(sums + channel, tl.sum(_load_parts(parts, 0, splits, SPLITS)))
    tl.store(sums + channels + channel, tl.sum(_load_parts(parts, 1, splits, SPLITS)) * invstd)


@triton.jit
def normalize(
    x,
    residual,
    mean,
    var,
    weight,
    bias,
    y,
    outer_size,
    inner_units,
    channels,
    EPS: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    """z = (x - mean) / sqrt(var + EPS) · weight + bias + residual; with a SLOPE, SLOPE·z where z isn't above 0."""
    if ROWS:
        column = _channel(ROWS, INNER)
        center, scale = _center_and_scale(column, channels, mean, var, weight, EPS, ROWS)
        shift = _along(_or(bias, column, channels, 0.0), ROWS)
    for block in range(tl.program_id(1), tl.cdiv(outer_size, OUTER), tl.num_programs(1)):
        offsets, valid, channel = _block(block, outer_size, inner_units * ALIGN, channels, OUTER, INNER)
        if not ROWS:
            center, scale = _center_and_scale(channel, channels, mean, var, weight, EPS, ROWS)
            shift = _along(_or(bias, channel, channels, 0.0), ROWS)
        values = tl.load(x + offsets, mask=valid, other=0.0).to(ACC)
        z = (values - center) * scale + shift
        if residual is not None:
            z += tl.load(residual + offsets, mask=valid, other=0.0).to(ACC)
        if SLOPE is not None:
            z = tl.where(z > 0, z, z * SLOPE)
        tl.store(y + offsets, z, mask=valid)


@triton.jit
def input_grad(
    x,
    dy,
    mean,
    var,
    weight,
    mean_dy,
    mean_dy_xhat,
    dx,
    outer_size,
    inner_units,
    channels,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    ALIGN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    """dx = weight / sqrt(var + EPS) · (dy - mean_dy - x̂ · mean_dy_xhat)."""
    if ROWS:
        column = _channel(ROWS, INNER)
        center, scale = _center_and_scale(column, channels, mean, var, weight, EPS, ROWS)
        level, slope = _level_and_slope(column, channels, var, mean_dy, mean_dy_xhat, EPS, ROWS)
    for block in range(tl.program_id(1), tl.cdiv(outer_size, OUTER), tl.num_programs(1)):
        offsets, valid, channel = _block(block, outer_size, inner_units * ALIGN, channels, OUTER, INNER)
        if not ROWS:
            center, scale = _center_and_scale(channel, channels, mean, var, weight, EPS, ROWS)
            level, slope = _level_and_slope(channel, channels, var, mean_dy, mean_dy_xhat, EPS, ROWS)
        grads = tl.load(dy + offsets, mask=valid, other=0.0).to(ACC)
        values = tl.load(x + offsets, mask=valid, other=0.0).to(ACC)
        tl.store(dx + offsets, (grads - level - (values - center) * slope) * scale, mask=valid)


@triton.jit
def _center_and_scale(channel, channels, mean, var, weight, EPS: tl.constexpr, ROWS: tl.constexpr):
    """mean and weight / sqrt(var + EPS)."""
    scale = tl.rsqrt(_or(var, channel, channels, 1.0) + EPS) * _or(weight, channel, channels, 1.0)
    return _along(_or(mean, channel, channels, 0.0), ROWS), _along(scale, ROWS)


@triton.jit
def _level_and_slope(channel, channels, var, mean_dy, mean_dy_xhat, EPS: tl.constexpr, ROWS: tl.constexpr):
    """mean_dy and mean_dy_xhat / sqrt(var + EPS)."""
    slope = tl.rsqrt(_or(var, channel, channels, 1.0) + EPS) * _or(mean_dy_xhat, channel, channels, 0.0)
    return _along(_or(mean_dy, channel, channels, 0.0), ROWS), _along(slope, ROWS)


@triton.jit
def _or(per_channel, channel, channels, otherwise: tl.constexpr):
    """Channels' entries of a tensor, or a default if it is None."""
    if per_channel is None:
        return tl.full(channel.shape, otherwise, tl.float32)
    else:  # noqa: RET505  # Triton also compiles code after a `return`
        return tl.load(per_channel + channel, mask=channel < channels, other=otherwise)


@triton.jit
def _block(block, outer_size, inner_size, channels, OUTER: tl.constexpr, INNER: tl.constexpr):
    """Offsets and mask of a tile in the program's column over all rows or planes, and the channels of planes."""
    first = tl.cast(block, tl.int64) * OUTER
    outer = first + tl.arange(0, OUTER)
    inner = tl.program_id(0) * INNER + tl.arange(0, INNER)
    channel = ((first % channels).to(tl.int32) + tl.arange(0, OUTER)) % channels  # avoids an int64 division per element
    valid = (outer < outer_size)[:, None] & (inner < inner_size)[None, :]
    return outer[:, None] * inner_size + inner[None, :], valid, channel


@triton.jit
def _tile(index, outer_size, inner_size, channels, ROWS: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr):
    """Offsets and mask of a tile of the program's channels, and its number of samples per channel."""
    if ROWS:  # of INNER channels
        first, inner_first = tl.cast(index, tl.int64) * OUTER, tl.program_id(0) * INNER
        start = first + tl.arange(0, OUTER)
    else:  # of one channel, with planes `channels` planes apart
        blocks = tl.cdiv(inner_size, INNER)
        first, inner_first = tl.cast(index // blocks, tl.int64) * OUTER, index % blocks * INNER
        start = (first + tl.arange(0, OUTER)) * channels + tl.program_id(0)
    outer, inner = first + tl.arange(0, OUTER), inner_first + tl.arange(0, INNER)
    valid = (outer < outer_size)[:, None] & (inner < inner_size)[None, :]
    count = tl.minimum(OUTER, outer_size - first).to(tl.int32)
    if not ROWS:
        count *= tl.minimum(INNER, inner_size - inner_first).to(tl.int32)
    return start[:, None] * inner_size + inner[None, :], valid, count


@triton.jit
def _channel(ROWS: tl.constexpr, INNER: tl.constexpr):
    """The program's channels: INNER, or one."""
    if ROWS:
        return tl.program_id(0) * INNER + tl.arange(0, INNER)
    else:  # noqa: RET505
        return tl.program_id(0) + tl.arange(0, 1)


@triton.jit
def _over_tile(tile, ROWS: tl.constexpr):
    """Sums of a tile over the program's channels."""
    return tl.sum(tile, 0) if ROWS else tl.sum(tl.sum(tile, 0, keep_dims=True), 1)


@triton.jit
def _along(per_channel, ROWS: tl.constexpr):
    """Reshape channels to broadcast over a tile."""
    return per_channel[None, :] if ROWS else per_channel[:, None]


@triton.jit
def _store_part(parts, row: tl.constexpr, values, channels, ROWS: tl.constexpr, INNER: tl.constexpr):
    channel, part, splits = _channel(ROWS, INNER), tl.program_id(1), tl.num_programs(1)
    tl.store(parts + (row * channels + channel) * splits + part, values, mask=channel < channels)


@triton.jit
def _load_parts(parts, row: tl.constexpr, splits, SPLITS: tl.constexpr):
    """Load a row of the program's channel's parts, in float64."""
    part = tl.arange(0, SPLITS)
    start = (row * tl.num_programs(0) + tl.program_id(0)) * splits
    return tl.load(parts + start + part, mask=part < splits, other=0.0).to(tl.float64)
