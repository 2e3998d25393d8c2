"""Rules for the effect of operators on channels. An operator without a rule holds the channels of all its inputs."""

from syncbn.norm.surgery.graph import Operation
from syncbn.policy.pruning import memory, moves, pointwise, positions, weights
from syncbn.policy.pruning.flow import Rule


def rule_for(operation: Operation) -> Rule | None:
    """Rule of an operator, if there is one."""
    if operation.is_geometry:
        return _VIEWS.get(operation.kind, memory.unknown_view)
    rule = _RULES.get(operation.kind)
    return pointwise.pointwise if rule is None and pointwise.is_pointwise(operation) else rule


def _table(rows: list[tuple[Rule, str]]) -> dict[str, Rule]:
    return {name: rule for rule, names in rows for name in names.split()}


_VIEWS = _table(
    [
        (memory.same, "view _unsafe_view _reshape_alias t transpose permute unsqueeze squeeze expand detach alias"),
        (memory.same, "lift_fresh"),
        (memory.part, "slice select unbind unfold"),
        (memory.split, "split split_with_sizes unsafe_split"),
    ]
)
_RULES = _table(
    [
        (weights.convolution, "convolution"),
        (weights.addmm, "addmm"),
        (weights.mm, "mm"),
        (weights.linear, "linear"),
        (weights.batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"),
        (weights.batch_norm, "cudnn_batch_norm miopen_batch_norm"),
        (positions.over_last(1), "upsample_nearest1d upsample_linear1d _upsample_nearest_exact1d"),
        (positions.over_last(1), "reflection_pad1d replication_pad1d"),
        (positions.over_last(2), "avg_pool2d max_pool2d_with_indices _adaptive_avg_pool2d adaptive_max_pool2d"),
        (positions.over_last(2), "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d"),
        (positions.over_last(2), "_upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d"),
        (positions.over_last(2), "reflection_pad2d replication_pad2d"),
        (positions.over_last(3), "avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_max_pool3d"),
        (positions.over_last(3), "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d grid_sampler_3d"),
        (positions.over_last(3), "reflection_pad3d replication_pad3d"),
        (positions.reduced(True), "mean sum nansum amax amin max min median var std var_mean std_mean"),
        (positions.reduced(True), "norm linalg_vector_norm"),
        (positions.reduced(False), "prod logsumexp argmax argmin any all"),
        (positions.along(True), "cumsum flip roll sort topk"),
        (positions.along(False), "_softmax _log_softmax argsort native_layer_norm cumprod"),
        (positions.padded, "constant_pad_nd"),
        (moves.cat, "cat"),
        (moves.stack, "stack"),
        (moves.glu, "glu"),
        (moves.rearranged, "pixel_shuffle pixel_unshuffle channel_shuffle repeat"),
        (moves.unfolded, "im2col"),
        (moves.index, "index index_select"),
        (memory.constant(True), "empty new_empty empty_strided new_empty_strided zeros new_zeros"),
        (memory.constant(False), "ones new_ones full new_full rand randn"),
        (memory.like(True), "zeros_like empty_like"),
        (memory.like(False), "ones_like full_like rand_like randn_like"),
        (memory.filled, "fill_ zero_ bernoulli_ uniform_ normal_ exponential_ random_"),
    ]
)
