"""Triton kernels of decode attention: parts over the prefix and a row's own keys, and their merge."""

import triton
import triton.language as tl

# Split-KV decoding. One new token per row has too few queries to fill a GPU, so the keys are cut into splits
# that run as separate programs. 1. `prefix_kernel`: all queries of a mesh's rows that share a key head form
# one matrix, which meets a split of the mesh's prefix: each prefix tile is read once for all of them.
# 2. `own_kernel`: the few queries of one row and key head meet a split of the row's own keys; its end is read
# from `position` on the device, so a captured graph does the work of the true length, not of the capacity.
# 3. `merge_kernel`: each split left its normalised output and its log-sum-exp; the result is the mean of the
# outputs weighted by exp(lse - max lse). Scores and log-sum-exps are base 2, since exp2 is one instruction.


@triton.jit
def _attend(
    query,
    key,
    value,
    stride_key,
    stride_value,
    begin,
    end,
    scale,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax of `query` (BLOCK_M, BLOCK_D) over the keys [begin, end): normalised output and lse."""
    dims = tl.arange(0, BLOCK_D)
    tile = tl.arange(0, BLOCK_N)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(begin, end, BLOCK_N):
        index = start + tile
        valid = index < end
        inside = valid[:, None] & (dims < SIZE)[None, :]
        offsets = index.to(tl.int64)[:, None]
        keys = tl.load(key + offsets * stride_key + dims[None, :], mask=inside, other=0.0)
        values = tl.load(value + offsets * stride_value + dims[None, :], mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None]
        out += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        peak = new_peak
    return out / total[:, None], peak + tl.log2(total)


@triton.jit
def prefix_kernel(
    query,
    key,
    value,
    lengths,
    row_of_slot,
    partial,
    partial_lse,
    heads,
    kv_heads,
    slots,
    splits,
    all_splits,
    scale,
    stride_query_row,
    stride_query_head,
    stride_key_mesh,
    stride_key_head,
    stride_key,
    stride_value_mesh,
    stride_value_head,
    stride_value,
    REPEAT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (mesh and key head, split, block of queries): partials 0 to splits - 1 of its rows' heads."""
    mesh = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(0) % kv_heads
    split = tl.program_id(1)
    length = tl.load(lengths + mesh).to(tl.int32)
    tiles = tl.cdiv(tl.cdiv(length, BLOCK_N), splits)
    begin = split * tiles * BLOCK_N
    end = tl.minimum(begin + tiles * BLOCK_N, length)

    item = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = item // REPEAT
    row = tl.load(row_of_slot + mesh * slots + slot, mask=slot < slots, other=-1)
    head = kv_head * REPEAT + item % REPEAT
    used = row >= 0
    partial_index = (row * heads + head) * all_splits + split
    if (begin >= end) | (tl.max(row, 0) < 0):
        tl.store(partial_lse + partial_index, tl.full((BLOCK_M,), float("-inf"), tl.float32), mask=used)
        return
    dims = tl.arange(0, BLOCK_D)
    inside = used[:, None] & (dims < SIZE)[None, :]
    queries = tl.load(
        query + row[:, None] * stride_query_row + head[:, None] * stride_query_head + dims[None, :],
        mask=inside,
        other=0.0,
    )
    out, lse = _attend(
        queries,
        key + mesh * stride_key_mesh + kv_head * stride_key_head,
        value + mesh * stride_value_mesh + kv_head * stride_value_head,
        stride_key,
        stride_value,
        begin,
        end,
        scale,
        SIZE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        PRECISION,
    )
    tl.store(partial_lse + partial_index, lse, mask=used)
    tl.store(partial + partial_index[:, None] * SIZE + dims[None, :], out, mask=inside)


@triton.jit
def own_kernel(
    query,
    key,
    value,
    position,
    partial,
    partial_lse,
    heads,
    kv_heads,
    first_split,
    splits,
    all_splits,
    scale,
    stride_query_row,
    stride_query_head,
    stride_key_row,
    stride_key_head,
    stride_key,
    stride_value_row,
    stride_value_head,
    stride_value,
    REPEAT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (row and key head, split): the row's partials from first_split on."""
    row = (tl.program_id(0) // kv_heads).to(tl.int64)
    kv_head = tl.program_id(0) % kv_heads
    split = tl.program_id(1)
    length = tl.load(position).to(tl.int32) + 1
    tiles = tl.cdiv(tl.cdiv(length, BLOCK_N), splits)
    begin = split * tiles * BLOCK_N
    end = tl.minimum(begin + tiles * BLOCK_N, length)

    item = tl.arange(0, BLOCK_M)  # at least 16 rows, the smallest matrix product; the last ones are idle
    head = kv_head * REPEAT + item
    used = item < REPEAT
    partial_index = (row * heads + head) * all_splits + first_split + split
    if begin >= end:
        tl.store(partial_lse + partial_index, tl.full((BLOCK_M,), float("-inf"), tl.float32), mask=used)
        return
    dims = tl.arange(0, BLOCK_D)
    inside = used[:, None] & (dims < SIZE)[None, :]
    queries = tl.load(
        query + row * stride_query_row + head[:, None] * stride_query_head + dims[None, :],
        mask=inside,
        other=0.0,
    )
    out, lse = _attend(
        queries,
        key + row * stride_key_row + kv_head * stride_key_head,
        value + row * stride_value_row + kv_head * stride_value_head,
        stride_key,
        stride_value,
        begin,
        end,
        scale,
        SIZE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        PRECISION,
    )
    tl.store(partial_lse + partial_index, lse, mask=used)
    tl.store(partial + partial_index[:, None] * SIZE + dims[None, :], out, mask=inside)


@triton.jit
def merge_kernel(
    partial,
    partial_lse,
    result,
    splits,
    SIZE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (row and head): the weighted mean of its partials; an empty split has lse -inf, no output."""
    item = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_S)
    dims = tl.arange(0, BLOCK_D)
    index = item * splits + split
    lse = tl.load(partial_lse + index, mask=split < splits, other=float("-inf"))
    weights = tl.exp2(lse - tl.max(lse, 0))
    inside = (lse > float("-inf"))[:, None] & (dims < SIZE)[None, :]
    outs = tl.load(partial + index[:, None] * SIZE + dims[None, :], mask=inside, other=0.0)
    mean = tl.sum(outs * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(result + item * SIZE + dims, mean.to(result.dtype.element_ty), mask=dims < SIZE)
